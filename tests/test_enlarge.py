"""Alpha, of 8 and 16 bits, beside colour and grey through a network that takes none."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import H, W, noise, repeated
from numpy.typing import NDArray

from deploy.photos.encode import write
from deploy.photos.enlarge import enlarge
from utils.imaging.decode import Photo, read


def bicubic(image: NDArray) -> NDArray:
    """In place of the network: blurs and rings."""
    height, width, channels = image.shape
    large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    return large.reshape(4 * height, 4 * width, channels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [(200, 40, 90), (255,)])
def test_hidden_colours_do_not_shine_through(dtype: type, colour: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    levels = np.iinfo(dtype).max
    y, x = np.mgrid[:50, :71]
    disc = np.hypot(y - 20, x - 30)
    alpha = np.clip(15 - disc, 0, 1) * levels
    alpha[40:45, 60] = levels  # a line, and a single faint pixel in nothing
    alpha[2, 68] = 1
    alpha = np.rint(alpha).astype(dtype)
    flat = (np.array(colour) * (levels // 255)).astype(dtype)
    pixels = np.broadcast_to(flat, (*alpha.shape, len(colour))).copy()
    hidden = alpha == 0
    pixels[hidden] = rng.integers(0, levels + 1, (hidden.sum(), len(colour)))
    large = enlarge(Photo(pixels, alpha), bicubic)
    assert large.alpha is not None and large.alpha.dtype == dtype
    seen = large.alpha > 0
    assert seen.sum() >= 16 * (alpha > levels // 2).sum()
    assert np.abs(large.pixels[seen].astype(int) - flat).max() <= 1
    # Opaque stays opaque and nothing nothing, where all is so around.
    around = np.ones((3, 3), np.uint8)
    opaque = cv2.erode(alpha, around).repeat(4, 0).repeat(4, 1) == levels
    nothing = cv2.dilate(alpha, around).repeat(4, 0).repeat(4, 1) == 0
    assert (large.alpha[opaque] == levels).all() and (large.alpha[nothing] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 40000), (40000, 1), (33, 65)])
def test_hidden_colours_at_awkward_sizes(size: tuple[int, int]) -> None:
    alpha = np.zeros(size, np.uint8)
    pixels = noise(*size, 3)
    assert enlarge(Photo(pixels, alpha), repeated).pixels.shape == (4 * size[0], 4 * size[1], 3)
    alpha[-1, -1] = 255
    large = enlarge(Photo(pixels, alpha), repeated)
    # One pixel to see: all of them take its colour.
    assert (np.abs(large.pixels.astype(int) - pixels[-1, -1]) <= 1).all()


def test_opaque_alpha_is_not_sent_through_the_network_and_can_be_a_jpeg(tmp_path: Path) -> None:
    calls = []

    def upscale(image: NDArray) -> NDArray:
        calls.append(image.shape)
        return repeated(image)

    photo = enlarge(Photo(noise(H, W, 3), np.full((H, W), 255, np.uint8)), upscale)
    assert len(calls) == 1 and photo.alpha is not None and photo.alpha.shape == (4 * H, 4 * W)
    write(tmp_path / "a.jpg", photo)
    assert read(tmp_path / "a.jpg").alpha is None
