"""The images in a pack, for tests."""

import numpy as np
from numpy.typing import NDArray

from train.packs import Pack

Image = NDArray[np.uint8]


def unpacked(packed: Pack) -> dict[str, tuple[Image, Image]]:
    """name -> (LR, HR) as the offsets and sizes say."""
    pairs = {}
    for image in packed.images:
        lr_end = image.lr_offset + image.height * image.width
        hr_end = image.hr_offset + 16 * image.height * image.width
        lr = packed.pixels[image.lr_offset : lr_end].view(image.height, image.width, 3)
        hr = packed.pixels[image.hr_offset : hr_end].view(4 * image.height, 4 * image.width, 3)
        pairs[image.name] = (lr.numpy(), hr.numpy())
    return pairs
