"""Pixels of TIFFs of every depth, layout and compression, against other programs."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, save, smooth
from PIL import Image

from utils.imaging.decode import read
from utils.imaging.images import ImageError, read_rgb

tifffile = pytest.importorskip("tifffile")
H, W = 37, 53


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.uint64])
def test_small_counts_of_many_bits_are_not_black(tmp_path: Path, dtype: type) -> None:
    counts = np.array([[0, 1000], [65535, 4000]], dtype)
    tifffile.imwrite(tmp_path / "a.tif", counts)
    np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels[..., 0], counts)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "predictor": True}])
def test_signed_grey_of_8_bits_does_not_wrap_around(tmp_path: Path, options: dict) -> None:
    ramp = np.arange(-128, 128, dtype=np.int8).reshape(8, 32)
    tifffile.imwrite(tmp_path / "a.tif", ramp, **options)
    photo = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo.pixels.ravel(), 257 * np.arange(256))
    assert photo.note == "its values, -128 to 127, became 0 to 65535"
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif")[..., 1].ravel(), np.arange(256))
    tifffile.imwrite(tmp_path / "a.tif", ramp[4:], photometric="minisblack", **options)
    photo = read(tmp_path / "a.tif")
    assert photo.pixels.dtype == np.uint8 and photo.note == ""
    np.testing.assert_array_equal(photo.pixels[..., 0], ramp[4:])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("compression, predictor", [(None, False), ("zlib", True), ("lzma", False)])
@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_every_layout_of_16_and_32_bits(
    tmp_path: Path,
    order: str,
    tile: tuple[int, int] | None,
    planes: str,
    compression: str | None,
    predictor: bool,
    dtype: type,
) -> None:
    values = noise(H, W, 4, dtype=dtype)
    expected = (values >> (8 * values.itemsize - 16)).astype(np.uint16)
    for channels, kind, alpha in (
        (1, "grey", ""),
        (2, "grey", "a"),
        (3, "rgb", ""),
        (4, "rgb", "a"),
    ):
        pixels = values[..., :channels] if channels > 1 else values[..., 0]
        options = {"extrasamples": ["unassalpha"]} if alpha else {}
        options |= {"tile": tile} if tile else {"rowsperstrip": 10}
        options |= {"planarconfig": planes} if channels > 1 else {}
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.moveaxis(pixels, 2, 0) if planes == "separate" and channels > 1 else pixels,
            byteorder=order,
            compression=compression,
            predictor=predictor,
            photometric="minisblack" if kind == "grey" else "rgb",
            **options,
        )
        photo = read(tmp_path / "a.tif")
        colours = channels - bool(alpha)
        np.testing.assert_array_equal(photo.pixels, expected[..., :colours])
        assert photo.pixels.dtype == np.uint16 and photo.note == ""
        if alpha:
            np.testing.assert_array_equal(photo.alpha, expected[..., colours])
        repeated = expected[..., :colours].repeat(3 // colours, 2) >> 8
        np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), repeated)


def has_imagemagick() -> bool:
    """Whether `convert` is ImageMagick's: Windows has another of the name, and so have others."""
    if not shutil.which("convert"):
        return False
    said = subprocess.run(
        ["convert", "--version"], capture_output=True, text=True, errors="replace"
    )
    return said.stdout.startswith("Version: ImageMagick")


@pytest.mark.skipif(not has_imagemagick(), reason="needs ImageMagick")
@pytest.mark.parametrize("depth", [2, 4, 8, 12, 14, 16])
@pytest.mark.parametrize("compression", ["None", "LZW", "RLE"])
def test_as_imagemagick_writes_and_reads_it(tmp_path: Path, depth: int, compression: str) -> None:
    source, path = save(tmp_path / "a.png", Image.fromarray(smooth())), tmp_path / "a.tif"
    for colours in ("Grayscale", "TrueColor"):
        for option in ("-endian MSB", "-interlace plane", "-define tiff:fill-order=lsb"):
            options = f"-type {colours} -depth {depth} -compress {compression} {option}".split()
            subprocess.run(["convert", source, *options, path], check=True)
            raw = subprocess.run(
                ["convert", path, "-depth", "16", "-endian", "LSB", "rgb:-"],
                check=True,
                capture_output=True,
            ).stdout
            expected = np.frombuffer(raw, "<u2").reshape(64, 96, 3)
            pixels = read(path).pixels
            scale = 1 if pixels.dtype == np.uint16 else 257
            assert np.abs(pixels * np.float64(scale) - expected).max() <= 1  # rounding


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_grey(tmp_path: Path, dtype: type) -> None:
    values = (noise(H, W) / 255).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values)
    got = read(tmp_path / "a.tif").pixels[..., 0]
    assert got.dtype == np.uint16 and np.abs(got - values.astype(float) * 65535).max() <= 0.51
    tifffile.imwrite(tmp_path / "a.tif", values * 3)
    assert "became 0 to 65535" in read(tmp_path / "a.tif").note


def test_float_grey_as_differences_of_whole_numbers(tmp_path: Path) -> None:
    """As libtiff stores it where it is told predictor 2."""
    values = noise(H, W).astype(np.float32) / 255
    options = {"compression": "tiff_lzw", "tiffinfo": {317: 2}}
    path = save(tmp_path / "a.tif", Image.fromarray(values), **options)
    with Image.open(path) as picture:
        assert picture.tag_v2[317] == 2
        np.testing.assert_array_equal(np.asarray(picture), values)
    np.testing.assert_array_equal(read(path).pixels[..., 0], np.rint(values * 65535))


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_missing_strips_are_an_error(tmp_path: Path, compression: str | None) -> None:
    values = noise(H, W, 2, dtype=np.uint16)
    options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "rowsperstrip": 10}
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, **options)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:-100])
    with pytest.raises(ImageError, match="expected a whole"):
        read(tmp_path / "a.tif")


def set_tags(file: Path, tags: dict[int, int]) -> None:
    """Change single numbers in the first page of a little-endian TIFF."""
    data = bytearray(file.read_bytes())
    with tifffile.TiffFile(file) as tif:
        for tag, value in tags.items():
            at = tif.pages[0].tags[tag].valueoffset
            data[at : at + 2] = struct.pack("<H", value)
    file.write_bytes(data)


@pytest.mark.parametrize(("kind", "note"), [("i", "24-bit signed"), ("f", "24-bit float")])
def test_24_bits_are_read_where_they_are_whole_numbers(
    tmp_path: Path, kind: str, note: str
) -> None:
    file = tmp_path / "a.tif"
    values = noise(H, W * 3)  # three bytes a value
    Image.fromarray(values).save(file, tiffinfo={339: 1})
    set_tags(file, {256: W, 258: 24})
    as_words = values.reshape(H, W, 3).astype(np.uint32)
    expected = as_words[..., 2] << 8 | as_words[..., 1]
    np.testing.assert_array_equal(read(file).pixels[..., 0], expected)
    set_tags(file, {339: {"i": 2, "f": 3}[kind]})
    with pytest.raises(ImageError, match=note):
        read(file)
    Image.fromarray(noise(H, W)).save(file, tiffinfo={339: 3})
    with pytest.raises(ImageError, match="8-bit float grey"):
        read(file)


def test_a_strip_of_more_bytes_than_pillow_takes_pixels_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2 * H * W)  # the picture fits, not its bytes
    pixels = noise(H, W, 3, dtype=np.uint16)
    as_bytes = Image.fromarray(pixels.view(np.uint8).reshape(H, -1))
    as_bytes.save(tmp_path / "bytes.tif", compression="tiff_lzw", tiffinfo={278: H, 277: 1})
    set_tags(tmp_path / "bytes.tif", {256: W, 258: 16, 277: 3, 262: 2})
    with pytest.raises(ImageError, match=f"a TIFF's strip of {pixels.nbytes} bytes"):
        read(tmp_path / "bytes.tif")
    monkeypatch.undo()
    np.testing.assert_array_equal(read(tmp_path / "bytes.tif").pixels, pixels)
