"""LKDN computed in widths that a GPU's matrix units take: channels of zeros beside its own.

cuDNN has fast kernels for bfloat16 in channels_last where channels are a multiple of eight; 42 and
21 are not. The zeros stay zeros through every layer, so the function and its gradients are equal.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.fold import round_up
from models.team23_LKDN import LKDN, BSConv
from train.reparam import upscale_factor

MULTIPLE = 16  # of the width, for half of it has to be a multiple of eight


def aligned_like(plain: LKDN) -> LKDN:
    """A network that computes what `plain`, in inference form, does: with the kernels of
    `align_parameters`, on an input of one more channel, of zeros."""
    channels = plain.fea_conv.pw.out_channels
    width = round_up(channels, MULTIPLE)
    in_channels = plain.fea_conv.pw.in_channels // plain.copies
    network = LKDN(width, len(plain.blocks), upscale_factor(plain), in_channels, plain.copies)
    network.fea_conv = BSConv((in_channels + 1) * plain.copies, width)
    for name in network.blocks:
        network.get_submodule(name).pixel_norm = _PartNorm(channels, width)
    return network


class _PartNorm(nn.LayerNorm):
    """PixelNorm over the first channels, the others being zero. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(width)
        self.channels = channels
        self.own: Tensor
        self.register_buffer("own", torch.arange(width) < channels, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel, in float32 or above."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.permute(0, 2, 3, 1)
            x = x if x.dtype == torch.float64 else x.float()
            centred = (x - x.sum(-1, keepdim=True) / self.channels) * self.own
            variance = centred.square().sum(-1, keepdim=True) / self.channels
            x = centred * (variance + self.eps).rsqrt() * self.weight + self.bias
            return x.permute(0, 3, 1, 2)


def align_parameters(kernels: Mapping[str, Tensor], network: LKDN) -> dict[str, Tensor]:
    """Parameters of `network`, from `aligned_like`, from those of the plain one, differentiably."""
    # What reads several inputs laid side by side, each with zeros behind it.
    parts = {"fea_conv.pw.weight": network.copies, "c1.weight": len(network.blocks)}
    shapes = {name: p.shape for name, p in network.named_parameters()}
    aligned = {}
    for name, value in kernels.items():
        shape = shapes[name]
        more = shape[0] - len(value)
        if value.ndim == 1:
            aligned[name] = F.pad(value, (0, more))
            continue
        count = 4 if name.endswith(".c5.weight") else parts.get(name, 1)
        value = value.unflatten(1, (count, -1))
        inputs = shape[1] // count - value.shape[2]
        aligned[name] = F.pad(value, (0, 0, 0, 0, 0, inputs, 0, 0, 0, more)).flatten(1, 2)
    return aligned
