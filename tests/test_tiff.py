"""Pages, alpha, orientation and tags of TIFFs, and kinds of them that are not read."""

import struct
from pathlib import Path

import numpy as np
import pytest
from image_files import noise, save
from numpy.typing import NDArray
from PIL import Image

from deploy.photos.encode import write
from utils.imaging.decode import Photo, read
from utils.imaging.images import ImageError, read_rgb

tifffile = pytest.importorskip("tifffile")
H, W = 37, 53


def test_a_preview_in_place_of_its_picture_is_said(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(noise(4, 6, 3), photometric="rgb", subfiletype=1)
        file.write(noise(16, 24, 3), photometric="rgb")
    photo = read(tmp_path / "a.tif")
    assert photo.pixels.shape == (4, 6, 3) and "a preview, the first page" in photo.note


def test_alpha_does_not_darken_colours(tmp_path: Path) -> None:
    rgba = noise(H, W, 4)
    for dtype in (np.uint8, np.uint16):
        values = rgba.astype(dtype) * (1 if dtype is np.uint8 else 257)
        tifffile.imwrite(tmp_path / "a.tif", values, extrasamples=["unassalpha"])
        np.testing.assert_array_equal(read_rgb(tmp_path / "a.tif"), rgba[..., :3])


@pytest.mark.parametrize("channels", [1, 3])
def test_alpha_in_a_plane_of_its_own(tmp_path: Path, channels: int) -> None:
    for dtype in (np.uint8, np.uint16):
        planes = noise(channels + 1, H, W, dtype=dtype)
        kind = "rgb" if channels == 3 else "minisblack"
        tifffile.imwrite(
            tmp_path / "a.tif",
            planes,
            photometric=kind,
            planarconfig="separate",
            extrasamples=["unassalpha"],
        )
        photo = read(tmp_path / "a.tif")
        np.testing.assert_array_equal(photo.pixels, planes[:-1].transpose(1, 2, 0))
        np.testing.assert_array_equal(photo.alpha, planes[-1])


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
