"""Where images have detail, which is what there is to be learned."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from train.packs import Pack, PackedImage, cut_pair
from utils.datasets import SCALE

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


def as_cells(weights: Sequence[NDArray[np.float64]]) -> Cells:
    """The cells of images, from what they weigh."""
    return Cells(
        np.cumsum(np.concatenate([weight.flatten() for weight in weights])),
        np.cumsum([weight.size for weight in weights]),
        np.array([weight.shape[1] for weight in weights]),
    )


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
