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

from utils.datasets import SCALE
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


def tiles(height: int, width: int, size: int) -> list[Tile]:
    """Cut an image so that every tile, with its context, is at most size + 2*CONTEXT a side.

    With their context all tiles have one shape, so that nothing is compiled or planned twice;
    those at the borders of the image, where no context is needed, are larger for that.
    """
    rows, columns = _cut(height, size), _cut(width, size)
    return [Tile(*row, *column) for row in rows for column in columns]


def _cut(length: int, size: int) -> list[tuple[int, int]]:
    if length <= size + 2 * CONTEXT:
        return [(0, length)]
    last = length - size - CONTEXT
    return list(pairwise([0, *range(size + CONTEXT, last, size), last, length]))


def tile_size(memory_bytes: int, bytes_per_pixel: int) -> int:
    """Side of the largest square tile that can be restored in so much memory.

    Args:
        memory_bytes: what may be used at the peak.
        bytes_per_pixel: what the network uses at its peak for one LR pixel.

    Raises:
        MemoryError: not even a tile of SMALLEST fits.
    """
    size = math.isqrt(max(0, memory_bytes // bytes_per_pixel)) - 2 * CONTEXT
    if size < SMALLEST:
        least = math.ceil(least_memory(bytes_per_pixel) / 2**20)
        raise MemoryError(
            f"expected at least {least} MiB for a tile of {SMALLEST} pixels and its "
            f"context, got {memory_bytes >> 20} MiB"
        )
    return size


def least_memory(bytes_per_pixel: int) -> int:
    """Bytes that the smallest tile takes with its context."""
    return (SMALLEST + 2 * CONTEXT) ** 2 * bytes_per_pixel


@torch.inference_mode()
def restore(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    size: int,
    out: Tensor,
    border: int = 0,
    progress: bool = False,
) -> None:
    """Write net(x), computed tile by tile, to `out`. Where memory does not suffice, with smaller
    tiles.

    Equal to the whole up to the rounding of sums: every tile sees true pixels as far as the
    network looks, and the image's own borders where they are.

    Args:
        net: (B, C, h, w) -> (B, C, SCALE*h, SCALE*w) of any dtype, for any h and w.
        x: (B, C, H, W).
        size: side of a tile in LR pixels, without its context.
        out: (B, C, SCALE*(H - 2*border), SCALE*(W - 2*border)), perhaps on another device.
        border: LR pixels on each side of x that are seen but not part of the result.
        progress: show a bar.

    Raises:
        MemoryError: a tile of SMALLEST does not fit.
    """
    height, width = x.shape[-2:]
    pending = deque(tiles(height, width, size))
    with tqdm(total=height * width, unit="px", unit_scale=True, disable=not progress) as bar:
        while pending:
            tile = pending.popleft()
            try:
                piece, top, left = _run_window(net, x, tile, size + 2 * CONTEXT)
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
            rows = slice(max(tile.top, border), min(tile.bottom, height - border))
            columns = slice(max(tile.left, border), min(tile.right, width - border))
            out[..., _scaled(rows, border), _scaled(columns, border)] = piece[
                ..., _scaled(rows, top), _scaled(columns, left)
            ]
            bar.update((tile.bottom - tile.top) * (tile.right - tile.left))


def _scaled(pixels: slice, origin: int) -> slice:
    """Where LR pixels are in a result that begins at the LR pixel `origin`."""
    return slice(SCALE * (pixels.start - origin), SCALE * (pixels.stop - origin))


def _run_window(
    net: Callable[[Tensor], Tensor], x: Tensor, tile: Tile, seen: int
) -> tuple[Tensor, int, int]:
    """Run the network on the window of `seen` pixels a side, or all there are, that holds the tile
    and its context; the result, and the LR row and column where the window begins."""
    height, width = x.shape[-2:]
    top = max(0, min(tile.top - CONTEXT, height - seen))
    left = max(0, min(tile.left - CONTEXT, width - seen))
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
