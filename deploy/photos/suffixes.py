"""Which image formats are read and which are written, by suffix, and how large a written one is."""

import contextlib
import functools
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import EXTRASAMPLES, IMAGELENGTH, IMAGEWIDTH, ImageFileDirectory_v2

from utils.imaging.decode import READABLE
from utils.imaging.formats import PLUGINS

JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
TIFF = {".tif", ".tiff"}
# What can be written: pixels a side.
LONGEST = (
    dict.fromkeys(JPEG, 65500)
    | dict.fromkeys((".png", ".bmp", *TIFF), 2**31 - 1)
    | {".webp": 16383}
)
DEEP = {".png", *TIFF}  # these hold 16 bits a channel
OPAQUE = {*JPEG, ".bmp"}  # these have no transparency
LOSSY = {*JPEG, ".webp"}
# Images that people have and that are read only where a plugin of Pillow reads them.
_NAMES = """
    avif avifs heic heif hif jxl jp2 j2k jpf jpx jxr tga psd psb xcf exr hdr pcx ico cur icns sgi
    dds qoi fits svg eps dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr iiq rwl
    mrw kdc dcr erf mef mos raw
"""
OTHERS = {f".{name}" for name in _NAMES.split()}
BY_PLUGIN = {"HEIC": {".heic", ".heif", ".hif"}, "JPEG XL": {".jxl"}}


def alike(suffix: str) -> set[str]:
    """The suffixes of files of the same format."""
    return next((group for group in (JPEG, TIFF) if suffix in group), {suffix})


@dataclass(frozen=True)
class Header:
    """What a file's first bytes tell of a picture; `clear`: it may be transparent. 0x0 pixels
    stand for more than Pillow opens unasked, as a result of 12 megapixels has."""

    width: int
    height: int
    clear: bool


@functools.cache
def readable() -> frozenset[str]:
    """The suffixes of what `decode` reads with this Pillow and the plugins there are."""
    known = Image.registered_extensions()
    found = {s for s, name in known.items() if name in READABLE and name in Image.OPEN}
    for name, (module, _, _) in PLUGINS.items():
        with contextlib.suppress(ValueError):  # a module without a loader
            found |= BY_PLUGIN[name] if importlib.util.find_spec(module) else set()
    return frozenset(found)


def peek(path: Path) -> Header | None:
    """A picture's header, or None where there is none to be read; no pixel is decoded."""
    if not os.path.isfile(path):  # a pipe, which nobody may ever fill, or out of reach
        return None
    for read in (_read_header, _read_tiff):
        try:
            with warnings.catch_warnings(), path.open("rb") as file:
                warnings.simplefilter("ignore")
                return read(file)
        except Image.DecompressionBombError:
            return Header(0, 0, clear=False)
        except Exception:  # as in decode.read: damage raises nearly anything
            continue
    return None


def _read_header(file: BinaryIO) -> Header:
    with Image.open(file, formats=[name for name in READABLE if name in Image.OPEN]) as im:
        return Header(*im.size, im.has_transparency_data)


def _read_tiff(file: BinaryIO) -> Header:
    """Of a TIFF that Pillow does not know: 16-bit grey with alpha, which is written here."""
    tags = ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    return Header(tags[IMAGEWIDTH], tags[IMAGELENGTH], EXTRASAMPLES in tags)


def find_limit(suffix: str, width: int, height: int, clear: bool) -> str:
    """Why such a picture cannot be written, or an empty text."""
    suffix = suffix.lower()
    if suffix not in LONGEST:
        return f"expected a name that ends in {', '.join(LONGEST)}, got {suffix or 'none'}"
    if max(width, height) > LONGEST[suffix]:
        return (
            f"expected at most {LONGEST[suffix]} pixels a side for {suffix}, got {width}x{height}"
        )
    if clear and suffix in OPAQUE:
        return f"expected a format with transparency (.png, .webp, .tif), got {suffix}"
    return ""
