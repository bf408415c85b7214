"""Any picture a person has: depth, transparency, orientation and colour profile kept.

Not carried over: XMP, IPTC, the camera maker's own EXIF notes, and all frames but the
first.
"""

import io
import re
import struct
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile

from utils.colour import Chunks, read_chunks
from utils.images import ImageError
from utils.metadata import read_dpi, read_exif, read_icc

LARGEST = 64 << 20  # LR pixels; 16 times as many come out
# What is looked for in a file. Others of Pillow's formats start programs, or take any text.
READABLE = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF")

FEWER = {"1": 255, "L;2": 85, "L;4": 17}  # a level of a PNG below 8 bit, in 8 bit

# Filters of warnings belong to the whole process: two threads that restore them would mix them up.
_FILTERS = threading.Lock()


@dataclass(frozen=True)
class Photo:
    """A picture, upright.

    pixels: (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16. alpha: (H, W) of the same dtype, not
    multiplied into the colours, or None. exif, icc: bytes that go with it, or None. note: what a
    user should know, or "". chunks: PNG's on colour. dpi: dots an inch across and down, or None.
    """

    pixels: NDArray
    alpha: NDArray | None = None
    exif: bytes | None = None
    icc: bytes | None = None
    note: str = ""
    chunks: Chunks = ()
    dpi: tuple[float, float] | None = None


def read(path: str | Path) -> Photo:
    """Read a picture: PNG, JPEG, WebP, TIFF, BMP, GIF, PNM, and AVIF where Pillow knows it.

    1 bit becomes 8-bit grey, a palette RGB, CMYK sRGB through its profile, 32-bit grey 16-bit.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, no picture or too large.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"expected an image file, got a folder or device: {path}")
        file = path.open("rb")
    except OSError as error:
        raise ImageError(f"expected an image file, got {error.strerror}: {path}") from error
    with file, _FILTERS, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        try:
            _check_webp(file.read(30))
            return _decode(file)
        except ImageError as error:
            raise ImageError(f"{error}: {path}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{_too_large('many more')}: {path}") from error
        # Damage makes decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib's,
        # KeyError, IndexError, OverflowError, MemoryError; all of it is about this one file.
        except Exception as error:
            raise ImageError(
                "expected a whole image, got a broken, truncated or foreign file "
                f"({type(error).__name__}): {path}"
            ) from error


def _too_large(count: object) -> str:
    return f"expected at most {LARGEST} pixels, got {count}: cut the image into parts"


def _check_size(width: int, height: int) -> None:
    if width * height > LARGEST:
        raise ImageError(_too_large(width * height))


def _check_webp(head: bytes) -> None:
    """The size in a WebP's header, for which memory is taken as soon as the file is opened."""
    if len(head) < 30 or head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    if head[12:16] == b"VP8X":
        _check_size(*(1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27)))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        _check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    else:
        _check_size(*(size & 0x3FFF for size in struct.unpack("<HH", head[26:30])))


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """The picture with its header read and checked, and no pixel decoded."""
    file.seek(0)
    Image.init()
    im = Image.open(file, formats=[name for name in READABLE if name in Image.OPEN])
    _check_size(*im.size)
    tags = getattr(im, "tag_v2", {})
    _check_size(tags.get(322, 1), tags.get(323, 1))  # of one tile of a TIFF
    if tags.get(284) == 2 and 16 in tags.get(258, ()):  # which Pillow would take for 8 bit
        raise ImageError(
            "expected the channels of a 16-bit TIFF interleaved, got one after the "
            "other: save it as PNG"
        )
    return im


def _decode(file: BinaryIO) -> Photo:
    with _open(file) as im:
        frames = getattr(im, "n_frames", 1)
        notes = [f"first of {frames} frames"] if frames > 1 else []
        rawmode = _rawmode(im)
        im.load()
        deep = re.fullmatch(r"(RGB|RGBA|RGBX|RGBa|LA);16([BLN])", rawmode)
        pixels, note = (_deep(file, *deep.groups()), "") if deep else _pixels(im, rawmode)
        notes.append(note)
        if (key := im.info.get("transparency")) is not None and pixels.shape[2] in (1, 3):
            levels = np.iinfo(pixels.dtype).max
            # Pillow gives it in the file's bits, of which there may be fewer than in the pixels.
            if rawmode in FEWER:
                key = min(key * FEWER[rawmode], levels)
            visible = (pixels != np.array(key)).any(2, keepdims=True)
            pixels = np.dstack((pixels, visible * pixels.dtype.type(levels)))
        exif, orientation, note = read_exif(im)
        notes.append(note)
        if orientation >= 5:
            pixels = pixels.swapaxes(0, 1)
        pixels = pixels[
            :: -1 if orientation in (3, 4, 7, 8) else 1, :: -1 if orientation in (2, 3, 6, 7) else 1
        ]
        icc = read_icc(im, grey=pixels.shape[2] < 3)
        chunks, dpi = read_chunks(file), read_dpi(im, orientation)
    colours = 1 if pixels.shape[2] < 3 else 3
    return Photo(
        np.ascontiguousarray(pixels[..., :colours]),
        np.ascontiguousarray(pixels[..., colours]) if colours < pixels.shape[2] else None,
        exif,
        icc,
        "; ".join(note for note in notes if note),
        chunks,
        dpi,
    )


def _rawmode(im: ImageFile.ImageFile) -> str:
    """Pillow's name for how the file lays its pixels out, or an empty one."""
    args = im.tile[0][3] if im.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _deep(file: BinaryIO, bands: str, order: str) -> NDArray[np.uint16]:
    """16-bit colour, (H, W, 2..4), of which Pillow keeps 8 bits: decoded once for each half.

    Its rawmodes ;16B and ;16L take the first and the second byte of each value.
    """
    if bands == "LA":  # two values of two bytes: four channels to Pillow
        high, low = (_bytes(file, "RGBA")[..., half::2].astype(np.uint16) for half in (0, 1))
    else:
        first, second = (
            _bytes(file, f"{bands.upper()};16{half}").astype(np.uint16) for half in "BL"
        )
        big = order == "B" or order == "N" and sys.byteorder == "big"
        high, low = (first, second) if big else (second, first)
    pixels = np.left_shift(high, 8, dtype=np.uint16) | low
    if bands == "RGBa":  # alpha is multiplied into the colours
        colour = pixels[..., :3] / np.maximum(pixels[..., 3:], 1).astype(np.float32)
        pixels[..., :3] = round_to(colour, pixels.dtype)
    return pixels


def _bytes(file: BinaryIO, rawmode: str) -> NDArray[np.uint8]:
    """The picture as another rawmode makes it.

    ImageFile._Tile is private to Pillow, which has no public way to choose a rawmode: the tests of
    16-bit pictures are to pass before requirements.txt or constraints.txt names another version.
    """
    with _open(file) as im:
        im.tile = [
            ImageFile._Tile(
                codec, extents, at, (rawmode, *args[1:]) if isinstance(args, tuple) else rawmode
            )
            for codec, extents, at, args in im.tile
        ]
        im.load()
        return np.asarray(im)


def _pixels(im: Image.Image, rawmode: str) -> tuple[NDArray, str]:
    """A decoded picture as (H, W, 1..4), and what to know about it."""
    mode, note = im.mode, ""
    if mode[0] in "IF":
        pixels, note = _deep_grey(np.asarray(im), 4095 if rawmode == "I;12" else 65535)
        if getattr(im, "tag_v2", {}).get(262) == 0:  # white is zero, which Pillow leaves so
            pixels = 65535 - pixels
        return pixels[..., None], note
    if mode == "CMYK":
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(im.info["icc_profile"]))
            srgb = ImageCms.createProfile("sRGB")
            im = ImageCms.profileToProfile(im, profile, srgb, outputMode="RGB") or im
        except (KeyError, OSError, ImageCms.PyCMSError):  # none, or a damaged one
            im = im.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        clear = mode in ("PA", "RGBa") or mode == "P" and im.has_transparency_data
        grey = {"1": "L", "La": "LA"}
        im = im.convert(grey.get(mode, "RGBA" if clear else "RGB"))
    return np.atleast_3d(np.asarray(im)), note


def _deep_grey(values: NDArray, most: int) -> tuple[NDArray[np.uint16], str]:
    """(H, W) of more than 8 bits as 16 bit, and what to know about it."""
    if not np.isfinite(values).all():
        raise ImageError("expected finite pixels, got NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        most = 1
    if low >= 0 and high <= most:
        scaled = values if most == 65535 else np.rint(values * (65535 / most))
        return scaled.astype(np.uint16), ""
    scaled = (values.astype(np.float64) - low) * (65535 / (high - low or 1))
    return np.rint(scaled).astype(np.uint16), f"its values, {low:g} to {high:g}, became 0 to 65535"


def round_to(image: NDArray[np.float32], dtype: np.dtype) -> NDArray:
    """0..1 -> all levels of an integer, clamped, then rounded."""
    clamped = image.clip(0, 1)
    clamped *= np.iinfo(dtype).max
    return np.rint(clamped, out=clamped).astype(dtype)
