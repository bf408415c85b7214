"""Any picture: what a file holds is what is read, whatever its mode, depth and format."""

import io
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import H, W, exif, noise, png, profile, repeated, save, smooth
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from deploy.photos.enlarge import enlarge
from utils.imaging.colour import ADOBE_RGB, Space, make_profile
from utils.imaging.decode import Photo, read


def check(path: Path, pixels: NDArray, alpha: NDArray | None = None) -> Photo:
    """The file is these pixels; four times as large they are the same, repeated."""
    photo = read(path)
    large = enlarge(photo, repeated)
    for got, more, expected in (
        (photo.pixels, large.pixels, pixels),
        (photo.alpha, large.alpha, alpha),
    ):
        if expected is None:
            assert got is None and more is None
            continue
        assert got is not None and got.dtype == more.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)
        expected = expected.repeat(4, 0).repeat(4, 1)
        assert more.shape == expected.shape
        if alpha is not None and expected.ndim == 3:  # what nobody sees has another colour
            seen = alpha.repeat(4, 0).repeat(4, 1) > 0
            more, expected = more[seen], expected[seen]
        np.testing.assert_array_equal(more, expected)
    return photo


LOSSLESS = ("png", "tif", "bmp", "webp")


@pytest.mark.parametrize(
    "mode, suffix",
    [
        (mode, suffix)
        for mode, suffixes in {
            "L": ("png", "tif", "bmp"),
            "1": ("png", "tif", "bmp"),
            "LA": ("png", "tif"),
            "RGB": LOSSLESS,
            "RGBA": ("png", "tif", "webp"),
            "P": ("png", "tif", "bmp", "gif"),
            "I;16": ("png", "tif"),
            "I;16B": ("tif",),
            "LAB": ("tif",),
        }.items()
        for suffix in suffixes
    ],
)
def test_every_mode_in_every_format_is_read(tmp_path: Path, mode: str, suffix: str) -> None:
    rgba = noise(H, W, 4)
    rgba[0, :3, 3] = 0, 255, 0
    if mode.startswith("I;16"):
        deep = noise(H, W, dtype=np.uint16)
        picture = Image.fromarray(deep)
        if mode == "I;16B":
            picture = Image.frombytes(mode, (W, H), deep.astype(">u2").tobytes())
        check(save(tmp_path / f"a.{suffix}", picture), deep[..., None])
        return
    if mode == "LA":
        picture = Image.fromarray(rgba[..., 2:])
    elif mode == "RGBA":
        picture = Image.fromarray(rgba)
    elif mode == "LAB":
        picture = Image.merge(mode, [Image.new("L", (W, H), v) for v in (128, 128, 128)])
    else:
        picture = Image.fromarray(rgba[..., :3]).convert(mode)
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", picture, **options)
    if mode == "LAB":  # L* of 50 is 119 in sRGB
        assert np.abs(read(path).pixels.astype(int) - 119).max() <= 1
        return
    if mode == "LA":
        check(path, rgba[..., 2:3], rgba[..., 3])
    elif mode == "RGBA":
        check(path, rgba[..., :3], rgba[..., 3])
    else:
        grey = mode in ("1", "L")
        expected = np.asarray(picture.convert("L" if grey else "RGB"))
        check(path, expected[..., None] if grey else expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_palette_with_a_transparent_entry(tmp_path: Path, suffix: str) -> None:
    rgb = noise(H, W, 3)
    picture = Image.fromarray(rgb).quantize(16)
    index = np.asarray(picture).copy()
    picture.info["transparency"] = int(index[2, 3])
    photo = check(
        save(tmp_path / f"a.{suffix}", picture, transparency=int(index[2, 3])),
        np.asarray(picture.convert("RGBA"))[..., :3],
        np.where(index == index[2, 3], 0, 255).astype(np.uint8),
    )
    assert photo.note == ""


def test_palette_with_an_alpha_for_each_entry(tmp_path: Path) -> None:
    index = noise(H, W) % 4
    picture = Image.fromarray(index).convert("P")
    colours = noise(4, 3)
    picture.putpalette(colours.tobytes())
    alphas = bytes([0, 80, 160, 255])
    path = save(tmp_path / "a.png", picture, transparency=alphas)
    check(path, colours[index], np.frombuffer(alphas, np.uint8)[index])


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_one_grey_of_a_png_is_transparent(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (H, 16))
    deep = np.uint16 if bits == 16 else np.uint8
    packed = values.astype(deep)
    if bits < 8:
        each = np.unpackbits(packed[..., None], axis=2)[..., -bits:]
        packed = np.packbits(each.reshape(H, -1), axis=1)
    key = int(values[0, 0])
    path = tmp_path / "a.png"
    path.write_bytes(png(packed, 0, bits, (b"tRNS", struct.pack(">H", key))))
    most = np.iinfo(deep).max
    pixels = (values * (most // (2**bits - 1))).astype(deep)
    check(path, pixels[..., None], np.where(values == key, 0, most).astype(deep))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_one_colour_of_a_png_is_transparent(tmp_path: Path, dtype: type) -> None:
    rgb = noise(H, W, 3, dtype=dtype)
    rgb[5] = rgb[4]
    key = struct.pack(">HHH", *rgb[4, 4].tolist())
    path = tmp_path / "a.png"
    path.write_bytes(png(rgb, 2, 8 * rgb.itemsize, (b"tRNS", key)))
    hidden = (rgb == rgb[4, 4]).all(2)
    most = np.iinfo(dtype).max
    check(path, rgb, np.where(hidden, 0, most).astype(dtype))
    assert hidden.sum() == 2


@pytest.mark.parametrize("kind, channels", [(0, 1), (4, 2), (2, 3), (6, 4)])
def test_16_bit_png(tmp_path: Path, kind: int, channels: int) -> None:
    values = noise(H, W, channels, dtype=np.uint16)
    path = tmp_path / "a.png"
    path.write_bytes(png(values, kind, 16))
    colours = 1 if channels < 3 else 3
    check(path, values[..., :colours], values[..., colours] if channels in (2, 4) else None)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_of_opencv(tmp_path: Path, suffix: str, channels: int) -> None:
    values = noise(H, W, channels, dtype=np.uint16)
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(cv2.imencode(f".{suffix}", values)[1].tobytes())
    check(path, values[..., 2::-1], values[..., 3] if channels == 4 else None)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff(tmp_path: Path, order: str, compression: str | None) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = noise(H, W, 4, dtype=np.uint16)
    values[0, 0] = 5, 6, 7, 0
    path = tmp_path / "a.tif"

    def store(pixels: NDArray, photometric: str, **more: object) -> Path:
        tifffile.imwrite(
            path, pixels, byteorder=order, compression=compression, photometric=photometric, **more
        )
        return path

    check(store(values[..., :3], "rgb"), values[..., :3])
    check(store(values, "rgb", extrasamples=["unassalpha"]), values[..., :3], values[..., 3])
    if compression is None:  # which Pillow before 11.1 reads alone
        check(store(values, "rgb", extrasamples=["unspecified"]), values[..., :3])
    check(store(values[..., 0], "minisblack"), values[..., :1])
    if order == "<":  # Pillow knows no other
        check(store(values[..., 0], "miniswhite"), 65535 - values[..., :1])
    alpha = values[..., 3:].astype(float) / 65535
    multiplied = np.dstack((np.rint(values[..., :3] * alpha).astype(np.uint16), values[..., 3]))
    photo = read(store(multiplied, "rgb", extrasamples=["assocalpha"]))
    np.testing.assert_array_equal(photo.alpha, values[..., 3])
    error = np.abs(photo.pixels.astype(int) - values[..., :3])  # half a level, over alpha
    assert (error <= 1 + 0.5 / np.maximum(alpha, 1e-9)).all()


@pytest.mark.parametrize(
    "values, expected, note",
    [
        (np.float32([[0, 0.5, 1]]), [[0, 32768, 65535]], ""),
        (np.float32([[-1, 0, 3]]), [[0, 16384, 65535]], "-1 to 3"),
        (np.int32([[0, 300, 65535]]), [[0, 300, 65535]], ""),
        (np.int32([[-5, 0, 70000]]), [[0, 5, 65535]], "-5 to 70000"),
    ],
)
def test_32_bit_grey_becomes_16(tmp_path: Path, values: NDArray, expected: list, note: str) -> None:
    photo = read(save(tmp_path / "a.tif", Image.fromarray(values)))
    assert photo.pixels.dtype == np.uint16 and photo.pixels[..., 0].tolist() == expected
    assert note in photo.note and bool(note) == bool(photo.note)


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_srgb(tmp_path: Path, suffix: str) -> None:
    rgb = smooth()
    picture = Image.fromarray(rgb).convert("CMYK")
    path = save(tmp_path / f"a.{suffix}", picture, **({"quality": 100} if suffix == "jpg" else {}))
    assert np.abs(read(path).pixels.astype(int) - rgb).max() <= 4  # JPEG's loss


def test_cmyk_goes_through_its_profile_which_is_then_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def convert(picture: Image.Image, *arguments: object, outputMode: str) -> Image.Image:
        asked.append(arguments)
        return Image.new(outputMode, picture.size, (1, 2, 3))

    picture = Image.new("CMYK", (W, H), (9, 8, 7, 6))
    path = save(tmp_path / "a.jpg", picture, icc_profile=profile(b"CMYK"))
    photo = read(path)  # no CMYK profile at all, for all it says: converted without
    assert photo.icc is None and photo.pixels.shape == (H, W, 3)
    monkeypatch.setattr(ImageCms, "profileToProfile", convert)
    assert (read(path).pixels == (1, 2, 3)).all() and len(asked) == 1


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_profile_of_other_pixels_or_a_damaged_one_is_left_behind(
    tmp_path: Path, suffix: str
) -> None:
    grey, rgb = Image.new("L", (W, H)), Image.new("RGB", (W, H))
    path = tmp_path / f"a.{suffix}"
    assert read(save(path, rgb, icc_profile=profile())).icc == profile()
    other = read(save(path, rgb, icc_profile=profile(b"GRAY")))
    assert other.icc is None and "its colour profile is not one of RGB" in other.note
    assert read(save(path, rgb, icc_profile=b"no profile" * 20)).icc is None
    if suffix == "webp":  # which has no grey
        return
    broken = bytearray(profile())
    broken[128:132] = bytes(4)
    other = read(save(path, grey, icc_profile=bytes(broken)))
    assert other.icc is None and "its colour profile is not one of grey" in other.note


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_grey_keeps_the_curve_of_a_profile_of_rgb(tmp_path: Path, suffix: str) -> None:
    """As converters leave it; what a viewer makes of it is the same."""
    icc = make_profile(Space(ADOBE_RGB.corners, (1.8,)))
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    own = read(save(tmp_path / f"a.{suffix}", Image.fromarray(values), icc_profile=icc)).icc
    assert own is not None and own[16:20] == b"GRAY"
    shown = []
    for data, picture in ((icc, np.stack([values] * 3, 2)), (own, values)):
        kind = Image.fromarray(picture)
        source = ImageCms.ImageCmsProfile(io.BytesIO(data))
        srgb = ImageCms.createProfile("sRGB")
        shown.append(ImageCms.profileToProfile(kind, source, srgb, outputMode="RGB"))
    first, second = (np.asarray(picture).astype(int) for picture in shown)
    assert np.abs(first - second).max() <= 1
    assert np.abs(first - np.stack([values] * 3, 2)).max() > 10  # it matters


@pytest.mark.parametrize(
    "data", [b"II*\0\xff\xff\xff\x7f", b"MM", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
def test_a_picture_with_damaged_exif_is_read(tmp_path: Path, data: bytes) -> None:
    picture = Image.fromarray(noise(H, W, 3))
    for suffix in ("png", "webp"):
        photo = read(save(tmp_path / f"a.{suffix}", picture, exif=data))
        assert photo.pixels.shape == (H, W, 3) and photo.exif is None


def test_exif_that_no_jpeg_can_hold_is_left_out_with_a_note(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010E] = "long " * 20000
    photo = read(save(tmp_path / "a.png", Image.new("L", (W, H)), exif=tags.tobytes()))
    assert photo.exif is None and "EXIF" in photo.note


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(noise(H, W, 3)), exif=exif())
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [path] * 40))
    assert list(warnings.filters) == before


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_bits_of_an_avif_that_are_lost_are_told(tmp_path: Path, bits: int) -> None:
    if not features.check("avif"):
        pytest.skip("needs a Pillow that reads AVIF")
    pixels = smooth().astype(np.uint16 if bits > 8 else np.uint8)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 100]
    try:
        whole, data = cv2.imencode(".avif", pixels << (bits - 8), options)
    except cv2.error:
        whole = False
    if not whole:
        pytest.skip("needs an OpenCV that writes AVIF")
    (tmp_path / "a.avif").write_bytes(data.tobytes())
    photo = read(tmp_path / "a.avif")
    assert photo.pixels.dtype == np.uint8
    assert photo.note == (f"its {bits} bits were read as 8" if bits > 8 else "")


def test_ratings_are_kept(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x4746], tags[0x4749] = 5, 99
    photo = read(save(tmp_path / "a.jpg", Image.fromarray(noise(H, W, 3)), exif=tags.tobytes()))
    kept = Image.Exif()
    kept.load(photo.exif or b"")
    assert (kept[0x4746], kept[0x4749]) == (5, 99)
