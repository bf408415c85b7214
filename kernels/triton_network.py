"""The whole network on fused Triton kernels, for inference on a CUDA device."""

from types import ModuleType

import torch
from torch import Tensor, nn

from kernels import triton_layers
from kernels.fold import block_names, dense, folded, round_up

MOST_NUMBERS = 2**31  # the kernels count in int32


class FusedLKDN(nn.Module):
    """LKDN's inference form, weights packed once: x (B, 3, H, W), RGB in 0..1 -> (B, 3, 4H, 4W).

    Features are kept in `dtype`, sums in float32; input and output are float32.

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale.
        dtype: torch.float16, torch.bfloat16 or torch.float32.
        steps: kernels.triton_layers, or a reference implementation of it.
    """

    def __init__(
        self, net: nn.Module, dtype: torch.dtype = torch.float16, steps: ModuleType = triton_layers
    ) -> None:
        super().__init__()
        self.dtype, self.steps = dtype, steps
        weights = folded(net)
        self.blocks = block_names(weights)
        self.channels = len(weights["fea_conv.bias"])
        self.image_channels = weights["fea_conv.weight"].shape[1]
        self.scale = round((len(weights["upsampler.0.bias"]) / self.image_channels) ** 0.5)
        self.eps = [float(weights[f"{block}.eps"]) for block in self.blocks]
        device = next(net.parameters()).device
        self.layers = {
            name: {key: value.to(device).contiguous() for key, value in layer.items()}
            for name, layer in _packed(weights, dtype).items()
        }

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 3, 4H, 4W). Raises ValueError if it has too many pixels."""
        batch, channels, height, width = x.shape
        size, w, steps = (batch, height, width), self.layers, self.steps
        pitch = round_up(self.channels, 16)
        if batch * height * width * 2 * pitch >= MOST_NUMBERS:
            raise ValueError(
                f"expected fewer than {MOST_NUMBERS // (2 * pitch)} pixels, got "
                f"{batch}x{height}x{width}: use tiles"
            )
        shallow = steps.shallow(w["shallow"], x.float().contiguous(), pitch, self.dtype, size)
        features, running = shallow, torch.empty_like(shallow)
        distilled = self.channels // 2
        parts = shallow.new_empty(len(shallow), round_up(3 * distilled, 16))[:, : 3 * distilled]
        for i, block in enumerate(self.blocks):
            refined = features
            for j in range(3):
                part = parts[:, j * distilled : (j + 1) * distilled]
                refined = steps.refine(w[f"{block}.{j + 1}"], refined, part, size)
            merged, attention = steps.merge(w[f"{block}.merge"], refined, parts, size)
            attention = steps.spread(w[f"{block}.spread"], attention, size)
            features = steps.attend(
                w[f"{block}.attend"],
                attention,
                merged,
                features,
                running,
                size,
                self.channels,
                self.eps[i],
                i == 0,
                i == len(self.blocks) - 1,
            )
        del refined, merged, attention, features, part, parts
        total = steps.smooth(w["smooth"], running, shallow, size)
        return steps.enlarge(w["enlarge"], total, channels, self.scale, size)


def _packed(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, dict[str, Tensor]]:
    """Layer -> name -> tensor, as the kernels read them: matrices (K, N) and 3x3 (9, K, N) in
    `dtype`, what is added or multiplied without tensor cores in float32."""
    channels = len(weights["fea_conv.bias"])
    distilled = channels // 2
    k, m = _power(channels), _power(distilled)

    def matrix(weight: Tensor, rows: int, columns: int) -> Tensor:
        """(O, I, 1, 1) -> (I, O), padded."""
        return _pad(weight[:, :, 0, 0].t(), rows, columns).to(dtype)

    def vector(name: str, length: int = k) -> Tensor:
        return _pad(weights[name][None], 1, length)[0].float()

    def taps(weight: Tensor, columns: int) -> Tensor:
        """(O, I, 3, 3) -> (9, I, O), padded."""
        flat = weight.permute(2, 3, 1, 0).reshape(9, weight.shape[1], len(weight))
        return _pad(flat, k, columns).to(dtype)

    def depthwise(name: str) -> dict[str, Tensor]:
        """(C, 1, 5, 5) -> (25, C), padded."""
        weight = weights[f"{name}.weight"].reshape(channels, 25).t()
        return {"weight": _pad(weight, 25, k).float(), "bias": vector(f"{name}.bias")}

    def blueprint(name: str, columns: int = k) -> dict[str, Tensor]:
        weight = dense(weights[f"{name}.pw.weight"], weights[f"{name}.dw.weight"])
        return {"dense": taps(weight, columns), "dense_bias": vector(f"{name}.dw.bias", columns)}

    first = weights["fea_conv.weight"]
    layers = {
        "shallow": {
            "weight": _pad(first.permute(2, 3, 1, 0).reshape(-1, channels), 0, k).float(),
            "bias": vector("fea_conv.bias"),
        }
    }
    for block in block_names(weights):
        for j in (1, 2, 3):
            layers[f"{block}.{j}"] = {
                **blueprint(f"{block}.c{j}_r"),
                "distil": matrix(weights[f"{block}.c{j}_d.weight"], k, m),
                "distil_bias": vector(f"{block}.c{j}_d.bias", m),
            }
        c5 = weights[f"{block}.c5.weight"]
        layers[f"{block}.merge"] = {
            **blueprint(f"{block}.c4", m),
            "parts": matrix(c5[:, : 3 * distilled], _power(3 * distilled), k),
            "last": matrix(c5[:, 3 * distilled :], m, k),
            "bias": vector(f"{block}.c5.bias"),
            "point": matrix(weights[f"{block}.atten.pointwise.weight"], k, k),
            "point_bias": vector(f"{block}.atten.pointwise.bias"),
        }
        layers[f"{block}.spread"] = depthwise(f"{block}.atten.depthwise")
        layers[f"{block}.attend"] = {
            **depthwise(f"{block}.atten.depthwise_dilated"),
            "c6": matrix(weights[f"{block}.c6.weight"], k, k),
            "c6_bias": vector(f"{block}.c6.bias"),
            "scale": vector(f"{block}.pixel_norm.weight"),
            "shift": vector(f"{block}.pixel_norm.bias"),
            "fusion": matrix(weights[f"c1.{block}.weight"], k, k),
            "fusion_bias": vector("c1.bias"),
        }
    layers["smooth"] = blueprint("c2")
    outputs = _power(len(weights["upsampler.0.bias"]))
    layers["enlarge"] = {
        "dense": taps(weights["upsampler.0.weight"], outputs),
        "dense_bias": vector("upsampler.0.bias", outputs),
    }
    return layers


def _pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right, up to the given size."""
    down, right = max(0, rows - matrix.shape[-2]), columns - matrix.shape[-1]
    return torch.nn.functional.pad(matrix, (0, right, 0, down))


def _power(number: int) -> int:
    """The least power of two that is at least `number` and that a tensor core's 16."""
    return max(16, 1 << (number - 1).bit_length())
