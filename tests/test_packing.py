"""Trees of images become one file of pixels, decoded once, with what was skipped by name."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from unpack import unpacked

from train import packing
from train.packing import pack
from utils.bicubic import downscale
from utils.command import UserError
from utils.files import _leftover_stem
from utils.imaging.images import ImageError

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]


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


def caused_by(cause: Exception) -> ImageError:
    error = ImageError("expected an image file: b.png")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        caused_by(MemoryError()),
        caused_by(OSError(5, "Input/output error")),
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
            said = str(error) or "MemoryError"
            assert packed.skipped == (said if "b.png" in said else f"{tree / 'b.png'}: {said}",)
    begun = [packed.fingerprint]  # a run goes on with what it began with
    assert set(unpacked(pack([tree], tmp_path / "cache", keep=begun))) == {"a.png", "ü.png"}
    monkeypatch.chdir(tree.parent)  # the same images by another name of their folder
    again = pack([Path(tree.name)], tmp_path / "cache")
    assert set(unpacked(again)) == {"a.png", "b.png", "ü.png"}
    assert set(unpacked(pack([tree], tmp_path / "cache", keep=begun))) == {"a.png", "ü.png"}
    assert pack([tree], tmp_path / "cache").fingerprint == again.fingerprint


def test_what_a_killed_packer_left_goes_though_another_has_packed(
    tree: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    packed = pack([tree], cache)
    (data,) = cache.glob("*.bin")
    left, own = (data.parent / f"{_leftover_stem(data)}{name}.tmp" for name in ("old", "new"))
    for file in (left, own):
        file.touch()
    os.utime(left, (0, 0))
    assert pack([tree], cache).fingerprint == packed.fingerprint
    assert own.exists() and not left.exists()


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
