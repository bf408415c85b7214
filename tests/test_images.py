"""Image files: what goes in comes out, and what is broken says so with its path."""

import os
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from image_files import noise
from numpy.typing import NDArray
from skimage import data as photos

from utils.files import write_bytes
from utils.imaging.images import (
    ImageError,
    find_images,
    mod_crop,
    read_rgb,
    to_tensor,
    to_uint8,
    write_png,
)

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Save = Callable[[Path, Image], Path]


@pytest.mark.parametrize("name", ["plain.png", "größe 图像 é.png", "no folder yet/a.png"])
@pytest.mark.parametrize("size", [(1, 1), (7, 13)])
def test_written_png_reads_back_equal(
    tmp_path: Path, noise: MakeImage, name: str, size: tuple[int, int]
) -> None:
    rgb = noise(*size)
    write_png(tmp_path / name, rgb)
    read = read_rgb(tmp_path / name)
    assert read.dtype == np.uint8 and read.flags.c_contiguous and read.flags.writeable
    np.testing.assert_array_equal(read, rgb)
    assert [p.name for p in (tmp_path / name).parent.iterdir()] == [Path(name).name]


def test_png_of_another_program_has_the_same_colours(tmp_path: Path, noise: MakeImage) -> None:
    from skimage.io import imread, imsave

    rgb = noise(6, 5)
    imsave(tmp_path / "theirs.png", rgb, check_contrast=False)
    write_png(tmp_path / "ours.png", rgb)
    np.testing.assert_array_equal(read_rgb(tmp_path / "theirs.png"), rgb)
    np.testing.assert_array_equal(imread(tmp_path / "ours.png"), rgb)


def test_grey_is_repeated_alpha_dropped_and_16_bit_made_8(tmp_path: Path, noise: MakeImage) -> None:
    rgb = noise(9, 8)
    grey, alpha = rgb[..., 0], rgb[..., 1]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack((rgb[..., ::-1], alpha)))
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    cv2.imwrite(str(tmp_path / "deep.png"), np.dstack((deep, deep.T, deep)))

    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png"), np.dstack([grey] * 3))
    np.testing.assert_array_equal(read_rgb(tmp_path / "alpha.png"), rgb)
    read = read_rgb(tmp_path / "deep.png")
    assert read.dtype == np.uint8 and read[0, 0, 0] == 0 and read[-1, -1, 0] == 255
    # Dropping the low byte and scaling by 257 with rounding differ by less than one level.
    assert np.abs(read[..., 0] - deep / 257).max() < 1
    assert np.abs(read[..., 1] - deep.T / 257).max() < 1
    for factor in (256, 257):  # as programs make 16 bits of 8
        cv2.imwrite(str(tmp_path / "made.png"), rgb.astype(np.uint16) * factor)
        np.testing.assert_array_equal(read_rgb(tmp_path / "made.png"), rgb[..., ::-1])


def test_jpeg_orientation_tag_is_ignored(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    photo = Pillow.fromarray(photos.chelsea()[:64, :96])
    exif = photo.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    photo.save(tmp_path / "turned.jpg", exif=exif)
    assert read_rgb(tmp_path / "turned.jpg").shape == (64, 96, 3)


def broken_files() -> dict[str, bytes]:
    photo = photos.chelsea()[:96, :128, ::-1]
    png, jpeg = (cv2.imencode(ext, photo)[1].tobytes() for ext in (".png", ".jpg"))
    files = {"empty.png": b"", "text.png": b"no image at all\n" * 50, "header.png": png[:8]}
    for share in (0.1, 0.5, 0.9, 0.99):
        files[f"cut at {share}.png"] = png[: int(share * len(png))]
        files[f"cut at {share}.jpg"] = jpeg[: int(share * len(jpeg))]
    for short in (1, 2, 12):
        files[f"{short} bytes short.png"] = png[:-short]
        files[f"{short} bytes short.jpg"] = jpeg[:-short]
    return files


@pytest.mark.parametrize("name", broken_files())
def test_broken_file_is_an_error_with_its_path(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(broken_files()[name])
    with pytest.raises(ImageError) as caught:
        read_rgb(path)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder_are_errors_with_their_path(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(ImageError) as caught:
            read_rgb(path)
        assert str(path) in str(caught.value)


def test_write_interrupted_before_the_rename_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, noise: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    write_png(path, noise(5, 5, seed=1))
    before = path.read_bytes()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(path, noise(5, 5, seed=2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_write_on_a_full_disk_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, noise: MakeImage
) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    path = tmp_path / "a.png"
    write_png(path, noise(5, 5))
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError):
            write_png(path, noise(50, 50))  # 7500 bytes of noise do not compress to 1000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_written_file_has_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    write_bytes(tmp_path / "ours", b"x")
    (tmp_path / "usual").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_every_8_bit_value_survives_the_tensor(noise: MakeImage) -> None:
    rgb = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    tensor = to_tensor(rgb)
    assert tensor.shape == (1, 3, 16, 16) and tensor.dtype == torch.float32
    assert tensor.min() == 0 and tensor.max() == 1
    np.testing.assert_array_equal(to_uint8(tensor), rgb)
    rgb = noise(4, 6)  # no channel or axis is swapped
    assert to_tensor(rgb)[0, 2, 3, 1] == np.float32(rgb[3, 1, 2]) / np.float32(255)


def test_pixels_are_clamped_then_rounded() -> None:
    values = torch.tensor([-0.3, 0.0, 1.4 / 255, 1.6 / 255, 254.6 / 255, 1.7])
    tensor = values.view(1, 1, 1, 6).expand(1, 3, 1, 6)
    assert to_uint8(tensor)[0, :, 0].tolist() == [0, 0, 1, 2, 255, 255]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_that_are_not_finite_are_an_error(value: float) -> None:
    tensor = torch.zeros(1, 3, 4, 4)
    tensor[0, 1, 2, 3] = value
    with pytest.raises(FloatingPointError):
        to_uint8(tensor)


def test_mod_crop_cuts_right_and_bottom(noise: MakeImage) -> None:
    rgb = noise(11, 14)
    np.testing.assert_array_equal(mod_crop(rgb, 4), rgb[:8, :12])
    np.testing.assert_array_equal(mod_crop(rgb, 7), rgb[:7, :14])
    with pytest.raises(ImageError, match="14x3"):
        mod_crop(rgb[:3], 4)


def test_images_are_found_in_trees_without_hidden_or_other_files(
    tmp_path: Path, noise: MakeImage, save: Save
) -> None:
    for name in ("b.png", "a/c.JPG", "a/d/e.webp", ".hidden.png", ".cache/f.png", "a/._g.png"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "folder.png").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)]
    assert found == ["a/c.JPG", "a/d/e.webp", "b.png"]
    with pytest.raises(FileNotFoundError, match="absent"):
        find_images(tmp_path / "absent")


def test_jpeg_with_a_film_behind_it_is_whole(tmp_path: Path, noise: MakeImage, save: Save) -> None:
    path = save(tmp_path / "motion.jpg", noise(16, 24))
    path.write_bytes(path.read_bytes() + bytes(9000))
    assert read_rgb(path).shape == (16, 24, 3)


def test_linked_folders_are_entered_once(tmp_path: Path, noise: MakeImage, save: Save) -> None:
    save(tmp_path / "elsewhere" / "a.png", noise(4, 4))
    save(tmp_path / "tree" / ".hidden" / "b.png", noise(4, 4))
    (tmp_path / "tree" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "tree")
    assert find_images(tmp_path / "tree") == [tmp_path / "tree" / "link" / "a.png"]
    assert find_images(tmp_path / "tree", recursive=False) == []


def test_a_bmp_in_runs_is_read(tmp_path: Path) -> None:
    values = noise(400, 400)
    runs = b"".join(
        b"".join(bytes((1, value)) for value in row) + b"\0\0" for row in values[::-1].tolist()
    )
    palette = b"".join(bytes((i, i, i, 0)) for i in range(256))
    header = struct.pack("<IiiHHIIiiII", 40, 400, 400, 1, 8, 1, len(runs), 0, 0, 256, 0)
    size = 14 + len(header + palette)
    path = tmp_path / "a.bmp"
    path.write_bytes(
        b"BM"
        + struct.pack("<IHHI", size + len(runs), 0, 0, size)
        + header
        + palette
        + runs
        + b"\0\1"
    )
    np.testing.assert_array_equal(read_rgb(path)[..., 0], values)
