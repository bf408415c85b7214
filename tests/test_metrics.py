"""PSNR, SSIM and luma against other implementations and known values."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import convolve2d
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

from utils.imaging.images import ImageError
from utils.metrics import psnr, ssim, to_y

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Array = NDArray[np.float64]


def wang_ssim(x: Array, y: Array) -> float:
    """SSIM of two (H, W) images as its authors' ssim.m: every 11x11 window in the image."""
    side = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(side, side) / side.sum() ** 2

    def mean(image: Array) -> Array:
        return convolve2d(image, window, mode="valid")

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    top = (2 * mx * my + c1) * (2 * vxy + c2)
    return float(np.mean(top / ((mx**2 + my**2 + c1) * (vx + vy + c2))))


@pytest.fixture()
def pair(noise: MakeImage) -> tuple[Image, Image]:
    """An image and a version with errors that grow to the right and below."""
    hr = noise(37, 52, seed=1)
    size = np.linspace(0, 40, 37)[:, None, None] + np.linspace(0, 20, 52)[:, None]
    error = np.random.default_rng(2).normal(size=hr.shape) * size
    return np.clip(hr + error, 0, 255).round().astype(np.uint8), hr


@pytest.mark.parametrize("border", [0, 4, 7])
def test_psnr_is_that_of_scikit_image_inside_the_border(
    pair: tuple[Image, Image], border: int
) -> None:
    sr, hr = pair
    inside = slice(border, -border or None)
    for a, b in ((sr, hr), (to_y(sr), to_y(hr))):
        expected = peak_signal_noise_ratio(
            b[inside, inside].astype(float), a[inside, inside].astype(float), data_range=255
        )
        assert psnr(a, b, border) == pytest.approx(expected, abs=1e-10)  # float64 sums


def test_psnr_of_a_known_error() -> None:
    hr = np.full((20, 20, 3), 100, np.uint8)
    sr = hr + np.uint8(10)
    assert psnr(sr, hr) == pytest.approx(20 * math.log10(25.5), abs=1e-12)
    assert psnr(hr, sr) == psnr(sr, hr)  # no uint8 difference wraps around


def test_ssim_is_that_of_its_authors(pair: tuple[Image, Image]) -> None:
    sr, hr = (image[4:-4, 4:-4].astype(float) for image in pair)
    planes = [wang_ssim(sr[..., c], hr[..., c]) for c in range(3)]
    assert ssim(*pair) == pytest.approx(np.mean(planes), abs=1e-10)
    y = wang_ssim(to_y(pair[0])[4:-4, 4:-4], to_y(pair[1])[4:-4, 4:-4])
    assert ssim(to_y(pair[0]), to_y(pair[1])) == pytest.approx(y, abs=1e-10)
    assert 0.3 < y < 0.99  # neither end, where formulas agree by chance


def test_luma_is_that_of_matlab(noise: MakeImage) -> None:
    colours = np.array([[0] * 3, [255] * 3, [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [16, 235, 81.481, 144.553, 40.966]
    np.testing.assert_allclose(to_y(colours[None])[0], expected, rtol=0, atol=1e-10)
    rgb = noise(9, 7)
    np.testing.assert_allclose(to_y(rgb), rgb2ycbcr(rgb)[..., 0], rtol=0, atol=1e-10)


def test_equal_images(noise: MakeImage) -> None:
    image = noise(24, 24)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_other_shapes_and_small_images_are_errors(
    metric: Callable[..., float], noise: MakeImage
) -> None:
    with pytest.raises(ValueError, match=r"\(24, 24, 3\) and \(24, 25, 3\)"):
        metric(noise(24, 24), noise(24, 25))
    with pytest.raises(ImageError, match="20x8"):
        metric(noise(8, 20), noise(8, 20))


def test_least_sizes(noise: MakeImage) -> None:
    assert math.isfinite(psnr(noise(9, 9, 1), noise(9, 9, 2)))
    assert math.isfinite(ssim(noise(19, 19, 1), noise(19, 19, 2)))
    with pytest.raises(ImageError, match="11"):
        ssim(noise(18, 19, 1), noise(18, 19, 2))
