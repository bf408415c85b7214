"""What is written is what was read: pixels, orientation, EXIF and profile."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
from image_files import (
    ARTIST,
    EXIF_IFD,
    GPS_IFD,
    ORIENTATION,
    SOMEBODY,
    H,
    W,
    exif,
    noise,
    profile,
    save,
    smooth,
)
from numpy.typing import NDArray
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from deploy.photos.encode import write
from utils.imaging.decode import Photo, read
from utils.imaging.images import ImageError


def loaded(data: bytes | None) -> Image.Exif:
    assert data is not None
    tags = Image.Exif()
    tags.load(data)
    return tags


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_orientation_is_applied_and_gone(tmp_path: Path, suffix: str, orientation: int) -> None:
    rgb = smooth()
    stored = tmp_path / f"stored.{suffix}"
    picture = Image.fromarray(rgb)
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}
    save(stored, picture, exif=exif(orientation), **options.get(suffix, {}))
    with Image.open(stored) as picture:  # a TIFF has it from Pillow, which writes ASCII
        artist = picture.getexif()[ARTIST]
    assert suffix == "tif" or artist == SOMEBODY.decode("latin-1")
    # How a row and a column of the file lie in the upright picture: EXIF 2.3, table 6.
    turns: dict[int, Callable[[NDArray], NDArray]] = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a.swapaxes(0, 1), 2),
        8: np.rot90,
    }
    photo = read(stored)
    upright = turns[orientation](rgb)
    assert photo.pixels.shape == upright.shape
    loss = 4 if suffix == "jpg" else 0
    assert np.abs(photo.pixels.astype(int) - upright).max() <= loss
    write(tmp_path / f"written.{suffix}", photo)
    with Image.open(tmp_path / f"written.{suffix}") as again:
        tags = again.getexif()
        assert tags.get(ORIENTATION, 1) == 1 and tags[ARTIST] == artist
        details = tags.get_ifd(EXIF_IFD)
        assert details[0x9003] == "2023:04:05 06:07:08"
        assert 0xA002 not in details and 0xA003 not in details
        assert tags.get_ifd(GPS_IFD)[2] == (47.0, 8.0, 30.0)
    assert read(tmp_path / f"written.{suffix}").pixels.shape == upright.shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "webp", "tif", "tiff", "bmp"])
def test_what_is_written_is_read_again(
    tmp_path: Path, suffix: str, channels: int, dtype: type
) -> None:
    values = smooth(dtype, channels)
    grey = channels < 3
    pixels = values[..., : 1 if grey else 3]
    alpha = values[..., -1] if channels in (2, 4) else None
    icc = profile(b"GRAY" if grey else b"RGB ")
    photo = Photo(pixels, alpha, exif(1), icc)
    path = tmp_path / "new folder" / f"a.{suffix}"
    kind = suffix.lower()
    if alpha is not None and kind in ("jpg", "jpeg", "bmp"):
        with pytest.raises(ImageError, match="transparency.*--ext png"):
            write(path, photo)
        assert not path.exists()
        return
    write(path, photo)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if channels == 2 and dtype == np.uint16 and kind in ("tif", "tiff"):
        tifffile = pytest.importorskip("tifffile")  # Pillow does not read these
        np.testing.assert_array_equal(tifffile.imread(path), values)
        return
    again = read(path)
    deep = dtype == np.uint16 and kind in ("png", "tif", "tiff")
    if dtype == np.uint16 and not deep:
        pixels = np.rint(pixels / 257).astype(np.uint8)
        alpha = None if alpha is None else np.rint(alpha / 257).astype(np.uint8)
    if kind == "webp" and grey:
        pixels = pixels.repeat(3, 2)
    assert again.pixels.shape == pixels.shape and again.pixels.dtype == pixels.dtype
    loss = {"jpg": 3, "jpeg": 3, "webp": 16}.get(kind, 0)
    assert np.abs(again.pixels.astype(int) - pixels).max() <= loss
    if alpha is None:
        assert again.alpha is None
    else:
        np.testing.assert_array_equal(again.alpha, alpha)
    if kind == "bmp":
        assert again.icc is None and again.exif is None
    else:
        assert loaded(again.exif)[ARTIST] == SOMEBODY.decode("latin-1")
        assert again.icc == (None if kind == "webp" and grey else icc)
    if kind in ("jpg", "jpeg") and not grey:
        with Image.open(path) as picture:
            assert all(layer[1:3] == (1, 1) for layer in picture.layer)  # 4:4:4


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_lossy_results_lose_little_of_a_photo(tmp_path: Path, suffix: str) -> None:
    crop = skimage.data.astronaut()[:128, 150:300]
    write(tmp_path / f"a.{suffix}", Photo(crop))
    with Image.open(tmp_path / f"a.{suffix}") as written:
        assert peak_signal_noise_ratio(crop, np.asarray(written)) > 39  # dB; 37 at a quality of 90


def test_16_bit_files_are_those_of_other_programs(tmp_path: Path) -> None:
    values = noise(H, W, 4, dtype=np.uint16)
    for suffix in ("png", "tif"):
        write(tmp_path / f"a.{suffix}", Photo(values[..., :3], values[..., 3]))
        read_back = cv2.imread(str(tmp_path / f"a.{suffix}"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read_back[..., [2, 1, 0, 3]], values)


@pytest.mark.parametrize("name", ["a.jp2", "a", "a.gif"])
def test_write_to_another_suffix_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match="png"):
        write(tmp_path / name, Photo(noise(H, W, 3)))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix, side", [("webp", 16384), ("jpg", 65501)])
def test_write_of_more_than_the_format_holds(tmp_path: Path, suffix: str, side: int) -> None:
    with pytest.raises(ImageError, match=f"1x{side}.*--ext png"):
        write(tmp_path / f"a.{suffix}", Photo(np.zeros((side, 1, 3), np.uint8)))
    write(tmp_path / f"b.{suffix}", Photo(np.zeros((side - 1, 1, 3), np.uint8)))


def test_write_where_nobody_may_is_an_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        write(tmp_path / "file" / "a.png", Photo(noise(H, W, 3)))
