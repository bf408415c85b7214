"""Random aligned LR and HR crops, each decided by (seed, step) alone, so a run can resume."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.detail import CELL, Cells, Detail, as_cells
from train.packs import Pack
from train.shrink import shrink_squares, sides_of, zoom_sides_of, zoom_squares
from utils.datasets import SCALE
from utils.imaging.images import ImageError

logger = logging.getLogger(__name__)

# A step's LR (B, 3, p, p) and HR (K, 3, 4p, 4p), uint8; the last B - K LR patches have no HR.
Patches = Iterator[tuple[Tensor, Tensor]]

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
    """

    pixels: Tensor
    table: NDArray[np.int64]
    ends: NDArray[np.int64]
    patch: int
    cells: Cells | None = None
    sides: NDArray[np.int64] | None = None
    zoom: float = 0.0


def count_zoomed(batch: int, zoom: float) -> int:
    """How many of a step's patches have no HR."""
    return round(batch * zoom)


def sampler(
    pack: Pack, patch: int, detail: Detail | None = None, shrink: float = 1.0, zoom: float = 0.0
) -> Sampler:
    """Prepare crops of `patch` LR pixels a side from every image that is large enough.

    Smaller images are reported by name and left out. Crops are made where the pack's pixels are.

    Args:
        pack: the images.
        patch: side of a LR crop.
        detail: from `train.detail.measure_detail`, if crops are to be drawn by it.
        shrink: the largest factor that images are shrunk by; with 1 pairs are those of the pack.
        zoom: the share of LR patches without HR.

    Raises:
        ImageError: no image is large enough.
    """
    fit = [i for i, image in enumerate(pack.images) if min(image.height, image.width) >= patch]
    small = [image for image in pack.images if min(image.height, image.width) < patch]
    for image in small:
        logger.warning(
            "skipped: %s is %dx%d LR pixels, below the patch of %d",
            image.name,
            image.width,
            image.height,
            patch,
        )
    if small:
        logger.warning("%d of %d images are too small", len(small), len(pack.images))
    if not fit:
        raise ImageError(
            f"expected images of at least {patch * SCALE} HR pixels a side for this patch, "
            f"got {len(pack.images)} smaller ones: lower --patch"
        )
    images = [pack.images[i] for i in fit]
    columns = [[i.width, i.lr_offset, i.hr_offset, i.width - patch + 1] for i in images]
    positions = [(i.height - patch + 1) * (i.width - patch + 1) for i in images]
    cells = as_cells([detail[i] for i in fit]) if detail else None
    sides = sides_of(patch, shrink) if shrink > 1 else None
    ends = np.cumsum(positions)
    return Sampler(pack.pixels, np.array(columns, np.int64), ends, patch, cells, sides, zoom)


def sample(
    source: Sampler, seed: int, step: int, batch: int, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """The patches of one step: LR (B, 3, p, p) and HR (K, 3, 4p, 4p), uint8.

    Every crop position of every image is equally likely, or, with the images' detail, a LR pixel
    is drawn by its cell's weight and the crop laid over it anywhere. With `sides` most pairs are
    of a larger square near that place, and the last LR patches of a step, `count_zoomed` of the
    whole, are of a smaller one and have no HR, see train.shrink. Each patch gets one of the eight
    flips and quarter turns. The same (seed, step, batch) gives the same patches on any device, but
    for the last digit of shrunk images.

    Args:
        source: from `sampler`.
        seed, step: they alone decide the patches; the steps of a run's earlier stages count, too.
        batch: patches of the step, over all processes.
        part: which of them to return; a process of a distributed run takes its own.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    positions = generator.integers(source.ends[-1], size=batch)[part]
    transforms = generator.integers(8, size=batch)[part]
    if source.cells is None:
        image, within = _locate(positions, source.ends)
        in_row = source.table[image, 3]
        top, left = within // in_row, within % in_row
    else:
        image, top, left = _draw_by_detail(source, source.cells, generator, batch, part)
    places = np.stack((image, top, left, transforms))
    draws = generator.random((4, batch))[:, part]
    known = int((np.arange(batch)[part] < batch - count_zoomed(batch, source.zoom)).sum())
    if source.sides is None:
        lr, hr = _pairs(source, places[:, :known])
    else:
        lr, hr = _with_shrunk(source, source.sides, places[:, :known], draws[:, :known])
    if known < len(transforms):
        lr = torch.cat((lr, _zoomed(source, places[:, known:], draws[:, known:])))
    return lr, hr


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
    into the image are equally likely."""
    as_packed, share_of_sides, *within = draws
    size = SCALE * (_positions(source, places[0]) + source.patch - 1)
    fitting = np.searchsorted(sides, size.min(0), side="right")
    kinds = (share_of_sides * fitting).astype(np.int64) + (fitting > 0)
    kinds[as_packed < AS_PACKED] = 0

    def make(kind: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        if kind == 0:
            return _pairs(source, places[:, chosen])
        side = int(sides[kind - 1])
        squares = _squares(source, places[:, chosen], np.stack(within)[:, chosen], side)
        return shrink_squares(squares, source.patch)

    lr, hr = _by_kind(kinds, make, source.pixels.device)
    return lr, hr


def _zoomed(source: Sampler, places: NDArray[np.int64], draws: NDArray[np.float64]) -> Tensor:
    """LR patches of squares that are shrunk by less than SCALE, all factors equally likely."""
    sides = zoom_sides_of(source.patch)
    _, share_of_sides, *within = draws

    def make(kind: int, chosen: NDArray[np.int64]) -> tuple[Tensor, ...]:
        side = int(sides[kind])
        squares = _squares(source, places[:, chosen], np.stack(within)[:, chosen], side)
        return (zoom_squares(squares, source.patch),)

    kinds = (share_of_sides * len(sides)).astype(np.int64)
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
    positions = _positions(source, image)
    at = (np.stack((top, left)) + within) / positions  # 0..1
    last = SCALE * (positions + source.patch - 1) - side
    down, right = np.minimum(at * (last + 1), last).astype(np.int64)
    width = SCALE * source.table[image, 0]
    start = source.table[image, 2] + down * width + right
    return _crop(source.pixels, start, width, side, transforms)


def _locate(
    places: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of places that are counted through all images: the image, and the place counted in it."""
    image = np.searchsorted(ends, places, side="right")
    return image, places - _starts(image, ends)


def _starts(image: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where images begin in a running sum that has their ends."""
    return np.where(image > 0, ends[image - 1], 0)


def _positions(source: Sampler, image: NDArray[np.int64]) -> NDArray[np.int64]:
    """(2, images): how many crop positions there are down and across."""
    across = source.table[image, 3]
    return np.stack(((source.ends[image] - _starts(image, source.ends)) // across, across))


def _draw_by_detail(
    source: Sampler, cells: Cells, generator: np.random.Generator, batch: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(image, top, left) of crops over pixels that are drawn by their cells' weights."""
    drawn = generator.random(batch)[part] * cells.weights[-1]
    cell = np.minimum(np.searchsorted(cells.weights, drawn, side="right"), len(cells.weights) - 1)
    image, cell = _locate(cell, cells.ends)
    corner = np.stack((cell // cells.across[image], cell % cells.across[image])) * CELL
    pixel = corner + generator.integers(CELL, size=(2, batch))[:, part]
    last = _positions(source, image) - 1
    first = pixel - generator.integers(source.patch, size=(2, batch))[:, part]
    top, left = np.clip(first, 0, last)
    return image, top, left


def cut_patches(
    source: Sampler, seed: int, step: int, batch: int, part: slice = slice(None)
) -> Patches:
    """The patches of `step` and of every step after it, see `sample`. On a CPU the next step's are
    cut in another thread while this step's are used."""
    if source.pixels.is_cuda:
        while True:
            yield sample(source, seed, step, batch, part)
            step += 1
    with ThreadPoolExecutor(1) as cutter:
        coming = cutter.submit(sample, source, seed, step, batch, part)
        while True:
            step += 1
            patches = coming.result()
            coming = cutter.submit(sample, source, seed, step, batch, part)
            yield patches


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
    return patches.view(-1, size, size, 3).permute(0, 3, 1, 2)


def _as_tensor(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    tensor = torch.from_numpy(numbers)
    if device.type != "cuda":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)  # does not wait for the GPU
