"""The tags of TIFFs, and which of these are not for Pillow: it keeps 8 bits of most others."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from utils.imaging.formats import ImageError, check_size

# Types of values that are whole numbers, as numpy's names.
KINDS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 18: "u8"}
SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
FILL_ORDER, STRIP_OFFSETS, ORIENTATION, SAMPLES = 266, 273, 274, 277
STRIP_ROWS, STRIP_COUNTS = 278, 279
PLANAR, PREDICTOR, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_COUNTS = 284, 317, 322, 323, 324, 325
SAMPLE_FORMAT = 339
USED = {SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, FILL_ORDER, STRIP_OFFSETS, SAMPLES}
USED |= {ORIENTATION, STRIP_ROWS, STRIP_COUNTS, PLANAR, PREDICTOR, SAMPLE_FORMAT}
USED |= set(range(TILE_WIDTH, TILE_COUNTS + 1))
PREVIEW = 1 | 4  # of SUBFILE: a smaller version of another page, or a mask

COLOURS = {0: "grey", 1: "grey", 2: "colour", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
COLOURS |= {32803: "camera raw", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"}
NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA = 1, 5, 8, 32946, 32773, 34925
# Compressions that are read here or by Pillow, and names of others.
KNOWN = {NONE, 2, 3, 4, LZW, 7, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA}
OTHERS = {6: "old JPEG", 33003: "JPEG 2000", 34661: "JBIG", 34676: "SGI LogLuv", 34712: "JPEG 2000"}
OTHERS |= {34887: "LERC", 50000: "ZSTD", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL"}

MOST_TAGS = 1000  # of a page
MOST_VALUES = 1 << 20  # of a tag
MOST_PAGES = 10000  # that are counted


@dataclass(frozen=True)
class Layout:
    """How the first page of a TIFF holds its pixels.

    order: of bytes, as struct has it. big: it has places of 8 bytes. tags: the values of those of
    USED. places: where these lie in the file; of others that are huge, where their number does.
    frames: the number of pages that are not previews of others.
    """

    order: str
    big: bool
    tags: dict[int, NDArray]
    places: dict[int, int]
    frames: int

    def get(self, tag: int, default: int = 0) -> int:
        """The first value of a tag."""
        return int(self.tags[tag][0]) if len(self.tags.get(tag, ())) else default

    @property
    def is_preview(self) -> bool:
        """Whether it is a smaller version of another page, or a mask."""
        return bool(self.get(SUBFILE) & PREVIEW)

    @property
    def bits(self) -> int:
        """Of a value."""
        return self.get(BITS, 1)

    @property
    def samples(self) -> int:
        """Values of a pixel."""
        return self.get(SAMPLES, 1)

    def further(self, mode: str) -> int:
        """How many channels there are beside those of a mode of Pillow's."""
        colours = {2: 3, 5: 4, 6: 3, 8: 3}.get(self.get(PHOTOMETRIC), 1)
        return max(self.samples - colours - (mode[-1] in "Aa"), 0)


def read_layout(file: BinaryIO) -> Layout:
    """The tags of the first page, and how many pages there are.

    Raises:
        ImageError: no pixels, or too many.
        struct.error: cut short.
    """
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", 43 in head[2:4]
    (at,) = struct.unpack(order + "Q", head[8:]) if big else struct.unpack(order + "I", head[4:8])
    seen: set[int] = set()
    first: dict[int, NDArray] = {}
    first_places: dict[int, int] = {}
    frames = 0
    while at and at not in seen and len(seen) < MOST_PAGES:
        seen.add(at)
        try:
            tags, places, at = _read_page(file, at, order, big, {SUBFILE} if first else USED)
        except (ImageError, struct.error):
            if not first:
                raise
            break  # a later page, which is not read, is none
        if not first:
            first, first_places = tags, places
        frames += not int(tags.get(SUBFILE, np.zeros(1, np.int8))[0]) & PREVIEW
    layout = Layout(order, big, first, first_places, frames)
    check_size(layout.get(WIDTH), layout.get(HEIGHT))
    check_size(layout.get(TILE_WIDTH, 1), layout.get(TILE_HEIGHT, 1))
    return layout


def _read_page(
    file: BinaryIO, at: int, order: str, big: bool, used: set[int]
) -> tuple[dict[int, NDArray], dict[int, int], int]:
    """The used tags of the page at a place in the file, where their values lie, and the place of
    the next page."""
    count_form, entry_form, place = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    file.seek(at)
    (count,) = struct.unpack(order + count_form, file.read(struct.calcsize(order + count_form)))
    if count > MOST_TAGS:
        raise ImageError(f"expected at most {MOST_TAGS} tags of a TIFF's page, got {count}")
    size, start = struct.calcsize(order + entry_form), file.tell()
    entries = file.read(count * size)
    (following,) = struct.unpack(order + place, file.read(struct.calcsize(place)))
    tags, places = {}, {}
    for i, entry in enumerate(struct.iter_unpack(order + entry_form, entries)):
        tag, kind, number, value = entry
        if number > MOST_VALUES:
            if tag in used:
                raise ImageError(f"expected at most {MOST_VALUES} values of a tag, got {number}")
            if number > 16 * MOST_VALUES:
                places[tag] = start + i * size + 4
        if tag not in used or kind not in KINDS:
            continue
        dtype = np.dtype(order + KINDS[kind])
        places[tag] = start + (i + 1) * size - len(value)
        if (length := number * dtype.itemsize) > len(value):
            (places[tag],) = struct.unpack(order + place, value)
            file.seek(places[tag])
            value = file.read(length)
        if len(value) < length or not number:
            raise ImageError("expected a whole TIFF, got one without all of its tags")
        tags[tag] = np.frombuffer(value, dtype, number)
    return tags, places, following


def is_deep(layout: Layout) -> bool:
    """Whether it is grey or colour of a depth or sign that Pillow does not know or not keep."""
    usual = (1, 2, 4, 8) if layout.samples == 1 else (8,)
    reversed_bits = layout.get(FILL_ORDER, 1) == 2 and layout.samples > 1
    odd = layout.bits not in usual or layout.get(SAMPLE_FORMAT, 1) in (2, 3)
    odd |= reversed_bits and layout.get(COMPRESSION) != 7
    # Grey and alpha in planes of their own, which Pillow takes for pixels side by side.
    odd |= layout.samples == 2 and layout.get(PLANAR, 1) == 2 and layout.get(COMPRESSION) != 7
    return odd and layout.get(PHOTOMETRIC) in (0, 1, 2)


def patches(layout: Layout) -> dict[int, bytes]:
    """What Pillow is to find instead in the file, by place: the first row on top, which it would
    turn by itself; 8 bits where it is to read all but the pixels; and nothing in huge tags."""
    wanted = {ORIENTATION: 1}
    if is_deep(layout):
        wanted |= {BITS: 8, SAMPLE_FORMAT: 1, PLANAR: 1, FILL_ORDER: 1}
    found = {
        place: bytes(8 if layout.big else 4)
        for t, place in layout.places.items()
        if t not in layout.tags
    }
    for tag in wanted.keys() & layout.tags.keys():
        found[layout.places[tag]] = np.full_like(layout.tags[tag], wanted[tag]).tobytes()
    return found


def describe(layout: Layout) -> str:
    """What kind of TIFF it is, in words."""
    kind = {2: " signed", 3: " float"}.get(layout.get(SAMPLE_FORMAT, 1), "")
    colours = COLOURS.get(layout.get(PHOTOMETRIC), f"photometric {layout.get(PHOTOMETRIC)}")
    text = f"a TIFF of {layout.bits}-bit{kind} {colours} in {layout.samples} channels"
    if layout.big and layout.order == ">":
        text += ", BigTIFF with the high byte first"  # which Pillow does not know
    if (compression := layout.get(COMPRESSION, NONE)) not in KNOWN:
        text += f", compressed as {OTHERS.get(compression, compression)}"
    return text
