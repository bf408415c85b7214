"""New patches from the same images: at any pixel, of images shrunk by random factors.

A pack has one LR image of each HR image: the one whose pixels begin at its corner. Fifteen others
are as good, and every shrunk image has its own. A network that sees few images often learns what
is random in them, too; these are others each time. Images shrunk by less than SCALE have no HR, but
a teacher's SR. What is shrunk may be turned by any angle before.
"""

import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from utils.datasets import SCALE

FACTORS = 8  # by how many different ones images are shrunk, 1 and the largest among them
ZOOM_FACTORS = (1.6, 2.0, 2.5, 3.2)  # by which HR patches are shrunk to LR ones without HR
MARGIN = 2 * SCALE  # HR pixels to each side of a patch that its LR pixels are made of, too
# Squares are turned by any angle where they are shrunk by so much: turning blurs what is finest in
# an image, and shrinking takes that away.
ROTATED_FROM = 1.4


def sides_of(patch: int, shrink: float) -> NDArray[np.int64]:
    """Sides of the squares to shrink, in HR pixels. Shrunk by FACTORS factors from 1 to `shrink`,
    in equal ratios, each becomes a HR patch of `patch` LR pixels a side with a margin around it."""
    factors = np.geomspace(1, shrink, FACTORS)
    return np.rint((SCALE * patch + 2 * MARGIN) * factors).astype(np.int64)


def shrink_squares(squares: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """Make pairs of squares of HR images, by MATLAB's bicubic kernel.

    Args:
        squares: (B, 3, side, side), uint8; the side is one of `sides_of`.
        patch: side of the LR patches.

    Returns:
        LR (B, 3, patch, patch) and HR (B, 3, 4 * patch, 4 * patch), uint8. HR is the middle of the
        shrunk square, LR that of the square shrunk by 4 again. The margins are cut off, for their
        pixels depend on the square's edges.
    """
    around = MARGIN // SCALE
    rows = SCALE * (patch + 2 * around)
    hr = _shrink(squares, rows)
    matrix = _matrix(rows, patch + 2 * around, squares.device)[around:-around]
    lr = round_pixels(F.linear(F.linear(hr.double(), matrix).mT, matrix).mT)
    return lr, hr[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def around(side: int) -> int:
    """Side of the square that holds, at any angle, one of `side` and the pixels around it that it
    is interpolated from."""
    return math.ceil(side * math.sqrt(2)) + 4


def rotate_squares(squares: Tensor, angles: Tensor, side: int) -> Tensor:
    """Turn squares of HR images by any angle, by bicubic interpolation.

    Args:
        squares: (B, 3, n, n), uint8; n is `around(side)`.
        angles: (B,), float32, radians.
        side: of the results.

    Returns:
        (B, 3, side, side), uint8: the middle of each, turned.
    """
    cos, sin = angles.cos(), angles.sin()
    axes = torch.stack((cos, -sin, sin, cos), 1).view(-1, 2, 2) * (side / squares.shape[-1])
    where = F.affine_grid(F.pad(axes, (0, 1)), [len(squares), 3, side, side], align_corners=False)
    turned = F.grid_sample(squares.float(), where, mode="bicubic", align_corners=False)
    return round_pixels(turned)


def zoom_sides_of(patch: int) -> NDArray[np.int64]:
    """Sides of the squares that are shrunk to LR patches without HR, in HR pixels. Those of the
    smallest patches are no larger than the least image that has such patches."""
    sides = np.rint((patch + 2 * MARGIN // SCALE) * np.array(ZOOM_FACTORS)).astype(np.int64)
    return np.minimum(sides, SCALE * patch)


def zoom_squares(squares: Tensor, patch: int) -> Tensor:
    """Make LR patches of squares of HR images, by MATLAB's bicubic kernel.

    Args:
        squares: (B, 3, side, side), uint8; the side is one of `zoom_sides_of`.
        patch: side of the LR patches.

    Returns:
        (B, 3, patch, patch), uint8: the middle of the shrunk squares, whose margins depend on the
        squares' edges.
    """
    around = MARGIN // SCALE
    return _shrink(squares, patch + 2 * around)[..., around:-around, around:-around]


def _shrink(squares: Tensor, rows: int) -> Tensor:
    """(B, 3, rows, rows), uint8."""
    planes = squares.to(torch.float32, memory_format=torch.contiguous_format)  # three times as fast
    return round_pixels(F.interpolate(planes, (rows, rows), mode="bicubic", antialias=True))


def round_pixels(pixels: Tensor) -> Tensor:
    """To 0..255, uint8, halves up as MATLAB does."""
    return (pixels + 0.5).floor().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _matrix(side: int, rows: int, device: torch.device) -> Tensor:
    """(rows, side), float64: what shrinks a line of `side` pixels to `rows`."""
    lines = torch.eye(side, dtype=torch.float64)[None, None]
    shrunk = F.interpolate(lines, (rows, side), mode="bicubic", antialias=True)
    return shrunk[0, 0].to(device)
