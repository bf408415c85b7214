"""The launchers of the Triton kernels, one a layer, on features in memory.

tests/plain_layers.py has the same functions in plain torch. Features are (B*H*W, pitch) of one
dtype; `w` are a layer's weights and `blocks` their sizes, of kernels/triton_weights.py.
"""

from collections.abc import Mapping
from typing import Any

import torch
import triton
from torch import Tensor

from kernels import triton_attention, triton_dense
from kernels.triton_weights import Blocks

Weights = Mapping[str, Tensor]
Size = tuple[int, int, int]  # batch, height, width


def launch(kernel: Any, blocks: Blocks, size: Size, *arguments: Any) -> None:
    """Run a kernel on an image's tiles."""
    batch, height, width = size
    rows, columns = blocks.tile
    grid = (triton.cdiv(width, columns), triton.cdiv(height, rows), batch)
    kernel[grid](
        *arguments,
        TH=rows,
        TW=columns,
        num_warps=blocks.warps,
        num_stages=blocks.stages,
        enable_fp_fusion=True,
    )


def shallow(w: Weights, blocks: Blocks, image: Tensor, dtype: torch.dtype, size: Size) -> Tensor:
    """(B, channels, H, W) float32 -> features of `dtype`."""
    out = image.new_empty(size[0] * size[1] * size[2], blocks.pitch, dtype=dtype)
    launch(
        triton_dense.shallow_kernel,
        blocks,
        size,
        image,
        w["weight"],
        w["bias"],
        out,
        *size[1:],
        image.shape[1],
        blocks.pitch,
        *blocks.columns,
    )
    return out


def refine(w: Weights, blocks: Blocks, source: Tensor, part: Tensor, size: Size) -> Tensor:
    """gelu(3x3 of source); what is distilled goes to `part`, a view of some columns of the
    parts (B*H*W, parts)."""
    out = torch.empty_like(source)
    launch(
        triton_dense.refine_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["bias"],
        out,
        part,
        *size[1:],
        blocks.pitch,
        *blocks.taps,
        blocks.wide,
        blocks.start,
        blocks.count,
        blocks.parts,
    )
    return out


def merge(
    w: Weights, blocks: Blocks, source: Tensor, parts: Tensor, size: Size
) -> tuple[Tensor, Tensor]:
    """The last part is distilled from source and all are merged: (merged, its attention 1x1).

    The merged features replace the parts, of which they are a view.
    """
    attention = torch.empty_like(source)
    launch(
        triton_attention.merge_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["narrow_bias"],
        parts,
        w["parts"],
        w["last"],
        w["bias"],
        w["point"],
        w["point_bias"],
        attention,
        *size[1:],
        blocks.pitch,
        *blocks.taps,
        blocks.narrow,
        *blocks.columns,
        blocks.parts,
        *blocks.part_columns,
    )
    return parts[:, : blocks.pitch], attention


def spread(w: Weights, blocks: Blocks, source: Tensor, size: Size) -> Tensor:
    """Depthwise 5x5 of source."""
    out = torch.empty_like(source)
    launch(
        triton_attention.spread_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["bias"],
        out,
        *size[1:],
        blocks.pitch,
        *blocks.columns,
    )
    return out


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
    """features + norm(c6(merged * dilated 5x5 of source)), and `running` brought up to date."""
    out = source[:0] if last else torch.empty_like(source)
    launch(
        triton_attention.attend_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["bias"],
        merged,
        w["c6"],
        w["c6_bias"],
        w["scale"],
        w["shift"],
        features,
        w["fusion"],
        w["fusion_bias"],
        out,
        running,
        *size[1:],
        channels,
        eps,
        blocks.pitch,
        *blocks.columns,
        blocks.parts,
        first,
        last,
    )
    return out


def smooth(w: Weights, blocks: Blocks, source: Tensor, features: Tensor, size: Size) -> Tensor:
    """3x3 of source, plus features."""
    out = torch.empty_like(source)
    launch(
        triton_dense.smooth_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["bias"],
        features,
        out,
        *size[1:],
        blocks.pitch,
        *blocks.taps,
        blocks.wide,
    )
    return out


def enlarge(
    w: Weights, blocks: Blocks, source: Tensor, channels: int, scale: int, size: Size
) -> Tensor:
    """3x3 of source, shuffled: (B, channels, scale*H, scale*W) float32."""
    batch, height, width = size
    out = source.new_empty(batch, channels, scale * height, scale * width, dtype=torch.float32)
    launch(
        triton_dense.enlarge_kernel,
        blocks,
        size,
        source,
        w["weight"],
        w["bias"],
        out,
        height,
        width,
        channels,
        scale,
        blocks.pitch,
        *blocks.taps,
        w["weight"].shape[2],
    )
    return out
