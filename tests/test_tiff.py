"""TIFFs of every depth, layout and compression, against what other programs write and read."""

import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, save, smooth
from numpy.typing import NDArray
from PIL import Image

from deploy.photos.encode import write
from utils.imaging.decode import Photo, read
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


def test_a_preview_in_place_of_its_picture_is_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(4, 6, 3), photometric="rgb", subfiletype=1)
        file.write(noise(16, 24, 3), photometric="rgb")
    photo = read(tmp_path / "a.tif")
    assert photo.pixels.shape == (4, 6, 3) and "a preview, the first page" in photo.note


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


def test_alpha_does_not_darken_colours(tmp_path: Path) -> None:
    rgba = noise(H, W, 4)
    for dtype in (np.uint8, np.uint16):
        values = rgba.astype(dtype) * (1 if dtype is np.uint8 else 257)
        tifffile.imwrite(tmp_path / "a.tif", values, extrasamples=["unassalpha"])
        np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), rgba[..., :3])


def test_alpha_beside_a_palette_and_multiplied_into_grey(tmp_path: Path) -> None:
    colours, index, alpha = noise(16, 3), noise(H, W) % 16, noise(H, W, seed=1)
    palette = Image.fromarray(index).convert("P")
    palette.putpalette(colours.tobytes())
    both = palette.convert("PA")
    both.putalpha(Image.fromarray(alpha))
    photo = read(save(tmp_path / "a.tif", both))
    np.testing.assert_array_equal(photo.pixels, colours[index])
    np.testing.assert_array_equal(photo.alpha, alpha)

    alpha = alpha | 128  # a level of grey is lost to less alpha
    grey = noise(H, W)
    values = np.dstack((np.rint(grey * (alpha / 255)).astype(np.uint8), alpha))
    tifffile.imwrite(
        tmp_path / "b.tif", values, photometric="minisblack", extrasamples=["assocalpha"]
    )
    photo = read(tmp_path / "b.tif")
    assert photo.pixels.shape == (H, W, 1)
    assert np.abs(photo.pixels[..., 0].astype(int) - grey).max() <= 2
    np.testing.assert_array_equal(photo.alpha, alpha)


@pytest.mark.parametrize("channels", [1, 3])
def test_our_own_16_bit_with_alpha_reads_back(tmp_path: Path, channels: int) -> None:
    pixels, alpha = noise(H, W, channels, dtype=np.uint16), noise(H, W, dtype=np.uint16, seed=1)
    write(tmp_path / "a.tif", Photo(pixels, alpha))
    photo = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(photo.pixels, pixels)
    np.testing.assert_array_equal(photo.alpha, alpha)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_for_people_alone(
    tmp_path: Path, dtype: type, orientation: int
) -> None:
    values = noise(H, W, 3, dtype=dtype)
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=[tag])
    turned = Image.fromarray((values >> (8 * values.itemsize - 8)).astype(np.uint8))
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), np.asarray(turned))
    steps = [[], [0], [3], [1], [5], [4], [6], [2]][orientation - 1]  # of Image.Transpose
    for step in steps:
        turned = turned.transpose(step)
    got = read(tmp_path / "a.tif").pixels
    np.testing.assert_array_equal(got >> (8 * got.itemsize - 8), np.asarray(turned))


@pytest.mark.parametrize(
    "values, options, name",
    [
        (np.zeros((H, W, 3), np.float32), {"photometric": "rgb"}, "32-bit float colour"),
        (
            np.zeros((H, W, 5), np.uint8),
            {"photometric": "separated", "extrasamples": ["unassalpha"]},
            "8-bit CMYK in 5 channels",
        ),
        (np.zeros((H, W, 3), np.int16), {"photometric": "rgb"}, "16-bit signed colour"),
        (np.zeros((H, W, 3), np.int8), {"photometric": "rgb"}, "8-bit signed colour"),
    ],
)
def test_what_is_not_read_is_named(
    tmp_path: Path, values: NDArray, options: dict, name: str
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    with pytest.raises(ImageError, match=f"cannot read a TIFF of {name}.*: save it as .*PNG"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("code, name", [(50000, "ZSTD"), (50001, "WebP"), (52546, "JPEG XL")])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_compression_that_is_not_read_is_named(
    tmp_path: Path, code: int, name: str, dtype: type
) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(H, W, 3, dtype=dtype), photometric="rgb")
    data = (tmp_path / "a.tif").read_bytes()
    at = data.index(struct.pack("<HHI", 259, 3, 1)) + 8
    (tmp_path / "a.tif").write_bytes(data[:at] + struct.pack("<H", code) + data[at + 2 :])
    with pytest.raises(ImageError, match=f"cannot read .* compressed as {name}"):
        read(tmp_path / "a.tif")


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_missing_strips_are_an_error(tmp_path: Path, compression: str | None) -> None:
    values = noise(H, W, 2, dtype=np.uint16)
    options = {"photometric": "minisblack", "extrasamples": ["unassalpha"], "rowsperstrip": 10}
    tifffile.imwrite(tmp_path / "a.tif", values, compression=compression, **options)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data[:-100])
    with pytest.raises(ImageError, match="expected a whole"):
        read(tmp_path / "a.tif")


def test_a_chain_of_pages_is_not_followed_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(H, W))
    data = path.read_bytes()
    at = struct.unpack("<I", data[4:8])[0]
    count = struct.unpack("<H", data[at : at + 2])[0]
    end = at + 2 + 12 * count
    page = data[at:end]
    pages = b"".join(
        page + struct.pack("<I", len(data) + (i + 1) * (len(page) + 4)) for i in range(12000)
    )
    path.write_bytes(data[:end] + struct.pack("<I", len(data)) + data[end + 4 :] + pages)
    photo = read(path)
    assert photo.pixels.shape == (H, W, 1) and photo.note == "first of 10000 frames or more"
    path.write_bytes(data[:end] + struct.pack("<I", at) + data[end + 4 :])  # a circle
    assert read(path).note == ""


@pytest.mark.parametrize("kind, note", [(0, "first of 2 frames"), (1, "")])
def test_previews_are_no_frames(tmp_path: Path, kind: int, note: str) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(H, W, 3), photometric="rgb")
        file.write(noise(H // 2, W // 2, 3), photometric="rgb", subfiletype=kind)
    assert read(tmp_path / "a.tif").note == note


def test_further_channels_are_left_out_with_a_note(tmp_path: Path) -> None:
    for dtype in (np.uint8, np.uint16):
        values = noise(H, W, 5, dtype=dtype)
        extra = ["unassalpha", "unspecified"]
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=extra)
        photo = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(photo.pixels, values[..., :3])
        np.testing.assert_array_equal(photo.alpha, values[..., 3])
        assert photo.note == "1 further channels are left out"


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


def test_the_resolution_of_a_turned_tiff_is_one_in_all_places(tmp_path: Path) -> None:
    tags = {274: 6, 282: 100, 283: 200, 296: 2, 271: "maker"}
    Image.fromarray(noise(H, W, 3)).save(tmp_path / "a.tif", tiffinfo=tags)
    photo = read(tmp_path / "a.tif")
    assert photo.dpi == (200, 100) and photo.exif
    exif = Image.Exif()
    exif.load(photo.exif)
    assert (exif[282], exif[283]) == photo.dpi


def test_the_one_order_and_size_that_pillow_does_not_know_is_named(tmp_path: Path) -> None:
    for order, big in (("<", False), (">", False), ("<", True), (">", True)):
        tifffile.imwrite(tmp_path / "a.tif", noise(H, W, 3), byteorder=order, bigtiff=big)
        if (order, big) != (">", True):
            np.testing.assert_array_equal(read(tmp_path / "a.tif").pixels, noise(H, W, 3))
            continue
        said = "8-bit colour in 3 channels, BigTIFF with the high byte first: save it as PNG"
        with pytest.raises(ImageError, match=said):
            read(tmp_path / "a.tif")
