"""The pictures of the README."""

from pathlib import Path

import numpy as np
import pytest

from utils.datasets import find
from utils.imaging.images import read_rgb, write_png
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


def test_a_crop_of_what_was_restored_or_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def main(*arguments: str) -> str:
        options = ("--save_dir", str(tmp_path), "-o", str(tmp_path / "x.png"))
        code = pictures.main([*arguments, *options])
        said = capsys.readouterr().err
        assert code == (2 if said else 0) and said.count("\n") == bool(said)
        return said

    crop = ("--crop", "100", "50", "30", "20")
    assert "expected one of astronaut, " in main("nobody", *crop)
    assert "found none: " in main("coffee", *crop)
    sr = tmp_path / "23_LKDN" / "demo" / "coffee.png"
    write_png(sr, np.zeros((900, 900, 3), np.uint8))
    assert "not of 4 times the LR size" in main("coffee", *crop)
    hr = next(pair.hr for pair in find("demo", tmp_path).pairs if pair.name == "coffee")
    write_png(sr, 255 - read_rgb(hr))
    assert "inside 600x400" in main("coffee", "--crop", "580", "50", "30", "20")
    assert not main("coffee", *crop)
    panels = np.split(read_rgb(tmp_path / "x.png")[28:], (90, 96, 186, 192), axis=1)
    np.testing.assert_array_equal(panels[2], 255 - panels[4])
    title = read_rgb(tmp_path / "x.png")[:28]
    (tmp_path / "23_LKDN").rename(tmp_path / "00_RFDN")
    assert not main("coffee", *crop, "--model", "00_RFDN")
    named = read_rgb(tmp_path / "x.png")[:28]
    np.testing.assert_array_equal(named[:, :90], title[:, :90])
    assert (named[:, 96:186] != title[:, 96:186]).any()
    np.testing.assert_array_equal(panels[4][::3, ::3], read_rgb(hr)[50:70, 100:130])
