"""Training form and inference form of LKDN, and the exact way from one to the other.

In the training form every RBSB carries extra branches and the upsampler has three of them
(LKDN factsheet, NTIRE 2023). All of it is linear, so the branches fold into one convolution
each: u = pw(x) + x and v = dw3x3(u) + dw1x1(u) + u is a blueprint separable convolution with
kernels pw + I and dw3x3 + centre(dw1x1 + 1).

The released training-form checkpoints load into `training_form(LKDN())` by name.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.team23_LKDN import LKDN, BSConv

RBSB_NAMES = ("c1_r", "c2_r", "c3_r")


class RepBSConv(BSConv):
    """Training form of an RBSB. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)
        self.rep1x1 = nn.Conv2d(channels, channels, 1, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        """Pointwise and depthwise, each with what stands beside it."""
        u = self.pw(x) + x
        return self.dw(u) + self.rep1x1(u) + u


class RepUpsampler(nn.Module):
    """Training form of the upsampler. (B, C, H, W) -> (B, out_channels, scale*H, scale*W).

    The third branch expands to 2C channels before its 3x3. That 3x3 sees the 1x1's bias beyond
    the border, not zero: the bias is what a 1x1 gives on zero padding, so only then does one
    zero-padded 3x3 equal the three branches on the outermost pixels too.
    """

    def __init__(self, channels: int, out_channels: int, scale: int) -> None:
        super().__init__()
        wide, out = 2 * channels, out_channels * scale**2
        self.conv1 = nn.Conv2d(channels, out, 1)
        self.conv3 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv1x1 = nn.Conv2d(channels, wide, 1)
        self.conv3x3 = nn.Conv2d(wide, out, 3)
        self.shuffle = nn.PixelShuffle(scale)

    def forward(self, x: Tensor) -> Tensor:
        """The sum of three branches, shuffled to the enlarged size."""
        wide = self.conv1x1(F.pad(x, (1, 1, 1, 1)))  # (B, 2C, H+2, W+2)
        return self.shuffle(self.conv3(x) + self.conv1(x) + self.conv3x3(wide))


def training_form(net: LKDN) -> LKDN:
    """A copy of an inference-form network with the training branches added.

    The added branches start at PyTorch's default initialisation and the plain kernels are kept,
    so the result computes another function than `net`: this is where training starts, not the
    inverse of `fuse`.
    """
    form = copy.deepcopy(net)
    for name in form.blocks:
        for rbsb in RBSB_NAMES:
            plain = form.get_submodule(f"{name}.{rbsb}")
            assert isinstance(plain, BSConv), f"{name}.{rbsb} is no plain BSConv"
            rep = RepBSConv(plain.pw.in_channels).to(plain.pw.weight)
            rep.pw, rep.dw = plain.pw, plain.dw
            setattr(form.get_submodule(name), rbsb, rep)
    conv, scale = form.upsampler[0], upscale_factor(form)
    assert isinstance(conv, nn.Conv2d)
    upsampler = RepUpsampler(conv.in_channels, conv.out_channels // scale**2, scale)
    upsampler.conv3 = conv
    form.upsampler = upsampler.to(conv.weight)  # type: ignore[assignment]
    return form


def fuse(net: LKDN) -> LKDN:
    """The inference form of a training-form network: a new, plain LKDN of equal output.

    Kernels are added in float64 and cast back to the dtype they came in. `net` is not changed.
    """
    dtype = net.fea_conv.pw.weight.dtype
    parameters = {k: v.detach().double() for k, v in net.state_dict().items()}
    plain = plain_like(net)
    plain.load_state_dict({k: v.to(dtype) for k, v in fuse_parameters(parameters).items()})
    return plain.to(net.fea_conv.pw.weight.device).train(net.training)


def plain_like(net: LKDN) -> LKDN:
    """A new inference-form network of the same size as `net`, in either form, and dtype."""
    channels = net.fea_conv.pw.out_channels
    in_channels = net.fea_conv.pw.in_channels // net.copies
    return LKDN(channels, len(net.blocks), upscale_factor(net), in_channels, net.copies).to(
        net.fea_conv.pw.weight.dtype
    )


def upscale_factor(net: LKDN) -> int:
    """The scale of a network in either form."""
    return next(m.upscale_factor for m in net.modules() if isinstance(m, nn.PixelShuffle))


def has_branches(state: Mapping[str, Tensor]) -> bool:
    """Whether parameters are a training form's."""
    return "upsampler.conv3.weight" in state


def fuse_parameters(form: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters of the inference form from those of the training form, differentiably.

    Training may run the plain network on these: the same function and the same gradients as the
    branches, at the inference form's cost. Names of the training form not fused here pass
    unchanged, so parameters that are already plain come back as they are.
    """
    plain = {}
    for name, value in form.items():
        module, _, leaf = name.rpartition(".")
        parent, _, branch = module.rpartition(".")
        if branch == "rep1x1":
            continue
        if f"{parent}.rep1x1.weight" in form:
            if name == f"{parent}.pw.weight":
                eye = torch.eye(len(value), dtype=value.dtype, device=value.device)
                plain[name] = value + eye[:, :, None, None]
            elif leaf == "weight":
                plain[name] = value + F.pad(form[f"{parent}.rep1x1.weight"] + 1, (1, 1, 1, 1))
            else:
                plain[name] = value + form[f"{parent}.rep1x1.bias"]
        elif parent != "upsampler" or branch == "0":
            plain[name] = value
    if has_branches(form):
        kernel, bias = _fuse_upsampler(form)
        plain["upsampler.0.weight"], plain["upsampler.0.bias"] = kernel, bias
    return plain


def _fuse_upsampler(form: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """One 3x3 for the three branches: kernel (out, C, 3, 3), bias (out,)."""
    branch = {k.removeprefix("upsampler."): v for k, v in form.items() if "upsampler." in k}
    wide = branch["conv3x3.weight"]  # (out, 2C, 3, 3)
    chained = torch.einsum("owij,wc->ocij", wide, branch["conv1x1.weight"][:, :, 0, 0])
    kernel = branch["conv3.weight"] + F.pad(branch["conv1.weight"], (1, 1, 1, 1)) + chained
    through = torch.einsum("owij,w->o", wide, branch["conv1x1.bias"])
    biases = branch["conv3.bias"] + branch["conv1.bias"] + branch["conv3x3.bias"]
    return kernel, biases + through
