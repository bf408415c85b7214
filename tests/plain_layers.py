"""The launchers of kernels/triton_layers.py in plain torch: same names, arguments and results.

They compute in float32 and round where the kernels store.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.triton_layers import Size, Weights
from kernels.triton_weights import Blocks


def shallow(w: Weights, blocks: Blocks, image: Tensor, dtype: torch.dtype, size: Size) -> Tensor:
    taps, outputs = w["weight"].shape
    kernel = w["weight"].view(3, 3, taps // 9, outputs).permute(3, 2, 0, 1)
    return _rows(F.conv2d(image, kernel, w["bias"], padding=1), blocks.pitch, dtype)


def refine(w: Weights, blocks: Blocks, source: Tensor, part: Tensor, size: Size) -> Tensor:
    refined = F.gelu(_dense3(_image(source, size), w["weight"], w["bias"]))
    rows = _rows(refined, blocks.wide, source.dtype)
    part.copy_(rows[:, blocks.start : blocks.start + blocks.count])
    return rows[:, : blocks.pitch].contiguous()


def merge(
    w: Weights, blocks: Blocks, source: Tensor, parts: Tensor, size: Size
) -> tuple[Tensor, Tensor]:
    last = F.gelu(_dense3(_image(source, size), w["weight"], w["narrow_bias"]))
    last = _rows(last, blocks.narrow, source.dtype)
    total = product(last, w["last"]) + product(parts, w["parts"]) + w["bias"]
    parts[:, : blocks.pitch] = total[:, : blocks.pitch]
    merged = parts[:, : blocks.pitch]
    attention = product(merged, w["point"]) + w["point_bias"]
    return merged, attention[:, : blocks.pitch].to(source.dtype)


def spread(w: Weights, blocks: Blocks, source: Tensor, size: Size) -> Tensor:
    return _rows(_depthwise5(_image(source, size), w, 1), blocks.pitch, source.dtype)


def attend(
    w: Weights,
    blocks: Blocks,
    source: Tensor,
    merged: Tensor,
    features: Tensor,
    running: Tensor,
    size: Size,
    channels: int,
    eps: float,
    first: bool,
    last: bool,
) -> Tensor:
    pitch = blocks.pitch
    large = _rows(_depthwise5(_image(source, size), w, 3), pitch, torch.float32)
    gated = large * merged
    part = 1 / gated.abs().amax(1, keepdim=True).clamp(min=1e-15)
    z = product((gated * part).to(source.dtype), w["c6"]) + w["c6_bias"] * part
    z = z * torch.rsqrt(z.square().sum(1, keepdim=True) / channels + eps * part.square())
    out = ((z * w["scale"] + w["shift"])[:, :pitch] + features).to(source.dtype)
    total = product(out, w["fusion"])[:, :pitch]
    total = total + (w["fusion_bias"][:pitch] if first else running)
    running.copy_(F.gelu(total) if last else total)
    return out[:0] if last else out


def smooth(w: Weights, blocks: Blocks, source: Tensor, features: Tensor, size: Size) -> Tensor:
    total = _dense3(_image(source, size), w["weight"], w["bias"])
    return (_rows(total, blocks.pitch, torch.float32) + features).to(source.dtype)


def enlarge(
    w: Weights, blocks: Blocks, source: Tensor, channels: int, scale: int, size: Size
) -> Tensor:
    total = _dense3(_image(source, size), w["weight"], w["bias"])
    return F.pixel_shuffle(total[:, : channels * scale**2], scale)


def product(rows: Tensor, matrix: Tensor) -> Tensor:
    """(pixels, columns) @ (K, N), columns up to K, in float32."""
    return rows.float() @ matrix[: rows.shape[1]].float()


def _image(features: Tensor, size: Size) -> Tensor:
    """(B*H*W, P) -> (B, P, H, W) float32."""
    return features.float().view(*size, -1).permute(0, 3, 1, 2)


def _rows(image: Tensor, pitch: int, dtype: torch.dtype) -> Tensor:
    """(B, K, H, W) -> (B*H*W, pitch)."""
    rows = image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
    return rows[:, :pitch].to(dtype).contiguous()


def _dense3(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 of (B, P, H, W) with (3, at least 3P, N), a row's three taps one below the other."""
    batch, pitch, height, width = image.shape
    flat = F.unfold(image, 3, padding=1).unflatten(1, (pitch, 3, 3))  # (B, P, 3, 3, H*W)
    rows = flat.permute(0, 4, 2, 3, 1).reshape(-1, 9 * pitch)
    total = product(rows, weight[:, : 3 * pitch].reshape(9 * pitch, -1)) + bias
    return total.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _depthwise5(image: Tensor, w: Weights, dilation: int) -> Tensor:
    """Depthwise 5x5 of (B, P, H, W) with (25, K)."""
    channels = image.shape[1]
    kernel = w["weight"][:, :channels].t().reshape(channels, 1, 5, 5)
    return F.conv2d(
        image,
        kernel,
        w["bias"][:channels],
        padding=2 * dilation,
        dilation=dilation,
        groups=channels,
    )
