"""The network's weights rewritten for the fast forms: less work, smaller numbers, same function."""

import copy
import math
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)

LARGEST = 64.0  # what rescaling aims at, so that products and other images stay below 65504,
LARGEST_NORMALISED = 1024.0  # .. before a norm whose eps cannot be scaled too


def block_names(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the distillation blocks of a state dict, in the order they run."""
    return [f"B{i}" for i in range(1, 1 + sum(key.endswith(".c6.bias") for key in weights))]


def scale_of(outputs: int, channels: int) -> int:
    """By how much a network enlarges that has so many outputs before the shuffle, for an image of
    so many channels."""
    return math.isqrt(outputs // channels)


def round_up(number: int, multiple: int) -> int:
    """The least multiple that is at least `number`."""
    return -(-number // multiple) * multiple


def folded(net: nn.Module) -> dict[str, Tensor]:
    """The inference form's state dict in float64, with what can be computed beforehand computed.

    - `fea_conv.weight` (C, 3, 3, 3): the input's copies summed, and the blueprint pair as one
      convolution, in place of `fea_conv.pw` and `fea_conv.dw`.
    - `B*`: `rescaled`.
    - `B*.c6`: its outputs centred, so that `pixel_norm` finds a mean of zero.
    - `B*.eps`: what `pixel_norm` has to add to the variance, a number.
    - `c1.B*.weight` (C, C, 1, 1): the part of `c1` that reads one block, in place of `c1.weight`:
      the sum over blocks runs while they do, and nobody keeps or concatenates their outputs.

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale, float32 or float64.

    Raises:
        OverflowError: weights whose layers give NaN or infinity, see `_magnitudes`.
    """
    net = rescaled(net)
    weights = {key: value.detach().double().cpu() for key, value in net.state_dict().items()}
    channels = len(weights["c2.dw.weight"])
    pointwise = weights.pop("fea_conv.pw.weight")
    summed = pointwise.reshape(channels, int(net.copies), -1, 1, 1).sum(1)  # type: ignore[arg-type]
    weights["fea_conv.weight"] = dense(summed, weights.pop("fea_conv.dw.weight"))
    weights["fea_conv.bias"] = weights.pop("fea_conv.dw.bias")
    fusion = weights.pop("c1.weight")
    centre = torch.eye(channels, dtype=torch.float64) - 1 / channels
    for i, block in enumerate(block_names(weights)):
        weights[f"c1.{block}.weight"] = fusion[:, i * channels : (i + 1) * channels]
        weight, bias = weights[f"{block}.c6.weight"], weights[f"{block}.c6.bias"]
        weights[f"{block}.c6.weight"] = (centre @ weight[:, :, 0, 0])[:, :, None, None]
        weights[f"{block}.c6.bias"] = centre @ bias
        eps = net.get_submodule(f"{block}.pixel_norm").eps
        weights[f"{block}.eps"] = torch.tensor(float(eps), dtype=torch.float64)  # type: ignore[arg-type]
    return weights


def rescaled(net: nn.Module) -> nn.Module:
    """The same function with numbers that half precision holds, as a new network.

    What `pixel_norm` normalises may have any scale, so training lets it grow without bound: to
    1e11 in the shipped weights, and float16 ends at 65504. The layers from `c5` to `c6` are scaled
    by powers of two, which rounds nothing, and the norm's eps with them.
    """
    net = copy.deepcopy(net)
    for block, scale in _rescale_blocks(net, LARGEST, math.inf).items():
        norm = net.get_submodule(f"{block}.pixel_norm")
        assert isinstance(norm, nn.LayerNorm)
        norm.eps *= scale**2
    return net


def reduced(net: Net) -> Net:
    """`rescaled` for a network that keeps its eps, such as one that is loaded from a file.

    Layers are only made smaller, and what `pixel_norm` normalises stays so large that eps is
    nothing beside it: the function is the same but for some 1e-6 of the image's range. A network
    whose numbers half precision holds already comes back as it is.
    """
    net = copy.deepcopy(net)
    _rescale_blocks(net, LARGEST_NORMALISED, 1.0)
    return net


@torch.no_grad()
def _rescale_blocks(net: nn.Module, normalised: float, most: float) -> dict[str, float]:
    """Scale the layers of every block in place, each by at most `most`. Returns the scale of each
    block's c6, with which its largest output lies just below `normalised`."""
    largest = _magnitudes(net)
    scales = {}
    for block in block_names(net.state_dict()):

        def rescale(layer: str, before: float, aim: float, block: str = block) -> float:
            name = f"{block}.{layer}"
            scale = 2.0 ** math.floor(math.log2(aim / largest[name])) if largest[name] else before
            scale = min(scale, most)
            net.get_parameter(f"{name}.weight").mul_(scale / before)
            net.get_parameter(f"{name}.bias").mul_(scale)
            return scale

        merged = scale = rescale("c5", 1.0, LARGEST)
        for name in ("pointwise", "depthwise", "depthwise_dilated"):
            scale = rescale(f"atten.{name}", scale, LARGEST)
        scales[block] = rescale("c6", merged * scale, normalised)
    return scales


def dense(pointwise: Tensor, depthwise: Tensor) -> Tensor:
    """A blueprint pair (O, I, 1, 1), (O, 1, k, k) as one convolution (O, I, k, k).

    Equal at the borders too: the 1x1 has no bias, so the zeros around its output are those
    around its input.
    """
    return pointwise * depthwise


@torch.no_grad()
def _magnitudes(net: nn.Module) -> dict[str, float]:
    """Largest absolute output of each convolution on a few made-up images.

    Noise, fine and coarse, and flat black, grey and white: photographs lie between. Raises
    OverflowError where float32 does not hold an output: no picture comes of such weights.
    """
    net = copy.deepcopy(net).cpu().float().eval()
    channels = net.fea_conv.pw.weight.shape[1] // int(net.copies)  # type: ignore
    generator = torch.Generator().manual_seed(0)
    fine = torch.rand(1, channels, 48, 48, generator=generator)
    coarse = F.interpolate(torch.rand(1, channels, 6, 6, generator=generator), 48, mode="bilinear")
    flat = [torch.full_like(fine, level) for level in (0.0, 0.5, 1.0)]
    largest: dict[str, float] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d):

            def keep(_: nn.Module, __: tuple[Tensor, ...], out: Tensor, name: str = name) -> None:
                most = float(out.abs().amax())
                if not math.isfinite(most):
                    raise OverflowError(
                        "expected weights with which float32 holds what every layer gives, got "
                        f"{most} of {name} on a made-up image: take other weights, such as those "
                        "of an earlier checkpoint"
                    )
                largest[name] = max(largest.get(name, 0.0), most)

            module.register_forward_hook(keep)
    for image in (fine, coarse, *flat):
        net(image)
    return largest
