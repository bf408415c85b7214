"""Photos to files: PNG, JPEG, WebP, TIFF or BMP by the suffix, EXIF and colour profile within."""

import io
import logging
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffTags
from PIL import TiffImagePlugin as tiff

from deploy.photos import suffixes
from deploy.photos.suffixes import DEEP, JPEG, OPAQUE, TIFF
from utils.files import write_bytes
from utils.imaging.colour import SRGB, find_profile, find_space
from utils.imaging.decode import Photo
from utils.imaging.images import ImageError
from utils.imaging.metadata import EXIF_IFD, GPS_IFD, dpi_tags, exif_text

AS_PNG = "give --ext png, or an -o that ends in .png"
PNG_ICC = 1 << 20  # bytes of a profile in a PNG that Pillow opens, unless told otherwise

logger = logging.getLogger(__name__)


def write(path: str | Path, photo: Photo) -> None:
    """Write a picture as its suffix says; the file appears whole or not at all.

    A profile that few programs would open in a PNG is left out of it, with a warning.
    16 bit is written as PNG and TIFF, and rounded to 8 for JPEG, WebP and BMP. BMP holds neither
    EXIF nor a profile; WebP holds grey as RGB, without a profile of grey. PNG's own words on colour
    become a profile elsewhere.

    Raises:
        ImageError: an unknown suffix, or one of a format that has no transparency or not the size.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    suffix, (height, width) = path.suffix.lower(), photo.pixels.shape[:2]
    check(path, photo)
    if suffix in OPAQUE:
        photo = replace(photo, alpha=None)
    if suffix != ".png" and not photo.icc:
        grey = photo.pixels.shape[2] == 1 and suffix != ".webp"
        photo = replace(photo, icc=find_profile(photo.chunks, grey))
    if suffix == ".png" and photo.icc and len(photo.icc) > PNG_ICC:
        logger.warning(
            "%s: its colour profile of %d bytes is left out, which many programs do not take in a "
            "PNG: give --ext tif, or an -o that ends in .tif, to keep it",
            path,
            len(photo.icc),
        )
        photo = replace(photo, icc=None)
    pixels = photo.pixels if photo.alpha is None else np.dstack((photo.pixels, photo.alpha))
    if pixels.dtype == np.uint16 and suffix not in DEEP:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    try:
        if suffix in TIFF:
            encoded = _tiff(pixels, photo)
        elif pixels.dtype == np.uint16:
            encoded = _deep_png(pixels, photo)
        else:
            encoded = _pillow(pixels, photo, suffix)
    except MemoryError:
        raise
    except Exception as error:  # encoders raise as many kinds as decoders; all mean "not this"
        raise ImageError(
            f"expected a picture that {suffix} can hold, got {width}x{height}: "
            f"{error}: give another --ext or -o: {path}"
        ) from error
    write_bytes(path, encoded)


def check(path: Path, photo: Photo, scale: int = 1) -> None:
    """ImageError if the photo, `scale` times as large, cannot be written there."""
    height, width = (scale * side for side in photo.pixels.shape[:2])
    alpha = photo.alpha
    clear = alpha is not None and bool(alpha.min() < np.iinfo(alpha.dtype).max)
    if limit := suffixes.find_limit(path.suffix, width, height, clear):
        raise ImageError(f"{limit}: {AS_PNG}: {path}")


def find_losses(path: Path, photo: Photo) -> str:
    """What a result there does not hold of the photo's numbers, colours and EXIF, or an empty
    text."""
    suffix, lost = path.suffix.lower(), False
    deep = photo.pixels.dtype == np.uint16 and suffix not in DEEP
    if photo.icc:
        lost = suffix == ".bmp" or suffix == ".webp" and photo.icc[16:20] == b"GRAY"
    elif photo.chunks and suffix != ".png" and find_space(photo.chunks) != SRGB:
        lost = suffix == ".bmp" or find_profile(photo.chunks) is None
    kept_out = ["its colour space"] * lost + ["more than 8 of its 16 bits"] * deep
    kept_out += ["its EXIF data"] * (suffix == ".bmp" and bool(photo.exif))
    return f"{suffix} does not hold {', '.join(kept_out)}: {AS_PNG}" if kept_out else ""


def _pillow(pixels: NDArray[np.uint8], photo: Photo, suffix: str) -> bytes:
    options: dict[str, Any] = {}
    icc = photo.icc or b""
    if suffix != ".bmp":
        options = {"exif": photo.exif or b"", "icc_profile": icc}
    if photo.dpi:
        options["dpi"] = photo.dpi
    if suffix in JPEG:
        options |= {"quality": 95, "subsampling": 0}
    elif suffix == ".webp":
        options |= {"quality": 95}
        if icc[16:20] == b"GRAY":
            options["icc_profile"] = b""
        if photo.dpi and not photo.exif:
            tags = Image.Exif()
            tags.update(dpi_tags(photo.dpi))
            options["exif"] = tags.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
        buffer, Image.registered_extensions()[suffix], **options
    )
    data = buffer.getvalue()
    # Behind the header, not by Pillow, of which older versions leave cICP out.
    return data[:33] + _colour_chunks(photo) + data[33:] if suffix == ".png" else data


def _colour_chunks(photo: Photo) -> bytes:
    """What a PNG says of its colours; sRGB may not stand beside a profile."""
    told = (pair for pair in photo.chunks if not photo.icc or pair[0] != b"sRGB")
    return b"".join(_chunk(*pair) for pair in told)


def _chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG with its checksum."""
    checked = name + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def _deep_png(pixels: NDArray[np.uint16], photo: Photo) -> bytes:
    """PNG of 16 bit, (H, W, 1..4), which Pillow writes of grey alone."""
    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    chunks = [_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))]
    if photo.icc:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(photo.icc)))
    chunks.append(_colour_chunks(photo))
    if photo.dpi:
        dots = (round(value / 0.0254) for value in photo.dpi)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *dots, 1)))
    if photo.exif:
        chunks.append(_chunk(b"eXIf", photo.exif.removeprefix(b"Exif\0\0")))
    packer = zlib.compressobj(3)
    for row in pixels.astype(">u2").reshape(height, -1).view(np.uint8):
        line = np.insert(row, 0, 1)  # the filter "Sub": each byte less that of the pixel before it
        line[1 + 2 * channels :] -= row[: -2 * channels]
        if data := packer.compress(line.tobytes()):
            chunks.append(_chunk(b"IDAT", data))
    chunks += [_chunk(b"IDAT", packer.flush()), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _tiff(pixels: NDArray, photo: Photo) -> bytes:
    """TIFF of one compressed strip; Pillow writes no 16-bit colour, and no EXIF beside
    compression."""
    height, width, channels = pixels.shape
    steps = pixels.astype(pixels.dtype.newbyteorder("<"))
    steps[:, 1:] -= pixels[:, :-1]  # predictor 2
    data = zlib.compress(steps.tobytes(), 3)
    ifd = tiff.ImageFileDirectory_v2()
    if photo.exif:
        exif = Image.Exif()
        exif.load(photo.exif)
        for tag in exif:
            inner = exif.get_ifd(tag) if tag in (EXIF_IFD, GPS_IFD) else {}
            ifd[tag] = {k: exif_text(v) for k, v in inner.items()} or exif_text(exif[tag])
    bits = 8 * pixels.dtype.itemsize
    tags = {
        tiff.IMAGEWIDTH: width,
        tiff.IMAGELENGTH: height,
        tiff.BITSPERSAMPLE: (bits,) * channels,
        tiff.COMPRESSION: 8,  # Deflate
        tiff.PHOTOMETRIC_INTERPRETATION: 1 if channels < 3 else 2,  # black is zero, or RGB
        tiff.STRIPOFFSETS: 0,
        tiff.SAMPLESPERPIXEL: channels,
        tiff.ROWSPERSTRIP: height,
        tiff.STRIPBYTECOUNTS: len(data),
        tiff.PLANAR_CONFIGURATION: 1,  # interleaved
        tiff.PREDICTOR: 2,
    }
    if photo.alpha is not None:
        tags[tiff.EXTRASAMPLES] = 2  # not multiplied into the colours
    for tag, value in (tags | dpi_tags(photo.dpi)).items():
        ifd[tag] = value
    if photo.icc:
        ifd.tagtype[tiff.ICCPROFILE] = TiffTags.UNDEFINED
        ifd[tiff.ICCPROFILE] = photo.icc
    buffer = io.BytesIO()
    ifd.save(buffer)  # which makes of the strip's offset, 0, the place behind itself
    return buffer.getvalue() + data
