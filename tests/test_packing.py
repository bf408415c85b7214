"""Trees of images become one file of pixels, decoded once, with what was skipped by name."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from train import packing
from train.packing import pack
from train.packs import Pack
from utils.bicubic import downscale
from utils.command import UserError
from utils.datasets import DatasetError
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]


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


@pytest.fixture()
def tree(tmp_path: Path, noise: MakeImage, save: Save) -> Path:
    """Three images of different sizes, one in a subfolder."""
    folder = tmp_path / "photos"
    save(folder / "b.png", noise(21, 38, seed=1))
    save(folder / "sub" / "a.png", noise(16, 16, seed=2))
    save(folder / "ü.png", noise(40, 13, seed=3))
    return folder


def test_pixels_are_those_of_the_files_with_matlab_equal_lr(
    tree: Path, tmp_path: Path, noise: MakeImage
) -> None:
    packed = pack([tree], tmp_path / "cache")
    pairs = unpacked(packed)
    expected = {
        "b.png": noise(21, 38, seed=1)[:20, :36],
        "a.png": noise(16, 16, seed=2),
        "ü.png": noise(40, 13, seed=3)[:, :12],
    }
    assert list(pairs) == list(expected)
    for name, hr in expected.items():
        np.testing.assert_array_equal(pairs[name][1], hr)
        np.testing.assert_array_equal(pairs[name][0], downscale(hr))
    assert len(packed.pixels) == sum(lr.size + hr.size for lr, hr in pairs.values()) // 3
    assert packed.skipped == ()


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


def test_files_that_cannot_be_used_are_skipped_by_name(
    tree: Path, tmp_path: Path, noise: MakeImage, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    whole = save(tree / "cut.png", noise(20, 20)).read_bytes()
    (tree / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tree / "text.jpg").write_text("no image")
    save(tree / "tiny.png", noise(3, 30))
    save(tree / "misfit.png", noise(20, 20))
    save(tree / "LR" / "misfitx4.png", noise(5, 6))
    with caplog.at_level(logging.WARNING):
        packed = pack([tree], tmp_path / "cache")
    assert set(unpacked(packed)) == {"b.png", "a.png", "ü.png"}
    assert len(packed.skipped) == 4 and not packed.unread  # which time does not mend
    reasons = "\n".join(packed.skipped)
    for named in ("cut.png", "text.jpg", "tiny.png", "30x3", "misfit.png", "misfitx4.png"):
        assert named in reasons
    assert all(reason in caplog.text for reason in packed.skipped)


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


def test_pack_is_opened_again_without_decoding(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "text.png").write_text("no image")
    first = pack([tree], tmp_path / "cache")

    def decode(path: Path) -> Image:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(packing, "read_rgb", decode)
    again = pack([tree], tmp_path / "cache")
    assert again.images == first.images and again.skipped == first.skipped
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.pixels.numpy(), first.pixels.numpy())


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


@pytest.mark.parametrize("change", ["content", "added", "removed", "lr"])
def test_other_files_make_another_pack(
    tree: Path, tmp_path: Path, noise: MakeImage, save: Save, change: str
) -> None:
    first = pack([tree], tmp_path / "cache")
    if change == "content":
        save(tree / "b.png", noise(21, 38, seed=99))
    elif change == "added":
        save(tree / "c.png", noise(8, 8))
    elif change == "removed":
        (tree / "b.png").unlink()
    else:
        save(tree / "sub" / "LR" / "ax4.png", noise(4, 4))
    second = pack([tree], tmp_path / "cache")
    assert second.fingerprint != first.fingerprint
    if change == "content":
        np.testing.assert_array_equal(
            unpacked(second)["b.png"][1], noise(21, 38, seed=99)[:20, :36]
        )


def test_equal_data_elsewhere_have_the_same_fingerprint(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree, tmp_path / "moved" / "photos")
    first = pack([tree], tmp_path / "cache")
    moved = pack([tmp_path / "moved" / "photos"], tmp_path / "cache 2")
    assert moved.fingerprint == first.fingerprint
    assert [i.sha256 for i in moved.images] == [i.sha256 for i in first.images]
    assert len({i.sha256 for i in first.images}) == 3


def test_first_takes_so_many_of_each_folder_by_path(
    tree: Path, tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    other = tmp_path / "other"
    for name in "xyz":
        save(other / f"{name}.png", noise(8, 8, seed=ord(name)))
    packed = pack([tree, other], tmp_path / "cache", first=2)
    assert [i.name for i in packed.images] == ["b.png", "a.png", "x.png", "y.png"]


def test_nothing_to_pack_is_an_error_that_names_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        pack([tmp_path / "absent"], tmp_path / "cache")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="empty"):
        pack([tmp_path / "empty"], tmp_path / "cache")
    (tmp_path / "empty" / "text.png").write_text("no image")
    with pytest.raises(ImageError, match="text.png"):
        pack([tmp_path / "empty"], tmp_path / "cache")


def test_interrupted_packing_leaves_nothing_and_is_done_again(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = packing.read_rgb

    def interrupted(path: Path) -> Image:
        if Path(path).name == "ü.png":
            raise KeyboardInterrupt
        return read(path)

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "read_rgb", interrupted)
        pack([tree], cache)
    assert list(cache.iterdir()) == []
    assert len(pack([tree], cache).images) == 3


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
        OSError(5, "Input/output error"),
        PermissionError(13, "Permission denied"),
    ],
)
def test_one_image_that_cannot_be_had_is_skipped_and_the_others_packed(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    read = packing.read_rgb

    def fail(path: Path) -> Image:
        if Path(path).name == "b.png":
            raise error
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(packing, "read_rgb", fail)
        for _ in range(2):
            packed = pack([tree], tmp_path / "cache")
            assert set(unpacked(packed)) == {"a.png", "ü.png"}
            assert packed.skipped == (f"{tree / 'b.png'}: {str(error) or 'MemoryError'}",)
    assert set(unpacked(pack([tree], tmp_path / "cache"))) == {"a.png", "b.png", "ü.png"}


def test_a_link_to_nowhere_is_skipped_until_there_is_something(tree: Path, tmp_path: Path) -> None:
    (tree / "link.png").symlink_to(tmp_path / "later.png")
    packed = pack([tree], tmp_path / "cache")
    assert set(unpacked(packed)) == {"a.png", "b.png", "ü.png"}
    assert len(packed.skipped) == 1 and "link.png" in packed.skipped[0]
    shutil.copy(next(tree.rglob("a.png")), tmp_path / "later.png")
    assert "link.png" in unpacked(pack([tree], tmp_path / "cache"))


def test_a_folder_that_cannot_be_read_is_named(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read any folder
        if os.path.basename(path) == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match="photos/sub: Permission denied"):
        pack([tree], tmp_path / "cache")
    (tree / "sub").rename(tree / "lost+found")  # which every disk has, and nobody may read
    assert len(pack([tree], tmp_path / "cache").images) == 2


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
