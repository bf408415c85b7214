"""Bicubic resizing equal to MATLAB's imresize: x1/4 for LR images, x4 for the baseline picture.

Keys' kernel with a = -0.5, widened for shrinking, on an image continued by mirroring with the
edge pixel repeated. OpenCV and Pillow give other values; torch gives these with antialias=True.
"""

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from utils.imaging.images import mod_crop

Convention = Literal["double", "uint8"]


def downscale(
    hr: NDArray[np.uint8], scale: int = 4, convention: Convention = "double"
) -> NDArray[np.uint8]:
    """Shrink an image: (H, W, 3) uint8, mod-cropped -> (H // scale, W // scale, 3) uint8.

    Args:
        hr: RGB; rows and columns beyond a multiple of `scale` are cut first.
        scale: the factor, an integer.
        convention: "double" rounds once at the end and mirrors the border (im2double first;
            BasicSR, DIV2K). "uint8" rounds after each of the two passes, vertical first, and
            replicates the border: the LR files that circulate with Set5, B100 and Urban100.

    Raises:
        ImageError: the image is smaller than `scale`.
    """
    hr = mod_crop(hr, scale)
    border = 4 * scale
    if convention == "uint8":
        rows = _resize(_pad(hr, border, 0, "edge"), 1 / scale, 1.0)[4:-4]
        return _resize(_pad(rows, 0, border, "edge"), 1.0, 1 / scale)[:, 4:-4]
    return _resize(_pad(hr, border, border, "symmetric"), 1 / scale, 1 / scale)[4:-4, 4:-4]


def upscale(lr: NDArray[np.uint8], scale: int = 4) -> NDArray[np.uint8]:
    """Enlarge an image: (H, W, 3) uint8 -> (scale*H, scale*W, 3) uint8, the bicubic baseline."""
    cut = slice(4 * scale, -4 * scale)
    return _resize(_pad(lr, 4, 4, "symmetric"), scale, scale)[cut, cut]


def _pad(
    rgb: NDArray[np.uint8], rows: int, columns: int, mode: Literal["symmetric", "edge"]
) -> NDArray[np.uint8]:
    return np.pad(rgb, ((rows, rows), (columns, columns), (0, 0)), mode=mode)


def _resize(rgb: NDArray[np.uint8], vertical: float, horizontal: float) -> NDArray[np.uint8]:
    """Both passes in float64, then one rounding, halves up as MATLAB rounds."""
    image = torch.from_numpy(rgb).permute(2, 0, 1)[None].double()
    resized = F.interpolate(
        image, scale_factor=(vertical, horizontal), mode="bicubic", antialias=True
    )
    return (resized[0] + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
