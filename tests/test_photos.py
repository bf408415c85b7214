"""Any picture: what a file holds is what is read, enlarged and written; damage is an ImageError."""

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from deploy.photos import decode
from deploy.photos.decode import Photo, read
from deploy.photos.encode import write
from deploy.photos.enlarge import enlarge
from utils.images import ImageError

H, W = 9, 14
SOMEBODY = "José ©".encode()
ARTIST, ORIENTATION, EXIF_IFD, GPS_IFD = 0x013B, 0x0112, 0x8769, 0x8825


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> NDArray:
    """Independent random values: every misplaced one shows."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(dtype: type = np.uint8, channels: int = 3) -> NDArray:
    """(64, 96, C) that lossy formats keep within a few levels."""
    y, x = np.mgrid[:64, :96] / 96
    planes = [0.1 + 0.8 * x, 0.9 - 0.8 * y, 0.3 + 0.5 * x * y, 0.2 + 0.4 * x + 0.4 * y]
    return np.rint(np.dstack(planes[:channels]) * np.iinfo(dtype).max).astype(dtype)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def png(pixels: NDArray, kind: int, bits: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of colour type `kind`, written by its specification; (H, bytes or values)."""
    rows = pixels.astype(">u2") if bits == 16 else pixels
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    width = pixels.shape[1] * 8 // bits if bits < 8 else pixels.shape[1]
    header = struct.pack(">IIBBBBB", width, pixels.shape[0], bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def profile(colours: bytes = b"RGB ") -> bytes:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data[:16] + colours + data[20:]


def exif(orientation: int = 6) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION], tags[ARTIST] = orientation, SOMEBODY
    tags[EXIF_IFD] = {0xA002: W, 0xA003: H, 0x9003: "2023:04:05 06:07:08"}
    tags[GPS_IFD] = {1: "N", 2: (47.0, 8.0, 30.0)}
    return tags.tobytes()


def loaded(data: bytes | None) -> Image.Exif:
    assert data is not None
    tags = Image.Exif()
    tags.load(data)
    return tags


def repeated(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place of the network: every pixel sixteen times."""
    assert rgb.dtype == np.float32 and rgb.shape[2] == 3 and rgb.min() >= 0 and rgb.max() <= 1
    return rgb.repeat(4, 0).repeat(4, 1)


def bicubic(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
    """In place of the network: blurs and rings."""
    return cv2.resize(rgb, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)


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
    with pytest.raises(ImageError, match="interleaved"):
        read(store(values[..., :3].transpose(2, 0, 1), "rgb", planarconfig="separate"))


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


def test_16_bit_files_are_those_of_other_programs(tmp_path: Path) -> None:
    values = noise(H, W, 4, dtype=np.uint16)
    for suffix in ("png", "tif"):
        write(tmp_path / f"a.{suffix}", Photo(values[..., :3], values[..., 3]))
        read_back = cv2.imread(str(tmp_path / f"a.{suffix}"), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(read_back[..., [2, 1, 0, 3]], values)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_a_profile_of_other_pixels_or_a_damaged_one_is_left_behind(
    tmp_path: Path, suffix: str
) -> None:
    grey, rgb = Image.new("L", (W, H)), Image.new("RGB", (W, H))
    path = tmp_path / f"a.{suffix}"
    assert read(save(path, rgb, icc_profile=profile())).icc == profile()
    assert read(save(path, rgb, icc_profile=profile(b"GRAY"))).icc is None
    assert read(save(path, rgb, icc_profile=b"no profile" * 20)).icc is None
    assert suffix == "webp" or read(save(path, grey, icc_profile=profile())).icc is None


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


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_read_with_a_note(tmp_path: Path, suffix: str) -> None:
    frames = [
        Image.new("RGB", (W, H), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(
        tmp_path / f"a.{suffix}", frames[0], save_all=True, append_images=frames[1:], **options
    )
    photo = read(path)
    assert photo.note == "first of 3 frames" == enlarge(photo, repeated).note
    assert (photo.pixels == (255, 0, 0)).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [(200, 40, 90), (255,)])
def test_hidden_colours_do_not_shine_through(dtype: type, colour: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    levels = np.iinfo(dtype).max
    y, x = np.mgrid[:50, :71]
    disc = np.hypot(y - 20, x - 30)
    alpha = np.clip(15 - disc, 0, 1) * levels
    alpha[40:45, 60] = levels  # a line, and a single faint pixel in nothing
    alpha[2, 68] = 1
    alpha = np.rint(alpha).astype(dtype)
    flat = (np.array(colour) * (levels // 255)).astype(dtype)
    pixels = np.broadcast_to(flat, (*alpha.shape, len(colour))).copy()
    hidden = alpha == 0
    pixels[hidden] = rng.integers(0, levels + 1, (hidden.sum(), len(colour)))
    large = enlarge(Photo(pixels, alpha), bicubic)
    assert large.alpha is not None and large.alpha.dtype == dtype
    seen = large.alpha > 0
    assert seen.sum() >= 16 * (alpha > levels // 2).sum()
    assert np.abs(large.pixels[seen].astype(int) - flat).max() <= 1
    # Opaque stays opaque and nothing nothing, where all is so around.
    around = np.ones((3, 3), np.uint8)
    opaque = cv2.erode(alpha, around).repeat(4, 0).repeat(4, 1) == levels
    nothing = cv2.dilate(alpha, around).repeat(4, 0).repeat(4, 1) == 0
    assert (large.alpha[opaque] == levels).all() and (large.alpha[nothing] == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (1, 40000), (40000, 1), (33, 65)])
def test_hidden_colours_at_awkward_sizes(size: tuple[int, int]) -> None:
    alpha = np.zeros(size, np.uint8)
    pixels = noise(*size, 3)
    assert enlarge(Photo(pixels, alpha), repeated).pixels.shape == (4 * size[0], 4 * size[1], 3)
    alpha[-1, -1] = 255
    large = enlarge(Photo(pixels, alpha), repeated)
    # One pixel to see: all of them take its colour.
    assert (np.abs(large.pixels.astype(int) - pixels[-1, -1]) <= 1).all()


def test_opaque_alpha_is_not_sent_through_the_network_and_can_be_a_jpeg(tmp_path: Path) -> None:
    calls = []

    def restore(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        calls.append(rgb.shape)
        return repeated(rgb)

    photo = enlarge(Photo(noise(H, W, 3), np.full((H, W), 255, np.uint8)), restore)
    assert len(calls) == 1 and photo.alpha is not None and photo.alpha.shape == (4 * H, 4 * W)
    write(tmp_path / "a.jpg", photo)
    assert read(tmp_path / "a.jpg").alpha is None


def test_what_the_network_makes_is_clamped_and_rounded() -> None:
    values = np.float32([-0.2, 0.4 / 255, 0.6 / 255, 1.5])

    def restore(rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.broadcast_to(values[:, None], (4, 4, 3)).swapaxes(0, 1).copy()

    for channels in (1, 3):
        large = enlarge(Photo(np.zeros((1, 1, channels), np.uint8)), restore)
        assert large.pixels.shape == (4, 4, channels)
    with pytest.raises(ValueError, match="expected"):
        enlarge(Photo(np.zeros((1, 2, 3), np.uint8)), restore)


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


def check_refused(path: Path, match: str = "expected") -> None:
    with pytest.raises(ImageError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("no picture at all\n" * 50)
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "folder.png").mkdir()
    for name in (
        "empty.png",
        "text.jpg",
        "loop.png",
        "folder.png",
        "missing.png",
        "text.jpg/a.png",
    ):
        check_refused(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.png")
    check_refused(tmp_path / "pipe.png", "folder or device")


@pytest.mark.parametrize("side", [8193, 2**20, 2**31 - 1])
def test_absurd_sizes_are_refused_before_anything_is_decoded(tmp_path: Path, side: int) -> None:
    path = tmp_path / "a.png"
    small = png(noise(1, 1, 3), 2, 8)
    header = struct.pack(">II", side, 8192) + small[24:29]
    checksum = struct.pack(">I", zlib.crc32(b"IHDR" + header))
    path.write_bytes(small[:16] + header + checksum + small[33:])
    check_refused(path, "expected at most 67108864 pixels")


def test_absurd_webp_is_refused_before_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    path = tmp_path / "a.webp"
    for body in (
        b"VP8X" + bytes(8) + b"\xff\xff\0\xff\xff\0",
        b"VP8L" + bytes(4) + b"\x2f\xff\xff\xff\x0f" + bytes(9),
        b"VP8 " + bytes(10) + b"\xff\x3f\xff\x3f",
    ):
        path.write_bytes(b"RIFF" + bytes(4) + b"WEBP" + body)
        check_refused(path, "expected at most 67108864 pixels")


def small_files() -> dict[str, bytes]:
    """One of each kind, with all that may be in it."""
    rgb, frames = (
        Image.fromarray(noise(31, 37, 3)),
        [Image.new("RGB", (8, 8), c) for c in "rgb" for c in ("red", "blue")],
    )
    files = {}
    extras = {"exif": exif(), "icc_profile": profile()}
    for name, picture, options in (
        ("png", rgb, extras),
        ("jpg", rgb, extras),
        ("webp", rgb, extras),
        ("jpg", rgb, {"progressive": True}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True}),
        ("tif", rgb, extras),
        ("tif", rgb, {"compression": "tiff_lzw"}),
        ("tif", rgb, {"compression": "jpeg"}),
        ("bmp", rgb, {}),
        ("bmp", rgb.quantize(16), {}),
        ("gif", rgb, {}),
        ("gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("png", rgb.quantize(16), {"transparency": 3}),
        ("png", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("tif", frames[0], {"save_all": True, "append_images": frames[1:]}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions()[f".{name}"], **options)
        files[f"{len(files)}.{name}"] = buffer.getvalue()
    files["deep.png"] = png(noise(H, W, 4, dtype=np.uint16), 6, 16)
    files["deep.tif"] = cv2.imencode(".tif", noise(H, W, 3, dtype=np.uint16))[1].tobytes()
    return files


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_cut_files_are_image_errors(tmp_path: Path, share: float) -> None:
    for name, data in small_files().items():
        if name in ("12.gif", "14.png", "15.tif"):
            continue  # of several frames the first may be whole
        path = tmp_path / name
        path.write_bytes(data[: int(share * len(data))])
        check_refused(path)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some damage: bits, a header's fields, an end, or pieces changed about."""
    changed = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            changed[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        return data[: rng.integers(1, len(data))]
    elif kind == 2:
        at = rng.integers(0, min(64, len(data)))
        size = rng.choice([1, 2, 4])
        changed[at : at + size] = rng.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * int(size)
    elif kind == 3:
        a, b, c = sorted(rng.integers(0, len(data), 3))
        return data[:a] + data[b:c] + data[a:b] + data[c:]
    else:
        a, b = sorted(rng.integers(0, len(data), 2))
        return data[:a] + data[a:b] * int(rng.integers(0, 3)) + data[b:]
    return bytes(changed)


def test_damaged_files_are_photos_or_image_errors(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX")
    rng = np.random.default_rng(2023)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    files = list(small_files().items())
    outcomes = {"photo": 0, "error": 0}
    for i in range(int(os.environ.get("LKDN_FUZZ", "120"))):
        name, data = files[i % len(files)]
        path = tmp_path / name
        path.write_bytes(mutated(data, rng))
        try:
            photo = read(path)
        except ImageError as error:
            assert str(path) in str(error)
            outcomes["error"] += 1
        else:
            outcomes["photo"] += 1
            height, width, channels = photo.pixels.shape
            assert 0 < height * width <= decode.LARGEST and channels in (1, 3)
            assert photo.pixels.dtype in (np.uint8, np.uint16)
            assert photo.alpha is None or photo.alpha.shape == (height, width)
            assert photo.alpha is None or photo.alpha.dtype == photo.pixels.dtype
            if height * width < 10000:
                write(path.with_suffix(".out.png"), photo)
    assert min(outcomes.values()) > 0
    # No header made the process larger than a picture of LARGEST pixels would, decoded and copied.
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 16 * decode.LARGEST


def test_reading_in_threads_leaves_the_filters_of_warnings_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(noise(H, W, 3)), exif=exif())
    before = list(warnings.filters)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, [path] * 40))
    assert list(warnings.filters) == before
