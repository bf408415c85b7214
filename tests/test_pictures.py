"""The pictures of the README."""

from pathlib import Path

import numpy as np

from utils.datasets import find
from utils.imaging.images import read_rgb
from utils.report import pictures


def test_picture_sets_crops_side_by_side(tmp_path: Path) -> None:
    crops = {
        label: np.full((10, 20, 3), value, np.uint8)
        for label, value in (("a", 10), ("b", 20), ("c", 30))
    }
    image = pictures.side_by_side(crops)
    assert image.shape == (28 + 30, 3 * 60 + 2 * 6, 3)
    assert [image[40, x, 0] for x in (30, 96, 162)] == [10, 20, 30]
    crop = find("demo", tmp_path).pairs[1]
    assert crop.hr is not None and read_rgb(crop.hr).shape == (300, 451, 3)
    wrong = ["nobody", "--crop", "0", "0", "9", "9", "-o", str(tmp_path / "x.png")]
    assert pictures.main(wrong) == 2
