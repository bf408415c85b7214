"""Enlarge a photo with a network that sees no transparency."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.datasets import SCALE
from utils.imaging.decode import Photo


def enlarge(photo: Photo, upscale: Callable[[NDArray], NDArray]) -> Photo:
    """The picture SCALE times as large; colour and alpha go through the network one by one.

    Args:
        photo: of any kind.
        upscale: (H, W, 3 or 1), uint8 or uint16 -> (SCALE*H, SCALE*W, 3 or 1) of the same dtype.
    """
    pixels, alpha = photo.pixels, photo.alpha
    if alpha is None:
        return replace(photo, pixels=upscale(pixels))
    known = _spread(pixels.astype(np.float32), alpha > 0)
    pixels = upscale(np.rint(known).astype(pixels.dtype))
    if alpha.min() == alpha.max():
        return replace(photo, pixels=pixels, alpha=np.full(pixels.shape[:2], alpha[0, 0]))
    # Nothing more or less opaque than what is around it: no ringing, and opaque stays opaque.
    around = np.ones((3, 3), np.uint8)
    bounds = (cv2.erode(alpha, around), cv2.dilate(alpha, around))
    large = upscale(alpha[..., None])[..., 0]
    large = np.clip(large, *(bound.repeat(SCALE, 0).repeat(SCALE, 1) for bound in bounds))
    return replace(photo, pixels=pixels, alpha=large)


def _spread(colour: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Give pixels that are not known the colour of known ones around: whatever hides in wholly
    transparent pixels must not shine through at their edges.

    Halves the picture, averaging what is known, until all of it is, and doubles it again; in time
    and memory for 4/3 of the pixels.
    """
    if known.all() or not known.any():
        return colour
    height, width = known.shape
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    shape = ((height + 1) // 2, 2, (width + 1) // 2, 2, -1)
    count = np.pad(known[..., None], odd).reshape(shape).sum((1, 3), dtype=np.float32)
    total = np.pad(colour * known[..., None], odd).reshape(shape).sum((1, 3))
    coarse = _spread(total / np.maximum(count, 1), count[..., 0] > 0)
    fine = cv2.resize(coarse, (2 * shape[2], 2 * shape[0]), interpolation=cv2.INTER_LINEAR)
    fine = fine.reshape(2 * shape[0], 2 * shape[2], -1)[:height, :width]
    return np.where(known[..., None], colour, fine)
