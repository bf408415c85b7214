"""Random aligned LR and HR crops, each decided by (seed, step) alone, so a run can resume."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.crops import Sampler, blend, cut, positions_of, starts
from train.detail import CELL, Cells, Detail, as_cells
from train.packs import Pack
from train.shrink import sides_of
from utils.datasets import SCALE
from utils.imaging.images import ImageError

logger = logging.getLogger(__name__)

# A step's LR (B, 3, p, p) and HR (K, 3, 4p, 4p), uint8; the last B - K LR patches have no HR.
Patches = Iterator[tuple[Tensor, Tensor]]

LEAST_SHARE = 0.5  # that a patch keeps of itself where it is blended with another


def count_zoomed(batch: int, zoom: float) -> int:
    """How many of a step's patches have no HR."""
    return round(batch * zoom)


def sampler(
    pack: Pack,
    patch: int,
    detail: Detail | None = None,
    shrink: float = 1.0,
    zoom: float = 0.0,
    mixup: float = 0.0,
    rotate: float = 0.0,
) -> Sampler:
    """Prepare crops of `patch` LR pixels a side from every image that is large enough.

    Smaller images are reported by name and left out. Crops are made where the pack's pixels are.

    Args:
        pack: the images.
        patch: side of a LR crop.
        detail: from `train.detail.measure_detail`, if crops are to be drawn by it.
        shrink: the largest factor that images are shrunk by; with 1 pairs are those of the pack.
        zoom: the share of LR patches without HR.
        mixup: the share of patches that are blended with others.
        rotate: the share of clearly shrunk squares that are turned by any angle.

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
    table = np.array(columns, np.int64)
    return Sampler(pack.pixels, table, ends, patch, cells, sides, zoom, mixup, rotate)


def sample(
    source: Sampler, seed: int, step: int, batch: int, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """The patches of one step: LR (B, 3, p, p) and HR (K, 3, 4p, 4p), uint8.

    Every crop position of every image is equally likely, or, with the images' detail, a LR pixel
    is drawn by its cell's weight and the crop laid over it anywhere. With `sides` most pairs are
    of a larger square near that place, and the last LR patches of a step, `count_zoomed` of the
    whole, are of a smaller one and have no HR, see train.shrink. Each patch gets one of the eight
    flips and quarter turns. A share of `mixup` of the patches keeps only a half or more of itself,
    the rest is another patch, drawn alike (Zhang et al., "mixup", 2018): bicubic is linear, so the
    blended LR patch is that of the blended HR patch, but for rounding. The same (seed, step, batch)
    gives the same patches on any device, but for the last digit of what is computed.

    Args:
        source: from `sampler`.
        seed, step: they alone decide the patches; the steps of a run's earlier stages count, too.
        batch: patches of the step, over all processes.
        part: which of them to return; a process of a distributed run takes its own.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, step]))
    index = np.arange(batch)[part]
    known = int((index < batch - count_zoomed(batch, source.zoom)).sum())
    places, draws = _draw(source, generator, batch, part)
    if not source.mixup:
        return cut(source, places, draws, known)
    # Spread evenly over pairs and patches without HR, and over the steps of small batches.
    counted = (index + step * batch + np.array([[0], [1]])) * source.mixup
    blended = np.flatnonzero(np.floor(counted[1]) > np.floor(counted[0]))
    pairs = int((blended < known).sum())
    other_places, other_draws = _draw(source, generator, batch, part)
    shares = generator.uniform(LEAST_SHARE, 1, batch)[part][blended]
    # All are cut at once, pairs first: on a GPU many small kernels take longer than few large ones.
    own = len(index)
    order = np.concatenate(
        (np.arange(known), own + blended[:pairs], np.arange(known, own), own + blended[pairs:])
    )
    lr, hr = cut(
        source,
        np.concatenate((places, other_places), 1)[:, order],
        np.concatenate((draws, other_draws), 1)[:, order],
        known + pairs,
    )
    first, other, rest, other_rest = lr.split([known, pairs, own - known, len(blended) - pairs])
    lr = blend(torch.cat((first, rest)), torch.cat((other, other_rest)), blended, shares)
    return lr, blend(hr[:known], hr[known:], blended[:pairs], shares[:pairs])


def _draw(
    source: Sampler, generator: np.random.Generator, batch: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Places and draws of a part of a step's patches, see train.crops.cut."""
    positions = generator.integers(source.ends[-1], size=batch)[part]
    transforms = generator.integers(8, size=batch)[part]
    if source.cells is None:
        image, within = _locate(positions, source.ends)
        in_row = source.table[image, 3]
        top, left = within // in_row, within % in_row
    else:
        image, top, left = _draw_by_detail(source, source.cells, generator, batch, part)
    return np.stack((image, top, left, transforms)), generator.random((4, batch))[:, part]


def _locate(
    places: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of places that are counted through all images: the image, and the place counted in it."""
    image = np.searchsorted(ends, places, side="right")
    return image, places - starts(image, ends)


def _draw_by_detail(
    source: Sampler, cells: Cells, generator: np.random.Generator, batch: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(image, top, left) of crops over pixels that are drawn by their cells' weights."""
    drawn = generator.random(batch)[part] * cells.weights[-1]
    cell = np.minimum(np.searchsorted(cells.weights, drawn, side="right"), len(cells.weights) - 1)
    image, cell = _locate(cell, cells.ends)
    corner = np.stack((cell // cells.across[image], cell % cells.across[image])) * CELL
    pixel = corner + generator.integers(CELL, size=(2, batch))[:, part]
    last = positions_of(source, image) - 1
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
