"""Colours without an ICC profile, and resolution: kept, made a profile of, or a note."""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from image_files import noise, opened, photo, png, profile
from PIL import Image, ImageCms, features

from deploy.photos.encode import find_losses, write
from utils.imaging import colour
from utils.imaging.decode import Photo, read
from utils.imaging.formats import read_png

GAMMA = (b"gAMA", struct.pack(">I", 100000))
ADOBE = (
    (b"gAMA", struct.pack(">I", 45470)),
    (b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 21000, 71000, 15000, 6000)),
)
P3 = (b"cICP", bytes((12, 13, 0, 1)))
PQ = (b"cICP", bytes((9, 16, 0, 1)))
SRGB = ((b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)))


def chunks_of(path: Path) -> dict[bytes, bytes]:
    """All before the pixels, by PNG's specification."""
    data, at, found = path.read_bytes(), 8, {}
    while data[at + 4 : at + 8] != b"IDAT":
        size, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        assert (
            struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + size]))
            == (data[at + 8 + size : at + 12 + size])
        )
        found[name] = data[at + 8 : at + 8 + size]
        at += 12 + size
    return found


def colorants(icc: bytes) -> list[tuple[float, ...]]:
    made = ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile
    return [made.red_colorant[0], made.green_colorant[0], made.blue_colorant[0]]


# Of Adobe's AdobeRGB1998.icc, of Apple's "Display P3", and of sRGB as ICC publishes it.
PUBLISHED = {
    "adobe": [
        (0.60974, 0.31111, 0.01947),
        (0.20528, 0.62567, 0.06087),
        (0.14919, 0.06322, 0.74457),
    ],
    "p3": [(0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)],
    "srgb": [(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)],
}


def test_profiles_are_those_that_others_publish() -> None:
    made = {
        "adobe": colour.find_profile(ADOBE),
        "p3": colour.find_profile((P3,)),
        "srgb": colour.make_profile(colour.SRGB),
    }
    for name, icc in made.items():
        assert icc is not None
        np.testing.assert_allclose(colorants(icc), PUBLISHED[name], atol=2e-4)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_profile_of_linear_light_means_it(mode: str) -> None:
    ramp = np.arange(256, dtype=np.uint8)[None]
    picture = Image.fromarray(ramp).convert(mode)
    icc = colour.find_profile((GAMMA,), grey=mode == "L")
    assert icc is not None and icc[16:20] == {"L": b"GRAY", "RGB": b"RGB "}[mode]
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    seen = ImageCms.profileToProfile(
        picture, profile, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    light = np.arange(256) / 255  # IEC 61966-2-1
    expected = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    # LittleCMS takes a curve of few points for grey, too few for the darkest values.
    first = 24 if mode == "L" else 0
    assert np.abs(np.array(seen)[0] - 255 * expected[:, None])[first:].max() <= 1.5


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("told", [(GAMMA,), ADOBE, (P3,), (PQ,), SRGB], ids=range(5))
def test_a_png_keeps_what_it_says(
    tmp_path: Path, bits: int, told: tuple[tuple[bytes, bytes], ...]
) -> None:
    dots = (b"pHYs", struct.pack(">IIB", 11811, 5906, 1))
    pixels = noise(5, 6, 3, dtype=np.uint8 if bits == 8 else np.uint16)
    (tmp_path / "a.png").write_bytes(png(pixels, 2, bits, *told, dots))
    photo = read(tmp_path / "a.png")
    assert photo.icc is None and photo.dpi == (300, 150.01)
    write(tmp_path / "b.png", photo)
    assert dict((*told, dots)).items() <= chunks_of(tmp_path / "b.png").items()
    assert b"iCCP" not in chunks_of(tmp_path / "b.png")
    np.testing.assert_array_equal(read(tmp_path / "b.png").pixels, pixels)
    icc = profile()
    write(tmp_path / "c.png", replace(photo, icc=icc))
    beside = dict(told) if told != SRGB else dict(told[1:])  # one of both, by the specification
    found = chunks_of(tmp_path / "c.png")
    assert beside.items() <= found.items() and b"iCCP" in found and b"sRGB" not in found
    assert opened(tmp_path / "c.png").info["icc_profile"] == icc


def test_other_formats_get_a_profile_or_a_note(tmp_path: Path) -> None:
    rgb, grey = noise(5, 6, 3), noise(5, 6, 1)
    for suffix in ("jpg", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        for pixels in (rgb, grey):
            photo = Photo(pixels, chunks=ADOBE)
            write(path, photo)
            icc = opened(path).info["icc_profile"]
            kind = b"GRAY" if pixels is grey and suffix != "webp" else b"RGB "
            assert icc and icc[16:20] == kind and not find_losses(path, photo)
        for photo in (Photo(rgb, chunks=SRGB), Photo(rgb)):
            write(path, photo)
            assert read(path).icc is None and not find_losses(path, photo)
        for absurd in (PQ, (b"cHRM", bytes(32)), (b"gAMA", b"\0\0\0\1")):
            write(path, Photo(rgb, chunks=(absurd,)))
            assert "does not hold its colour" in find_losses(path, Photo(rgb, chunks=(absurd,)))
    bmp = tmp_path / "a.bmp"
    for photo in (Photo(rgb, chunks=(P3,)), Photo(rgb, icc=colour.find_profile((P3,)))):
        assert "does not hold its colour space: give --ext png" in find_losses(bmp, photo)
    assert not find_losses(bmp, Photo(rgb, chunks=SRGB))
    told = "does not hold its colour space, its EXIF data: give --ext png"
    assert told in find_losses(bmp, Photo(rgb, chunks=(P3,), exif=b"some"))
    assert not find_losses(tmp_path / "a.jpg", Photo(rgb, exif=b"some"))
    deep = Photo(rgb.astype(np.uint16) * 257)
    for suffix in ("jpg", "webp", "bmp", "png", "tiff"):
        lost = find_losses(tmp_path / f"a.{suffix}", deep)
        assert bool(lost) == (suffix in ("jpg", "webp", "bmp"))
        assert not lost or f".{suffix} does not hold more than 8 of its 16 bits: give" in lost
    assert not find_losses(tmp_path / "a.png", Photo(rgb, chunks=(PQ,)))


@pytest.mark.parametrize("details", [{0xA001: 65535, 0xA005: {1: "R03"}}, {0xA001: 2}])
def test_adobe_rgb_of_cameras_becomes_a_profile(tmp_path: Path, details: dict) -> None:
    tags = Image.Exif()
    tags[0x8769] = details
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.jpg", exif=tags)
    icc = read(tmp_path / "a.jpg").icc
    assert icc is not None
    np.testing.assert_allclose(colorants(icc), PUBLISHED["adobe"], atol=2e-4)
    tags[0x8769] = {0xA001: 1, 0xA005: {1: "R98"}}
    Image.fromarray(photo(8, 9)).save(tmp_path / "b.jpg", exif=tags)
    assert read(tmp_path / "b.jpg").icc is None


def read_of_png(data: bytes) -> colour.Chunks:
    return colour.read_chunks(io.BytesIO(data), read_png(io.BytesIO(data)))


def test_what_is_no_word_on_colour_is_none() -> None:
    broken = png(noise(2, 3, 3), 2, 8, GAMMA)
    broken = broken.replace(GAMMA[1], b"\0\0\0\1", 1)  # the checksum is another
    assert read_of_png(broken) == () != read_of_png(png(noise(2, 3, 3), 2, 8, GAMMA))
    for data in (b"", b"\0\0\0\x18ftypavif" + bytes(90)):
        assert colour.read_chunks(io.BytesIO(data)) == ()
    avif = b"\0\0\0\x18ftypavif" + bytes(30) + b"colrnclx\0\x0c\0\x0d\0\x01\x80"
    assert colour.read_chunks(io.BytesIO(avif)) == (P3,)
    assert colour.read_chunks(io.BytesIO(avif), has_profile=True) == ()
    for curve in (b"\0\x0d", b"\0\x06", b"\0\x01"):  # sRGB's, BT.601's and BT.709's
        usual = avif.replace(b"\0\x0c\0\x0d", b"\0\x01" + curve)
        assert colour.read_chunks(io.BytesIO(usual)) == ()


@pytest.mark.skipif(not features.check("avif"), reason="needs a Pillow with AVIF")
def test_the_profile_of_an_avif_counts_more_than_numbers_beside_it(
    enlarge: Callable, tmp_path: Path
) -> None:
    """As of a picture with a gain map, whose other rendition has numbers."""
    buffer, icc = io.BytesIO(), colour.find_profile((P3,))
    Image.fromarray(photo(8, 9)).save(buffer, "AVIF", icc_profile=icc)
    data = buffer.getvalue().replace(b"colrnclx\0\x02\0\x02", b"colrnclx\0\x0c\0\x10")
    assert b"colrnclx\0\x0c\0\x10" in data
    (tmp_path / "a.avif").write_bytes(data)
    assert enlarge("a.avif") == 0
    made = (tmp_path / "a_x4.png").read_bytes()
    assert b"cICP" not in made and opened("a_x4.png").info["icc_profile"] == icc


@pytest.mark.parametrize("source", ["png", "jpg", "tif", "bmp", "webp"])
def test_dots_an_inch_stay(enlarge: Callable, tmp_path: Path, source: str) -> None:
    """As other tools keep the number: the print becomes four times as large."""
    tags = Image.Exif()
    tags.update({0x011A: 300.0, 0x011B: 150.0, 0x0128: 2})
    given = {"exif": tags} if source == "webp" else {"dpi": (300, 150)}
    Image.fromarray(photo(3, 4)).save(f"a.{source}", **given)
    for target in ("png", "jpg", "tif", "bmp", "webp"):
        assert enlarge(f"a.{source}", "-o", f"o.{target}") == 0
        written = opened(f"o.{target}")
        told = written.info.get("dpi") or [written.getexif()[tag] for tag in (0x011A, 0x011B)]
        np.testing.assert_allclose([float(value) for value in told], (300, 150), atol=0.02)


def test_no_resolution_is_made_up(tmp_path: Path) -> None:
    tags = Image.Exif()
    tags[0x010F] = "a camera"
    Image.fromarray(photo(3, 4)).save(tmp_path / "a.jpg", exif=tags)
    assert read(tmp_path / "a.jpg").dpi is None
    for name in ("plain", "deep"):
        pixels = noise(3, 4, 3, dtype=np.uint16 if name == "deep" else np.uint8)
        cv2.imwrite(str(tmp_path / f"{name}.tif"), pixels)
        assert read(tmp_path / f"{name}.tif").dpi is None
    Image.fromarray(photo(3, 4)).save(tmp_path / "d.jpg", dpi=(100, 50))
    whole = (tmp_path / "d.jpg").read_bytes()
    (tmp_path / "d.jpg").write_bytes(whole[:13] + b"\2" + whole[14:])  # of JFIF: a centimetre
    assert read(tmp_path / "d.jpg").dpi == (254, 127)
    tags.update({0x0112: 6, 0x011A: 118.11, 0x011B: 50.0, 0x0128: 3})  # a centimetre; turned
    Image.fromarray(photo(3, 4)).save(tmp_path / "b.webp", exif=tags)
    assert read(tmp_path / "b.webp").dpi == (127, 300)
    for dots in ((0, 0), (0, 5), (2**31, 5)):
        (tmp_path / "c.png").write_bytes(
            png(noise(2, 3, 3), 2, 8, (b"pHYs", struct.pack(">IIB", *dots, 1)))
        )
        assert read(tmp_path / "c.png").dpi is None
