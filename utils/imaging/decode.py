"""The one reader of image files, for all commands: any picture a person has, with its depth,
transparency, orientation and colour profile.

Not carried over: XMP, IPTC, texts of PNGs, the camera maker's own EXIF notes, and all frames but
the first.
"""

import importlib
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from utils.imaging import formats, tiff
from utils.imaging.colour import Chunks, read_chunks
from utils.imaging.formats import ImageError, ImageReader
from utils.imaging.metadata import read_dpi, read_exif, read_icc
from utils.imaging.pixels import NETPBM, deep_tiff, read_netpbm, to_pixels, turn
from utils.shared import shared

# What is looked for in a file. Others of Pillow's formats start programs, or take any text.
READABLE = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "DIB", "GIF", "PPM", "AVIF")
PNG, TIFF = b"\x89PNG\r\n\x1a\n", (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PngImagePlugin.MAX_TEXT_CHUNK = 16 << 20  # bytes of a profile or text; Pillow's 1 MiB is too few
MOST_RLE = 8 << 20  # bytes of a BMP in runs, of which Pillow takes a million a second

FEWER = {"1": 255, "L;2": 85, "L;4": 17}  # a level of a PNG below 8 bit, in 8 bit


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


def read(path: str | Path, pixels_only: bool = False) -> Photo:
    """Read a picture: PNG, JPEG, WebP, TIFF, BMP, GIF, PNM, and AVIF where Pillow knows it; HEIC
    and JPEG XL where their plugins for Pillow are installed.

    1 bit becomes 8-bit grey, a palette RGB, CMYK sRGB through its profile, 32-bit grey 16-bit. Data
    behind the end of a PNG or JPEG are not looked at.

    Args:
        path: the file, whatever its name.
        pixels_only: leave the pixels as they are stored, not turned upright, and what goes with
            them unread.

    Raises:
        ImageError: the file is missing, empty, truncated, damaged, no picture or too large, or of a
            kind that is not read, which is named.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ImageError(f"expected an image file, got a folder or device: {path}")
        file = ImageReader(io.FileIO(path))
    except OSError as error:
        raise ImageError(f"expected an image file, got {error.strerror}: {path}") from error
    with file, _quiet():
        try:
            return _read(file, pixels_only)
        except ImageError as error:
            raise ImageError(f"{error}: {path}") from error
        except Image.DecompressionBombError as error:
            raise ImageError(f"{formats.too_large('many more')}: {path}") from error
        # Damage makes decoders raise nearly anything: OSError, SyntaxError, struct.error, zlib's,
        # KeyError, IndexError, OverflowError, MemoryError; all of it is about this one file.
        except Exception as error:
            raise ImageError(
                "expected a whole image, got a broken, truncated or foreign file "
                f"({type(error).__name__}): {path}"
            ) from error


@shared
@contextmanager
def _quiet() -> Iterator[None]:
    """Pillow's warnings left out; filters of warnings belong to the whole process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def _read(file: ImageReader, pixels_only: bool) -> Photo:
    """The picture in a file, by what its first bytes say that it is."""
    head = file.read(1 << 16)
    if head.startswith(PNG):
        png = formats.read_png(file)
        try:
            return _decode(file, pixels_only, png=png)
        except (ValueError, SyntaxError) as error:
            if isinstance(error, ImageError):
                raise
        bare = io.BytesIO(formats.without_texts(file, png))
        photo = _decode(bare, pixels_only, png=formats.read_png(bare))
        note = "its texts or colour profile are damaged or huge and left out"
        return replace(photo, note="; ".join(filter(None, (photo.note, note))))
    if head[:4] in TIFF:
        layout = tiff.read_layout(file)
        file.patches = tiff.patches(layout)
        try:
            return _decode(file, pixels_only, layout=layout)
        except (UnidentifiedImageError, OSError) as error:
            known = layout.get(tiff.COMPRESSION, 1) in tiff.KNOWN
            if known and not isinstance(error, UnidentifiedImageError):
                raise
            raise ImageError(f"cannot read {tiff.describe(layout)}: save it as PNG") from error
    if (netpbm := NETPBM.match(head)) and (netpbm["plain"] or int(netpbm["most"]) > 255):
        return Photo(read_netpbm(file, netpbm))
    if head[:2] == b"BM" and head[30:31] in (b"\1", b"\2") and file.seek(0, io.SEEK_END) < MOST_RLE:
        file.seek(0)  # Pillow reads run by run, which is counted in an ImageReader
        return _decode(io.BytesIO(file.read()), pixels_only)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        formats.check_webp(head, file.seek(0, io.SEEK_END))
    try:
        return _decode(file, pixels_only)
    except ImageError:
        raise
    except Exception:
        if not (name := formats.recognise(head)) or name == "AVIF" and name in Image.OPEN:
            raise
    if name not in formats.PLUGINS:
        raise formats.refusal(name)
    module, as_pillow_has_it, _ = formats.PLUGINS[name]
    try:
        plugin: Any = importlib.import_module(module)
    except ImportError as error:
        raise formats.refusal(name) from error
    if name == "HEIC":
        plugin.register_heif_opener()
    return _decode(file, pixels_only, (as_pillow_has_it,))


def _open(file: BinaryIO, names: tuple[str, ...]) -> ImageFile.ImageFile:
    """The picture with its header read and checked, and no pixel decoded."""
    file.seek(0)
    Image.init()
    im = Image.open(file, formats=[name for name in names if name in Image.OPEN])
    formats.check_size(*im.size)
    return im


def _decode(
    file: BinaryIO,
    pixels_only: bool,
    names: tuple[str, ...] = READABLE,
    png: formats.Png | None = None,
    layout: tiff.Layout | None = None,
) -> Photo:
    with _open(file, names) as im:
        notes = []
        rawmode = _rawmode(im)
        if layout and tiff.is_deep(layout):
            pixels, note = deep_tiff(file, layout, im.getbands(), rawmode)
        else:
            jpeg = b""
            if im.format in ("JPEG", "MPO"):
                file.seek(0)
                jpeg = file.read(6 * im.width * im.height + (16 << 20))
                formats.check_jpeg_scans(jpeg)
            im.load()
            _check_last_pixel(im, file, png, jpeg)
            deep = re.fullmatch(r"(RGB|RGBA|LA);16B", rawmode)
            pixels, note = (_deep_png(file, deep[1]), "") if deep else to_pixels(im, rawmode)
        notes.append(note)
        if (bits := _told_bits(im, file)) > 8 * pixels.itemsize:
            notes.append(f"its {bits} bits were read as {8 * pixels.itemsize}")
        if layout and layout.further(im.mode):
            notes.append(f"{layout.further(im.mode)} further channels are left out")
        if (key := im.info.get("transparency")) is not None and pixels.shape[2] in (1, 3):
            levels = np.iinfo(pixels.dtype).max
            # Pillow gives it in the file's bits, of which there may be fewer than in the pixels.
            if rawmode in FEWER:
                key = min(key * FEWER[rawmode], levels)
            visible = (pixels != np.array(key)).any(2, keepdims=True)
            pixels = np.dstack((pixels, visible * pixels.dtype.type(levels)))
        exif = icc = dpi = None
        chunks: Chunks = ()
        if not pixels_only:
            turned = layout.get(tiff.ORIENTATION, 1) if layout else None
            exif, orientation, note = read_exif(im, turned)
            notes.append(note)
            pixels = turn(pixels, orientation)
            icc, note = read_icc(im, grey=pixels.shape[2] < 3)
            notes.append(note)
            chunks = read_chunks(file, png, has_profile=icc is not None)
            dpi = read_dpi(im, orientation)
        if im.format in ("BMP", "DIB") and pixels.shape[2] == 4 and not pixels[..., 3].any():
            pixels = pixels[..., :3]  # which says that there is none
        # Last, for nothing more can be read where it takes too long to count them.
        notes.insert(0, _note_frames(im, layout))
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


def _note_frames(im: ImageFile.ImageFile, layout: tiff.Layout | None) -> str:
    """What to know about further pictures in the file; previews of this one are none."""
    try:
        frames = layout.frames if layout else getattr(im, "n_frames", 1)
    except ImageError:  # so many of a GIF's that it takes too long to count them
        return "first of very many frames"
    if im.format == "MPO":
        entries = getattr(im, "mpinfo", {}).get(0xB002, ())[1:]
        kinds = [str(entry["Attribute"]["MPType"]) for entry in entries]
        if not any(kind.startswith("Multi-Frame") for kind in kinds):
            previews = all(kind.startswith("Large Thumbnail") for kind in kinds)
            return "" if previews else "its HDR gain map is left out"
    if layout and layout.is_preview and frames:
        return "a preview, the first page; larger ones are left out"
    more = " or more" if layout and frames == tiff.MOST_PAGES else ""
    return f"first of {frames} frames{more}" if frames > 1 else ""


def _told_bits(im: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Bits of a value of HEIC or AVIF, of which Pillow keeps 8; 8 of all else."""
    if im.format != "AVIF":
        bits = im.info.get("bit_depth") if im.format == "HEIF" else 8
        return bits if isinstance(bits, int) else 8
    file.seek(0)
    record = file.read(4104).partition(b"av1C")[2]  # AV1CodecConfigurationRecord
    high, twelve = (bool(record[2] & bit) for bit in (0x40, 0x20)) if len(record) > 2 else (0, 0)
    return 8 + 2 * high + 2 * (high and twelve)


def _rawmode(im: ImageFile.ImageFile) -> str:
    """Pillow's name for how the file lays its pixels out, or an empty one."""
    args = im.tile[0][3] if im.tile else ""
    return str(args[0] if isinstance(args, tuple) and args else args)


def _check_last_pixel(
    im: ImageFile.ImageFile, file: BinaryIO, png: formats.Png | None, jpeg: bytes
) -> None:
    """Raise ImageError if pixels are missing, which decoders leave black or grey without a word."""
    width, height = im.size
    if png:
        last_row = np.asarray(im.crop((0, height - 1, width, height)))
        if png.interlaced or not last_row.any():
            formats.check_png_rows(file, png)
    elif jpeg:
        last = np.asarray(im.crop((width - 1, height - 1, width, height)))
        if np.isin(last, (127, 128)).all():
            with Image.open(io.BytesIO(formats.with_other_end(jpeg)), formats=["JPEG"]) as other:
                if not np.array_equal(np.asarray(other), np.asarray(im)):
                    raise ImageError("expected a whole JPEG, got one that lacks rows")


def _deep_png(file: BinaryIO, bands: str) -> NDArray[np.uint16]:
    """16-bit colour of a PNG, (H, W, 2..4), of which Pillow keeps 8 bits: decoded once for each
    half. Its rawmodes ;16B and ;16L take the first and the second byte of each value."""
    if bands == "LA":  # two values of two bytes: four channels to Pillow
        high, low = (_bytes(file, "RGBA")[..., half::2] for half in (0, 1))
    else:
        high, low = (_bytes(file, f"{bands};16{half}") for half in "BL")
    return np.left_shift(high, 8, dtype=np.uint16) | low


def _bytes(file: BinaryIO, rawmode: str) -> NDArray[np.uint8]:
    """A PNG as another rawmode makes it.

    ImageFile._Tile is private to Pillow, which has no public way to choose a rawmode: the tests of
    16-bit pictures are to pass before requirements.txt or constraints.txt names another version.
    """
    with _open(file, ("PNG",)) as im:
        im.tile = [ImageFile._Tile(*tile[:3], rawmode) for tile in im.tile]
        im.load()
        return np.asarray(im)
