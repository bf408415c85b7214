"""PSNR and SSIM as the challenge and the papers of the field compute them, in float64."""

import math

import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from utils.imaging.images import ImageError


def to_y(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Luma of ITU-R BT.601 as MATLAB's rgb2ycbcr: (H, W, 3) uint8 -> (H, W), 16..235, unrounded."""
    return rgb.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 255 + 16


def psnr(sr: NDArray, hr: NDArray, border: int = 4) -> float:
    """Peak signal-to-noise ratio in dB, peak 255, over all values inside the border.

    Args:
        sr, hr: equal shapes, (H, W, 3) uint8 RGB or (H, W) luma, 0..255.
        border: pixels left out on every side.

    Returns:
        dB; infinity for equal images.

    Raises:
        ValueError: shapes differ.
        ImageError: nothing is left inside the border.
    """
    sr, hr = _inside(sr, hr, border)
    error = float(np.mean((sr - hr) ** 2))
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(sr: NDArray, hr: NDArray, border: int = 4) -> float:
    """Structural similarity (Wang et al., 2004), 11x11 Gaussian of sigma 1.5, valid region.

    Arguments and errors as `psnr`; the colour channels of an RGB image are averaged. An image of
    less than 11 pixels inside the border raises ImageError.
    """
    sr, hr = _inside(sr, hr, border)
    if min(sr.shape[:2]) < 11:
        raise ImageError(f"expected at least 11 pixels inside the border, got {sr.shape[:2]}")
    return float(
        structural_similarity(
            sr,
            hr,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2 if sr.ndim == 3 else None,
        )
    )


def _inside(
    sr: NDArray, hr: NDArray, border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if sr.shape != hr.shape:
        raise ValueError(f"expected images of equal shape, got {sr.shape} and {hr.shape}")
    height, width = sr.shape[:2]
    if min(height, width) <= 2 * border:
        raise ImageError(f"expected more than {2 * border} pixels a side, got {width}x{height}")
    inside = (slice(border, height - border), slice(border, width - border))
    return sr[inside].astype(np.float64), hr[inside].astype(np.float64)
