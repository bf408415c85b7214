"""Random aligned LR and HR crops, each decided by (seed, step) alone, so a run can resume."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from train.packs import Pack, PackedImage, cut_pair
from utils.datasets import SCALE
from utils.imaging.images import ImageError

logger = logging.getLogger(__name__)

Patches = Iterator[tuple[Tensor, Tensor]]  # a step's LR (B, 3, p, p) and HR (B, 3, 4p, 4p), uint8

CELL = 8  # side in LR pixels of the squares that detail is measured in
EVEN_SHARE = 0.1  # of a cell's weight that does not depend on its detail


Detail = tuple[NDArray[np.float64], ...]  # the weights of each image's cells, (rows, columns)


@dataclass(frozen=True)
class Cells:
    """Images cut into squares of CELL LR pixels, row by row, with each square's detail.

    weights: (cells,) float64, running sum of the cells' weights.
    ends: (images,) int64, running sum of the images' numbers of cells.
    across: (images,) int64, cells in a row.
    """

    weights: NDArray[np.float64]
    ends: NDArray[np.int64]
    across: NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Where crops may lie: one row an image, LR pixels.

    pixels: (N, 3) uint8, on the device where crops are made.
    table: (images, 4) int64, of columns width, LR offset, HR offset, crop positions in a row.
    ends: (images,) int64, running sum of each image's number of crop positions.
    patch: side of a LR crop.
    cells: the images' detail, if crops are to be drawn by it.
    """

    pixels: Tensor
    table: NDArray[np.int64]
    ends: NDArray[np.int64]
    patch: int
    cells: Cells | None = None


def on_device(pack: Pack, device: torch.device) -> Pack:
    """The pack with its pixels on a CUDA device, where crops are made then, if they take no more
    than half of the memory free there; else as it is, with a message."""
    if device.type != "cuda":
        return pack
    free = torch.cuda.mem_get_info(device)[0]
    if pack.pixels.numel() > free / 2:
        logger.warning(
            "patches are cut on the CPU: the data take %.1f GiB, %.1f are free on %s",
            pack.pixels.numel() / 2**30,
            free / 2**30,
            device,
        )
        return pack
    return replace(pack, pixels=pack.pixels.to(device))


def sampler(pack: Pack, patch: int, detail: Detail | None = None) -> Sampler:
    """Prepare crops of `patch` LR pixels a side from every image that is large enough.

    Smaller images are reported by name and left out. Crops are made where the pack's pixels are.

    Args:
        pack: the images.
        patch: side of a LR crop.
        detail: from `measure_detail`, if crops are to be drawn by it.

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
    cells = None
    if detail is not None:
        weights = [detail[i] for i in fit]
        cells = Cells(
            np.cumsum(np.concatenate([weight.flatten() for weight in weights])),
            np.cumsum([weight.size for weight in weights]),
            np.array([weight.shape[1] for weight in weights]),
        )
    return Sampler(pack.pixels, np.array(columns, np.int64), np.cumsum(positions), patch, cells)


def measure_detail(pack: Pack) -> Detail:
    """Weigh each cell of each image of a pack on the CPU: by the squared error of a bicubic
    enlargement in it, as a multiple of the image's mean, so that an image has the weight of its
    area."""
    pixels = pack.pixels.numpy()

    def weigh(image: PackedImage) -> NDArray[np.float64]:
        height, width = image.height, image.width
        large_height, large_width = height * SCALE, width * SCALE
        lr, hr = cut_pair(pixels, image)
        enlarged = cv2.resize(lr, (large_width, large_height), interpolation=cv2.INTER_CUBIC)
        error = cv2.absdiff(enlarged, hr)
        squares = cv2.multiply(error, error, dtype=cv2.CV_32F)
        errors = _sum_cells(squares, CELL * SCALE).sum(2)
        areas = _sum_cells(np.ones((height, width, 1), np.float32), CELL)[..., 0]
        mean = errors.sum() / (height * width)
        return EVEN_SHARE * areas + (1 - EVEN_SHARE) * (errors / mean if mean > 0 else areas)

    with ThreadPoolExecutor() as pool:  # OpenCV lets other threads run
        weights = pool.map(weigh, pack.images)
        bar = tqdm(weights, "measuring detail", len(pack.images), leave=False, unit="image")
        return tuple(bar)


def _sum_cells(values: NDArray[Any], side: int) -> NDArray[np.float64]:
    """Sums of (H, W, channels) over squares, the last of a row or column maybe cut."""
    down, right = (range(0, size, side) for size in values.shape[:2])
    return np.add.reduceat(np.add.reduceat(values, down, 0), right, 1, dtype=np.float64)


def sample(
    source: Sampler, seed: int, step: int, batch: int, part: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """The patches of one step: LR (B, 3, p, p) and HR (B, 3, 4p, 4p), uint8.

    Every crop position of every image is equally likely, or, with the images' detail, a LR pixel
    is drawn by its cell's weight and the crop laid over it anywhere. Each patch gets one of the
    eight flips and quarter turns. The same (seed, step, batch) gives the same patches on any
    device.

    Args:
        source: from `sampler`.
        seed, step: they alone decide the patches.
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
    width, lr_offset, hr_offset, _ = source.table[image].T
    lr_start = lr_offset + top * width + left
    hr_start = hr_offset + SCALE * (top * SCALE * width + left)
    lr = _crop(source.pixels, lr_start, width, source.patch, transforms)
    hr = _crop(source.pixels, hr_start, SCALE * width, SCALE * source.patch, transforms)
    return lr, hr


def _locate(
    places: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of places that are counted through all images: the image, and the place counted in it."""
    image = np.searchsorted(ends, places, side="right")
    return image, places - _starts(image, ends)


def _starts(image: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where images begin in a running sum that has their ends."""
    return np.where(image > 0, ends[image - 1], 0)


def _draw_by_detail(
    source: Sampler, cells: Cells, generator: np.random.Generator, batch: int, part: slice
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """(image, top, left) of crops over pixels that are drawn by their cells' weights."""
    drawn = generator.random(batch)[part] * cells.weights[-1]
    cell = np.minimum(np.searchsorted(cells.weights, drawn, side="right"), len(cells.weights) - 1)
    image, cell = _locate(cell, cells.ends)
    corner = np.stack((cell // cells.across[image], cell % cells.across[image])) * CELL
    pixel = corner + generator.integers(CELL, size=(2, batch))[:, part]
    in_row = source.table[image, 3]
    positions = source.ends[image] - _starts(image, source.ends)
    last = np.stack((positions // in_row, in_row)) - 1
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
    where = torch.from_numpy(np.stack((starts, strides, transforms)))
    if pixels.is_cuda:  # from pinned memory the copy does not wait for the GPU
        where = where.pin_memory().to(pixels.device, non_blocking=True)
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
