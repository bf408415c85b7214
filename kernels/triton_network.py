"""The whole network on fused Triton kernels, for inference on a CUDA device."""

from types import ModuleType

import torch
from torch import Tensor, nn

from kernels import triton_layers
from kernels.fold import block_names, folded, scale_of
from kernels.triton_weights import choose_blocks, pack

MOST_NUMBERS = 2**31  # the kernels count in int32


class FusedLKDN(nn.Module):
    """LKDN's inference form, weights packed once: x (B, 3, H, W), RGB in 0..1 -> (B, 3, 4H, 4W).

    Features are kept in `dtype`, sums in float32; input and output are float32.

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale.
        dtype: torch.float16, torch.bfloat16 or torch.float32.
        steps: kernels.triton_layers, or a reference implementation of it.
        capability: ten times the compute capability that kernels are for; by default that of the
            device the network is on.
    """

    def __init__(
        self,
        net: nn.Module,
        dtype: torch.dtype = torch.float16,
        steps: ModuleType = triton_layers,
        capability: int | None = None,
    ) -> None:
        super().__init__()
        self.dtype, self.steps = dtype, steps
        device = next(net.parameters()).device
        if capability is None:
            major, minor = (
                torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)
            )
            capability = 10 * major + minor
        weights = folded(net)
        self.names = block_names(weights)
        self.channels = len(weights["fea_conv.bias"])
        self.blocks = choose_blocks(self.channels, dtype, capability)
        self.image_channels = weights["fea_conv.weight"].shape[1]
        self.scale = scale_of(len(weights["upsampler.0.bias"]), self.image_channels)
        self.eps = [float(weights[f"{block}.eps"]) for block in self.names]
        self.layers = {
            name: {key: value.to(device).contiguous() for key, value in layer.items()}
            for name, layer in pack(weights, self.blocks, dtype).items()
        }

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 3, 4H, 4W). Raises ValueError for any other shape, or if it has too
        many pixels."""
        if x.ndim != 4 or x.shape[1] != self.image_channels:
            raise ValueError(f"expected (B, {self.image_channels}, H, W), got {tuple(x.shape)}")
        with torch.cuda.device_of(x):  # Triton launches on the current device
            return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        size, w, b, steps = (batch, height, width), self.layers, self.blocks, self.steps
        most = MOST_NUMBERS // max(b.parts, channels * self.scale**2)
        if batch * height * width >= most:
            raise ValueError(
                f"expected fewer than {most} pixels, got {batch}x{height}x{width}: use tiles"
            )
        shallow = steps.shallow(w["shallow"], b, x.float().contiguous(), self.dtype, size)
        del x
        features, running = shallow, torch.empty_like(shallow)
        for i, name in enumerate(self.names):
            refined = features
            parts = shallow.new_empty(len(shallow), b.parts)
            for j in range(3):
                part = parts[:, j * b.count : (j + 1) * b.count]
                refined = steps.refine(w[f"{name}.{j + 1}"], b, refined, part, size)
            merged, attention = steps.merge(w[f"{name}.merge"], b, refined, parts, size)
            del refined, parts, part
            attention = steps.spread(w[f"{name}.spread"], b, attention, size)
            features = steps.attend(
                w[f"{name}.attend"],
                b,
                attention,
                merged,
                features,
                running,
                size,
                self.channels,
                self.eps[i],
                i == 0,
                i == len(self.names) - 1,
            )
            del merged, attention
        del features
        total = steps.smooth(w["smooth"], b, running, shallow, size)
        del running, shallow
        return steps.enlarge(w["enlarge"], b, total, channels, self.scale, size)
