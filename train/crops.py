"""Patches of given places: cut from flat pixels, made of shrunk images, blended."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.detail import Cells
from train.shrink import (
    ROTATED_FROM,
    around,
    rotate_squares,
    round_pixels,
    shrink_squares,
    zoom_sides_of,
    zoom_squares,
)
from utils.datasets import SCALE

AS_PACKED = 0.25  # share of the pairs that are not made anew, where others are


@dataclass(frozen=True)
class Sampler:
    """Where crops may lie: one row an image, LR pixels.

    pixels: (N, 3) uint8, on the device where crops are made.
    table: (images, 4) int64, of columns width, LR offset, HR offset, crop positions in a row.
    ends: (images,) int64, running sum of each image's number of crop positions.
    patch: side of a LR crop.
    cells: the images' detail, if crops are to be drawn by it.
    sides: those of train.shrink, if pairs are to be made of shrunk images too.
    zoom: the share of a step's LR patches that are HR patches shrunk less, without HR of their own.
    mixup: the share of a step's patches that are blended with others.
    rotate: the share of what is shrunk by train.shrink.ROTATED_FROM or more that is turned by any
    angle before.
    """

    pixels: Tensor
    table: NDArray[np.int64]
    ends: NDArray[np.int64]
    patch: int
    cells: Cells | None = None
    sides: NDArray[np.int64] | None = None
    zoom: float = 0.0
    mixup: float = 0.0
    rotate: float = 0.0


def cut(
    source: Sampler, places: NDArray[np.int64], draws: NDArray[np.float64], known: int
) -> tuple[Tensor, Tensor]:
    """LR (B, 3, p, p) and HR (known, 3, 4p, 4p), uint8.

    Args:
        source: what to cut from.
        places: (4, B): image, top, left and turn, one of eight, of each patch.
        draws: (4, B) of 0..1, which decide what is made of each place.
        known: how many patches have HR, the first ones.
    """
    if source.sides is None or known == 0:
        lr, hr = _pairs(source, places[:, :known])
    else:
        lr, hr = _with_shrunk(source, source.sides, places[:, :known], draws[:, :known])
    if known < places.shape[1]:
        lr = torch.cat((lr, _zoomed(source, places[:, known:], draws[:, known:])))
    return lr, hr


def blend(
    patches: Tensor, others: Tensor, where: NDArray[np.int64], shares: NDArray[np.float64]
) -> Tensor:
    """Patches (B, C, H, W), uint8, of which those at `where` (M,) keep `shares` (M,) of themselves
    and have the rest of `others` (M, C, H, W)."""
    index = _as_tensor(where, patches.device)
    share = _as_tensor(shares.astype(np.float32), patches.device)[:, None, None, None]
    mixed = share * patches[index] + (1 - share) * others
    return patches.index_copy(0, index, round_pixels(mixed))


def _pairs(source: Sampler, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Pairs as they are packed, from (image, top, left, transform) of each."""
    image, top, left, transforms = places
    width, lr_offset, hr_offset, _ = source.table[image].T
    lr_start = lr_offset + top * width + left
    hr_start = hr_offset + SCALE * (top * SCALE * width + left)
    lr = _crop(source.pixels, lr_start, width, source.patch, transforms)
    hr = _crop(source.pixels, hr_start, SCALE * width, SCALE * source.patch, transforms)
    return lr, hr


def _with_shrunk(
    source: Sampler, sides: NDArray[np.int64], places: NDArray[np.int64], draws: NDArray[np.float64]
) -> tuple[Tensor, Tensor]:
    """A share of AS_PACKED of the pairs is taken as packed. Each other pair is made of a square of
    HR pixels at the same relative position in its image. Its side is one of `sides`: all that fit
    into the image are equally likely. A share of `source.rotate` of the squares that are shrunk by
    ROTATED_FROM or more is turned by an angle within 45 degrees, if the image has room for that."""
    as_packed, share_of_sides = draws[:2]
    size = SCALE * (positions_of(source, places[0]) + source.patch - 1).min(0)
    fitting = np.searchsorted(sides, size, side="right")
    kinds = (share_of_sides * fitting).astype(np.int64) + (fitting > 0)
    anew = (as_packed - AS_PACKED) / (1 - AS_PACKED)  # 0..1 for these
    kinds[anew < 0] = 0
    holding = np.array([around(int(side)) for side in sides])
    first = int(np.searchsorted(sides, ROTATED_FROM * sides[0]))
    rotated = (anew < source.rotate) & (kinds > first) & (holding[kinds - 1] <= size)
    kinds[rotated] += len(sides)

    def make(kind: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        if kind == 0:
            return _pairs(source, places[:, chosen])
        turned, index = divmod(kind - 1, len(sides))
        side = int(holding[index] if turned else sides[index])
        squares = _squares(source, places[:, chosen], draws[2:, chosen], side)
        if turned:
            angles = ((anew[chosen] / source.rotate - 0.5) * np.pi / 2).astype(np.float32)
            by = _as_tensor(angles, squares.device)
            squares = rotate_squares(squares, by, int(sides[index]))
        return shrink_squares(squares, source.patch)

    lr, hr = _by_kind(kinds, make, source.pixels.device)
    return lr, hr


def _zoomed(source: Sampler, places: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
    """LR patches of squares that are shrunk by less than SCALE, all factors equally likely."""
    sides = zoom_sides_of(source.patch)

    def make(kind: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        side = int(sides[kind])
        squares = _squares(source, places[:, chosen], draws[2:, chosen], side)
        return (zoom_squares(squares, source.patch),)

    kinds = (draws[1] * len(sides)).astype(np.int64)
    return _by_kind(kinds, make, source.pixels.device)[0]


def _by_kind(
    kinds: NDArray[np.int64],
    make: Callable[[int, NDArray[np.int64]], tuple[Tensor, ...]],
    device: torch.device,
) -> list[Tensor]:
    """Patches that are made together with all of their kind, in the order of `kinds`."""
    chosen = [(int(kind), np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)]
    back = _as_tensor(np.argsort(np.concatenate([which for _, which in chosen])), device)
    made = [make(kind, which) for kind, which in chosen]
    return [torch.cat(parts)[back] for parts in zip(*made, strict=True)]


def _squares(
    source: Sampler, places: NDArray[np.int64], within: NDArray[np.float64], side: int
) -> Tensor:
    """(B, 3, side, side) HR pixels of each place's image, turned, where the place is in it:
    `within` (2, B), 0..1, is where in its LR pixel."""
    image, top, left, transforms = places
    positions = positions_of(source, image)
    at = (np.stack((top, left)) + within) / positions  # 0..1
    last = SCALE * (positions + source.patch - 1) - side
    down, right = np.minimum(at * (last + 1), last).astype(np.int64)
    width = SCALE * source.table[image, 0]
    start = source.table[image, 2] + down * width + right
    return _crop(source.pixels, start, width, side, transforms)


def starts(image: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where images begin in a running sum that has their ends."""
    return np.where(image > 0, ends[image - 1], 0)


def positions_of(source: Sampler, image: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, images): how many crop positions there are down and across."""
    across = source.table[image, 3]
    return np.stack(((source.ends[image] - starts(image, source.ends)) // across, across))


def _crop(
    pixels: Tensor,
    starts: NDArray[np.int64],
    strides: NDArray[np.int64],
    size: int,
    transforms: NDArray[np.int64],
) -> Tensor:
    """Gather (B, 3, size, size) from flat pixels: for each patch its first pixel, the pixels from
    one row to the next, and its turn."""
    side = torch.arange(size, device=pixels.device)
    where = _as_tensor(np.stack((starts, strides, transforms)), pixels.device)
    start, stride, transform = where[:, :, None]  # (B, 1) each
    down = torch.where(transform & 1 > 0, size - 1 - side, side)  # (B, size): vertical flip
    across = torch.where(transform & 2 > 0, size - 1 - side, side)  # horizontal flip
    rows, columns = down * stride, across  # what a step down and a step right add
    turned = transform & 4 > 0  # transposed: with the flips, the quarter turns
    step_down = torch.where(turned, columns, rows)
    step_right = torch.where(turned, rows, columns)
    index = start[:, :, None] + step_down[:, :, None] + step_right[:, None, :]  # (B, size, size)
    patches = pixels.index_select(0, index.flatten())
    return patches.view(len(starts), size, size, 3).permute(0, 3, 1, 2)


def _as_tensor(numbers: NDArray[np.generic], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # does not wait for the GPU
