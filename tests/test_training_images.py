"""Which of the images below some folders are trained on, and with which LR images."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from unpack import unpacked

from train.packing import pack
from utils.bicubic import downscale
from utils.datasets import DatasetError
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]


def test_official_lr_files_are_used_where_there_are_some(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    folder = tmp_path / "DIV2K"
    for name in ("0001", "0002"):
        save(folder / "DIV2K_train_HR" / f"{name}.png", noise(24, 32, seed=int(name)))
    official = noise(6, 8, seed=7)
    save(folder / "DIV2K_train_LR_bicubic" / "X4" / "0001x4.png", official)
    save(folder / "DIV2K_train_LR_bicubic" / "X2" / "0001x2.png", noise(12, 16))
    pairs = unpacked(pack([folder], tmp_path / "cache"))
    assert list(pairs) == ["0001.png", "0002.png"]
    np.testing.assert_array_equal(pairs["0001.png"][0], official)
    np.testing.assert_array_equal(pairs["0002.png"][0], downscale(noise(24, 32, seed=2)))


def test_validation_and_test_images_are_left_out(
    tmp_path: Path, noise: MakeImage, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data"
    save(folder / "DIV2K_train_HR" / "0001.png", noise(16, 16))
    held_out = (
        "DIV2K_valid_HR",
        "DIV2K_valid_LR_bicubic/X4",
        "DIV2K_test_LR",
        "LSDIR_DIV2K_test_HR",
        "DIV2K_LSDIR_valid_HR",
    )
    for name in held_out:
        save(folder / name / "0801x4.png", noise(16, 16))
    with caplog.at_level(logging.WARNING):
        packed = pack([folder], tmp_path / "cache")
    assert [image.name for image in packed.images] == ["0001.png"]
    for name in held_out:
        assert f"left out {name.split('/')[0]}" in caplog.text
    with pytest.raises(ImageError, match="DIV2K_valid_HR"):
        pack([folder / "DIV2K_valid_HR"], tmp_path / "cache")


@pytest.mark.parametrize(
    ("file", "given"),
    [
        ("Set5/HR/baby.png", "Set5/HR"),
        ("Set14/GTmod12/zebra.png", "Set14/GTmod12"),
        ("B100/HR/X4/3096.png", "B100/HR/X4"),
        ("HR/Urban100/x4/img_HR_x4.png", "HR/Urban100/x4"),
        ("DIV2K_valid_HR/0801.png", "DIV2K_valid_HR/."),
        ("div2k/valid/original/0801.png", "div2k/valid/original"),
    ],
)
def test_parts_of_a_held_out_set_are_left_out(
    tmp_path: Path,
    noise: MakeImage,
    save: Save,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    given: str,
) -> None:
    """However much of it is named, from wherever."""
    save(tmp_path / file, noise(16, 16))
    save(tmp_path / "mine" / "HR" / "a.png", noise(16, 16))
    monkeypatch.chdir(tmp_path / given)
    for folder in (tmp_path / given, Path(".")):
        caplog.clear()
        packed = pack([folder, tmp_path / "mine" / "HR"], tmp_path / "cache")
        assert [image.name for image in packed.images] == ["a.png"]
        assert "validation and test images are not for training" in caplog.text


def test_an_image_that_is_named_twice_is_taken_once_with_its_lr(
    tmp_path: Path, noise: MakeImage, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    for name in "ab":
        save(tmp_path / "D" / "T_HR" / f"{name}.png", noise(16, 16))
        save(tmp_path / "D" / "T_LR_bicubic" / "X4" / f"{name}x4.png", noise(4, 4, 1))
    (tmp_path / "link").symlink_to("D", target_is_directory=True)
    whole, part, link = tmp_path / "D", tmp_path / "D" / "T_HR", tmp_path / "link"
    for folders in ([whole, whole], [whole, part], [part, whole], [whole, link]):
        caplog.clear()
        packed = pack(folders, tmp_path / "cache")
        assert [image.name for image in packed.images] == ["a.png", "b.png"]
        assert np.array_equal(unpacked(packed)["b.png"][0], noise(4, 4, 1))
        assert "images are named more than once, and taken once" in caplog.text
        assert "by bicubic" not in caplog.text


def test_equal_names_in_two_sets_keep_their_own_lr(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    for seed, name in enumerate(("A", "B")):
        save(tmp_path / "both" / f"{name}_HR" / "1.png", noise(16, 16, seed))
        save(tmp_path / "both" / f"{name}_LR_bicubic" / "X4" / "1x4.png", noise(4, 4, 10 + seed))
    save(tmp_path / "both" / "C" / "1.png", noise(16, 16, 2))
    packed = pack([tmp_path / "both"], tmp_path / "cache")
    lrs = [packed.pixels[i.lr_offset : i.lr_offset + 16].view(4, 4, 3) for i in packed.images]
    for lr, expected in zip(
        lrs, (noise(4, 4, 10), noise(4, 4, 11), downscale(noise(16, 16, 2))), strict=True
    ):
        assert np.array_equal(lr, expected)


def test_lr_of_another_degradation_is_not_taken(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    save(tmp_path / "DIV2K_train_HR" / "1.png", noise(16, 16))
    save(tmp_path / "DIV2K_train_LR_bicubic" / "X4" / "1x4.png", noise(4, 4, 1))
    save(tmp_path / "DIV2K_train_LR_unknown" / "X4" / "1x4.png", noise(4, 4, 2))
    packed = pack([tmp_path], tmp_path / "cache")
    assert [image.name for image in packed.images] == ["1.png"]
    assert np.array_equal(packed.pixels[:16].view(4, 4, 3), noise(4, 4, 1))


def test_lr_images_of_no_hr_image_end_it_before_packing(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    save(tmp_path / "set" / "HR" / "1.png", noise(16, 16))
    save(tmp_path / "set" / "LR" / "1_small.png", noise(4, 4))
    with pytest.raises(DatasetError, match="1_small.png .* 1x4.png"):
        pack([tmp_path / "set"], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_lr_folders_given_beside_their_hr_folders_are_paired(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    save(tmp_path / "T_HR" / "1.png", noise(16, 16))
    save(tmp_path / "T_LR_bicubic" / "X4" / "1x4.png", noise(4, 4, 1))
    packed = pack([tmp_path / "T_HR", tmp_path / "T_LR_bicubic" / "X4"], tmp_path / "cache")
    assert np.array_equal(unpacked(packed)["1.png"][0], noise(4, 4, 1))
