"""Bicubic resizing against MATLAB's imresize, written out in numpy."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from utils.bicubic import Convention, downscale, upscale
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Array = NDArray[np.float64]

SIZES = [(4, 4), (8, 4), (4, 12), (13, 17), (23, 31), (40, 26), (101, 59)]


def keys(x: Array) -> Array:
    """Keys' cubic kernel, a = -0.5, as imresize has it."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def resize_rows(image: Array, out_rows: int, border: str) -> Array:
    """imresize along the first axis: `contributions` of MATLAB, then the weighted sum."""
    rows = len(image)
    scale = out_rows / rows
    widen = min(scale, 1.0)  # antialiasing: a wider kernel for shrinking
    taps = int(np.ceil(4 / widen)) + 2
    centre = (np.arange(1, out_rows + 1) / scale) + 0.5 * (1 - 1 / scale)  # one-based
    index = np.floor(centre - 2 / widen)[:, None] + np.arange(taps)
    weights = widen * keys(widen * (centre[:, None] - index))
    weights /= weights.sum(1, keepdims=True)
    if border == "symmetric":  # edge pixel repeated, period twice the size
        mirror = np.concatenate((np.arange(rows), np.arange(rows)[::-1]))
        source = mirror[np.mod(index.astype(int) - 1, 2 * rows)]
    else:
        source = np.clip(index.astype(int) - 1, 0, rows - 1)
    return np.einsum("ot,ot...->o...", weights, image[source])


def round_uint8(image: Array) -> Image:
    return np.clip(np.floor(image + 0.5), 0, 255).astype(np.uint8)


def imresize(rgb: Image, height: int, width: int, convention: Convention = "double") -> Image:
    border = "symmetric" if convention == "double" else "edge"
    image = resize_rows(rgb.astype(np.float64), height, border)
    if convention == "uint8":
        image = round_uint8(image).astype(np.float64)
    return round_uint8(resize_rows(image.swapaxes(0, 1), width, border).swapaxes(0, 1))


@pytest.mark.parametrize("convention", ["double", "uint8"])
@pytest.mark.parametrize("size", SIZES)
def test_downscale_is_imresize_of_the_mod_cropped_image(
    noise: MakeImage, size: tuple[int, int], convention: Convention
) -> None:
    hr = noise(*size)
    height, width = (side // 4 for side in size)
    expected = imresize(hr[: 4 * height, : 4 * width], height, width, convention)
    # Exact, halves included: all weights are multiples of 1/4096, so float64 sums have no error.
    np.testing.assert_array_equal(downscale(hr, 4, convention), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 3), (5, 2), (13, 17), (8, 40)])
def test_upscale_is_imresize(noise: MakeImage, size: tuple[int, int]) -> None:
    lr = noise(*size)
    np.testing.assert_array_equal(upscale(lr, 4), imresize(lr, 4 * size[0], 4 * size[1]))


@pytest.mark.parametrize("scale", [2, 3])
def test_other_scales_are_imresize_within_one_rounding(noise: MakeImage, scale: int) -> None:
    hr = noise(6 * scale, 5 * scale)
    # Thirds are not exact in float64: a value right at a half may round either way.
    ours, theirs = downscale(hr, scale), imresize(hr, 6, 5)
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.99


def test_the_two_conventions_differ_and_a_flat_image_stays_flat(noise: MakeImage) -> None:
    hr = noise(40, 40)
    assert (downscale(hr, 4, "double") != downscale(hr, 4, "uint8")).any()
    flat = np.full((24, 16, 3), 77, np.uint8)
    assert (downscale(flat, 4, "double") == 77).all()
    assert (downscale(flat, 4, "uint8") == 77).all()
    assert (upscale(flat) == 77).all()


def test_image_below_the_scale_is_an_error(noise: MakeImage) -> None:
    with pytest.raises(ImageError, match="20x3"):
        downscale(noise(3, 20))
