"""The launchers of kernels/triton_layers.py in plain torch: same names, arguments and results.

They compute in float32 and round where the kernels store.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.triton_layers import Size, Weights


def shallow(w: Weights, image: Tensor, pitch: int, dtype: torch.dtype, size: Size) -> Tensor:
    taps, outputs = w["weight"].shape
    weight = w["weight"].view(9, taps // 9, outputs)
    return _rows(_dense3(image.float(), weight, w["bias"]), pitch, dtype)


def refine(w: Weights, source: Tensor, parts: Tensor, size: Size) -> Tensor:
    part = F.gelu(_product(source, w["distil"]) + w["distil_bias"])
    parts.copy_(part[:, : parts.shape[1]])
    refined = _dense3(_image(source, size), w["dense"], w["dense_bias"])
    return _rows(F.gelu(refined), source.shape[1], source.dtype)


def merge(w: Weights, source: Tensor, parts: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    last = F.gelu(_dense3(_image(source, size), w["dense"], w["dense_bias"]))
    last = _rows(last, w["last"].shape[0], source.dtype)
    total = _product(last, w["last"]) + _product(parts, w["parts"]) + w["bias"]
    merged = total.to(source.dtype)
    attention = (_product(merged, w["point"]) + w["point_bias"]).to(source.dtype)
    pitch = source.shape[1]
    return merged[:, :pitch].contiguous(), attention[:, :pitch].contiguous()


def spread(w: Weights, source: Tensor, size: Size) -> Tensor:
    return _rows(_depthwise5(_image(source, size), w, 1), source.shape[1], source.dtype)


def attend(
    w: Weights,
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
    pitch = source.shape[1]
    large = _rows(_depthwise5(_image(source, size), w, 3), pitch, torch.float32)
    gated = large * merged
    largest = gated.abs().amax(1, keepdim=True).clamp(min=1e-15)
    z = _product((gated / largest).to(source.dtype), w["c6"]) + w["c6_bias"] / largest
    z = z * torch.rsqrt(z.square().sum(1, keepdim=True) / channels + eps / largest.square())
    out = ((z * w["scale"] + w["shift"])[:, :pitch] + features).to(source.dtype)
    total = _product(out, w["fusion"])[:, :pitch]
    total = total + (w["fusion_bias"][:pitch] if first else running)
    running.copy_(F.gelu(total) if last else total)
    return out[:0] if last else out


def smooth(w: Weights, source: Tensor, features: Tensor, size: Size) -> Tensor:
    total = _dense3(_image(source, size), w["dense"], w["dense_bias"])
    pitch = source.shape[1]
    return (_rows(total, pitch, torch.float32) + features).to(source.dtype)


def enlarge(w: Weights, source: Tensor, channels: int, scale: int, size: Size) -> Tensor:
    total = _dense3(_image(source, size), w["dense"], w["dense_bias"])
    return F.pixel_shuffle(total[:, : channels * scale**2], scale)


def _image(features: Tensor, size: Size) -> Tensor:
    """(B*H*W, P) -> (B, P, H, W) float32."""
    return features.float().view(*size, -1).permute(0, 3, 1, 2)


def _rows(image: Tensor, pitch: int, dtype: torch.dtype) -> Tensor:
    """(B, K, H, W) -> (B*H*W, pitch)."""
    rows = image.permute(0, 2, 3, 1).reshape(-1, image.shape[1])
    return rows[:, :pitch].to(dtype).contiguous()


def _product(rows: Tensor, matrix: Tensor) -> Tensor:
    """(pixels, columns) @ (K, N), columns up to K, in float32."""
    return rows.float() @ matrix[: rows.shape[1]].float()


def _dense3(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """3x3 of (B, columns, H, W) with (9, K, N)."""
    kernel = weight[:, : image.shape[1]].float().permute(2, 1, 0).reshape(bias.numel(), -1, 3, 3)
    return F.conv2d(image, kernel, bias, padding=1)


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
