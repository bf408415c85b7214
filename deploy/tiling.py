"""Restore an image of any size in bounded memory: tile by tile, the same as in one piece."""

import logging
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from tqdm import tqdm

from utils.memory import is_exhausted

# LR pixels that LKDN sees to each side of one: 1 (first convolution) + 5 blocks of 12 (four 3x3,
# a 5x5 and a 5x5 of dilation 3) + 1 (c2) + 1 (upsampler).
CONTEXT = 63
SMALLEST = 16  # a smaller tile computes almost nothing but its context

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tile:
    """LR rows top..bottom and columns left..right, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int


def tiles(height: int, width: int, size: int, context: int = CONTEXT) -> list[Tile]:
    """Cut an image so that every tile, with its context, is at most size + 2*context a side.

    With their context all tiles have one shape, so that nothing is compiled or planned twice;
    those at the borders of the image, where no context is needed, are larger for that.
    """
    rows, columns = _cut(height, size, context), _cut(width, size, context)
    return [Tile(*row, *column) for row in rows for column in columns]


def _cut(length: int, size: int, context: int) -> list[tuple[int, int]]:
    seen = size + 2 * context
    if length <= seen:
        return [(0, length)]
    last = length - size - context
    return list(pairwise([0, *range(size + context, last, size), last, length]))


def tile_size(memory_bytes: int, bytes_per_pixel: float, context: int = CONTEXT) -> int:
    """Side of the largest square tile that can be restored in so much memory.

    Args:
        memory_bytes: what may be used at the peak.
        bytes_per_pixel: what the network uses at its peak for one LR pixel.
        context: LR pixels around the tile.

    Raises:
        MemoryError: not even a tile of SMALLEST fits.
    """
    size = math.isqrt(max(0, int(memory_bytes / bytes_per_pixel))) - 2 * context
    if size < SMALLEST:
        least = math.ceil(least_memory(bytes_per_pixel, context) / 2**20)
        raise MemoryError(
            f"expected at least {least} MiB for a tile of {SMALLEST} pixels and its "
            f"context, got {memory_bytes >> 20} MiB"
        )
    return size


def least_memory(bytes_per_pixel: float, context: int = CONTEXT) -> float:
    """Bytes that the smallest tile takes with its context."""
    return (SMALLEST + 2 * context) ** 2 * bytes_per_pixel


@torch.inference_mode()
def restore(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    size: int,
    scale: int = 4,
    context: int = CONTEXT,
    out: Tensor | None = None,
    progress: bool = False,
    border: int = 0,
) -> Tensor:
    """net(x), computed tile by tile. Where memory does not suffice, with smaller tiles.

    Equal to the whole up to the rounding of sums: every tile sees true pixels as far as the
    network looks, and the image's own borders where they are.

    Args:
        net: (B, C, h, w) -> (B, C, scale*h, scale*w) of any dtype, for any h and w.
        x: (B, C, H, W).
        size: side of a tile in LR pixels, without its context.
        scale: enlargement.
        context: LR pixels that an output pixel depends on, to each side.
        out: where to write, (B, C, scale*H, scale*W), perhaps on another device; by default a
            new tensor like the first result.
        progress: show a bar.
        border: LR pixels on each side of x that are seen but not part of the result, which is
            smaller by scale * border on each side.

    Raises:
        MemoryError: a tile of SMALLEST does not fit.
    """
    height, width = x.shape[-2:]
    pending = deque(tiles(height, width, size, context))
    with tqdm(total=height * width, unit="px", unit_scale=True, disable=not progress) as bar:
        while pending:
            tile = pending.popleft()
            try:
                piece, top, left = _run_window(net, x, tile, size + 2 * context, context)
            except Exception as error:
                if not is_exhausted(error):
                    raise
                if size <= SMALLEST:
                    raise MemoryError(f"not even a tile of {size} pixels fits") from error
                size = max(SMALLEST, size // 2)
                logger.warning("out of memory: going on with tiles of %d pixels", size)
                torch.cuda.empty_cache()
                pending = deque(part for t in (tile, *pending) for part in _split(t, size))
                continue
            if out is None:
                sides = (scale * (side - 2 * border) for side in (height, width))
                out = piece.new_empty(*piece.shape[:-2], *sides)
            rows = slice(max(tile.top, border), min(tile.bottom, height - border))
            columns = slice(max(tile.left, border), min(tile.right, width - border))
            out[..., _scaled(rows, border, scale), _scaled(columns, border, scale)] = piece[
                ..., _scaled(rows, top, scale), _scaled(columns, left, scale)
            ]
            bar.update((tile.bottom - tile.top) * (tile.right - tile.left))
    assert out is not None
    return out


def _scaled(pixels: slice, origin: int, scale: int) -> slice:
    """Where LR pixels are in a result that begins at the LR pixel `origin`."""
    return slice(scale * (pixels.start - origin), scale * (pixels.stop - origin))


def _run_window(
    net: Callable[[Tensor], Tensor], x: Tensor, tile: Tile, seen: int, context: int
) -> tuple[Tensor, int, int]:
    """Run the network on the window of `seen` pixels a side, or all there are, that holds the tile
    and its context; the result, and the LR row and column where the window begins."""
    height, width = x.shape[-2:]
    top = max(0, min(tile.top - context, height - seen))
    left = max(0, min(tile.left - context, width - seen))
    return net(x[..., top : top + seen, left : left + seen].contiguous()), top, left


def _split(tile: Tile, size: int) -> list[Tile]:
    """A tile in even parts of at most `size` a side."""

    def parts(begin: int, end: int) -> list[tuple[int, int]]:
        count = -(-(end - begin) // size)
        return list(pairwise(begin + (end - begin) * i // count for i in range(count + 1)))

    return [
        Tile(*rows, *columns)
        for rows in parts(tile.top, tile.bottom)
        for columns in parts(tile.left, tile.right)
    ]
