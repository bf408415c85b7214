"""Enlarge a photo with a network that sees RGB alone: grey, depth and transparency kept."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from utils.imaging.decode import Photo
from utils.imaging.pixels import round_to


def enlarge(
    photo: Photo, restore: Callable[[NDArray[np.float32]], NDArray[np.float32]], scale: int = 4
) -> Photo:
    """The picture `scale` times as large; colour and alpha go through the network one by one.

    Args:
        photo: of any kind.
        restore: (H, W, 3) float32, RGB, 0..1 -> (scale*H, scale*W, 3) float32, not clamped.
        scale: enlargement.

    Raises:
        ValueError: restore gave another size.
    """
    alpha, levels = photo.alpha, np.float32(np.iinfo(photo.pixels.dtype).max)

    def enlarge_part(image: NDArray[np.float32]) -> NDArray:
        """(H, W, 1 or 3) -> (scale*H, scale*W, 1 or 3), rounded."""
        grey = image.shape[2] == 1
        large = restore(image.repeat(3, 2) if grey else image)
        expected = (scale * image.shape[0], scale * image.shape[1], 3)
        if large.shape != expected:
            raise ValueError(f"expected {expected} from restore, got {large.shape}")
        return round_to(large.mean(2, keepdims=True) if grey else large, photo.pixels.dtype)

    colour = photo.pixels.astype(np.float32) / levels
    if alpha is None:
        return replace(photo, pixels=enlarge_part(colour))
    pixels = enlarge_part(_spread(colour, alpha > 0))
    if alpha.min() == alpha.max():
        return replace(photo, pixels=pixels, alpha=np.full(pixels.shape[:2], alpha[0, 0]))
    large = enlarge_part(alpha[..., None].astype(np.float32) / levels)[..., 0]
    # Nothing more or less opaque than what is around it: no ringing, and opaque stays opaque.
    around = np.ones((3, 3), np.uint8)
    bounds = (cv2.erode(alpha, around), cv2.dilate(alpha, around))
    large = np.clip(large, *(bound.repeat(scale, 0).repeat(scale, 1) for bound in bounds))
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
