"""TIFFs of other than 8 bits a value, or signed: Pillow reads some, and keeps 8 bits of most."""

import io
import lzma
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
MOST_STRIPS = 1 << 16  # of a plane; of those that Pillow unpacks, one by one, a quarter
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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


def read_deep(file: BinaryIO, layout: Layout) -> NDArray:
    """Pixels as they are stored, (H, W, channels), unsigned ones made 16 bit, or 8 of fewer.

    Signed and float values, of grey alone, are returned as they are.

    Raises:
        ImageError: a kind that is not read, or pixels that are missing.
    """
    form, bits, samples = layout.get(SAMPLE_FORMAT, 1), layout.bits, layout.samples
    predictor, compression = layout.get(PREDICTOR, 1), layout.get(COMPRESSION, NONE)
    whole = bits in (8 * (form != 3), 16, 32, 64) or bits == 24 and form == 1
    if not (
        compression in (NONE, LZW, DEFLATE, OLD_DEFLATE, PACKBITS, LZMA)
        and (layout.tags[BITS] == bits).all()
        and (form == 1 and (whole or 0 < bits < 16) or form in (2, 3) and samples == 1 and whole)
        and (predictor == 1 or predictor == 2 and bits in (8, 16, 32, 64) or predictor == form == 3)
        and 1 + 2 * (layout.get(PHOTOMETRIC) == 2) <= samples <= 8
    ):
        raise ImageError(f"cannot read {describe(layout)}: save it as 16-bit PNG")
    values = _read_values(file, layout)
    if form != 1 or bits in (8, 16):
        return values
    if bits > 16 and samples == 1 and values.max() < 1 << 16:
        return values.astype(np.uint16)  # counts of an instrument, not shares of white
    if bits > 16:
        return (values >> (bits - 16)).astype(np.uint16)
    most, dtype = (65535, np.uint16) if bits > 8 else (255, np.uint8)
    return np.rint(values * (most / (2**bits - 1))).astype(dtype)


def _read_values(file: BinaryIO, layout: Layout) -> NDArray:
    """(H, W, channels) of whatever type the file has, put together of strips or tiles."""
    height, width, samples = layout.get(HEIGHT), layout.get(WIDTH), layout.samples
    planes, per = (samples, 1) if layout.get(PLANAR, 1) == 2 else (1, samples)
    tiled = TILE_OFFSETS in layout.tags
    rows = layout.get(TILE_HEIGHT) if tiled else min(layout.get(STRIP_ROWS, height), height)
    columns = layout.get(TILE_WIDTH) if tiled else width
    down, across = -(-height // rows), -(-width // columns)
    offsets = layout.tags[TILE_OFFSETS if tiled else STRIP_OFFSETS]
    counts = layout.tags.get(TILE_COUNTS if tiled else STRIP_COUNTS)
    slow = layout.get(COMPRESSION, NONE) in (LZW, PACKBITS)
    most = MOST_STRIPS // 4 if slow else MOST_STRIPS
    if not down * across <= min(most, len(offsets) // planes):
        raise ImageError(
            f"expected {down * across} strips or tiles a channel, of at most {most}, got "
            f"{len(offsets)}"
        )
    row_bytes = -(-columns * per * layout.bits // 8)
    found: NDArray | None = None
    for i in range(planes * down * across):
        plane, (y, x) = i // (down * across), divmod(i % (down * across), across)
        y, x = y * rows, x * columns
        length = row_bytes * (rows if tiled else min(rows, height - y))
        # More than this is no compression; of an uncompressed strip the length may not be said.
        most = length if layout.get(COMPRESSION, NONE) == NONE else 2 * length + 1024
        file.seek(int(offsets[i]))
        data = file.read(most if counts is None else min(most, int(counts[i])))
        part = _unpack(data, layout, row_bytes, length, per)
        if planes * down * across == 1 and not tiled:
            return part[:, :width]
        if found is None:
            found = np.empty((height, width, samples), part.dtype)
        channels = slice(plane, plane + 1) if planes > 1 else slice(None)
        found[y : y + rows, x : x + columns, channels] = part[: height - y, : width - x]
    assert found is not None
    return found


def _unpack(data: bytes, layout: Layout, row_bytes: int, length: int, per: int) -> NDArray:
    """A strip or tile as (rows, columns, per)."""
    if layout.get(FILL_ORDER, 1) == 2:
        data = data.translate(REVERSED)
    data = _decompress(data, layout.get(COMPRESSION, NONE), row_bytes, length)
    if len(data) < length:
        raise ImageError("expected a whole TIFF, got one that lacks pixels")
    stored: NDArray = np.frombuffer(data, np.uint8, length).reshape(-1, row_bytes)
    size, predictor, bits = layout.bits // 8, layout.get(PREDICTOR, 1), layout.bits
    if predictor == 3:  # bytes of a row by significance, each less that of the value before it
        stored = stored.reshape(len(stored), -1, per).cumsum(1, dtype=np.uint8)
        stored = stored.reshape(len(stored), size, -1).swapaxes(1, 2)
        stored = np.ascontiguousarray(stored).reshape(-1, row_bytes)
    order = ">" if predictor == 3 else layout.order
    if bits in (8, 16, 32, 64):
        values: NDArray = stored.view(f"{order}u{size}")
        values = values.astype(values.dtype.newbyteorder("="), copy=False)
    elif bits == 24:
        each = stored.reshape(len(stored), -1, 3).astype(np.uint32)
        low, high = (2, 0) if order == ">" else (0, 2)
        values = each[..., high] << 16 | each[..., 1] << 8 | each[..., low]
    else:
        values = _unpack_bits(stored, bits)
    values = values[:, : values.shape[1] // per * per].reshape(len(values), -1, per)
    if predictor == 2:  # differences of whole numbers, also where their bits are floats
        values = values.cumsum(1, dtype=values.dtype)
    kind = {2: "i", 3: "f"}.get(layout.get(SAMPLE_FORMAT, 1))
    return values.view(f"{kind}{size}") if kind else values


def _unpack_bits(stored: NDArray[np.uint8], bits: int) -> NDArray[np.uint16]:
    """(rows, bytes) -> (rows, values) of so many bits, the highest first."""
    count = stored.shape[1] * 8 // bits
    values = np.empty((len(stored), count), np.uint16)
    weights = np.uint16(1) << np.arange(bits - 1, -1, -1, dtype=np.uint16)
    for into, row in zip(values, stored, strict=True):  # row by row: it takes 8 bytes a byte
        into[:] = np.unpackbits(row, count=count * bits).reshape(count, bits) @ weights
    return values


def _decompress(data: bytes, compression: int, row_bytes: int, length: int) -> bytes:
    if compression == NONE:
        return data
    if compression in (DEFLATE, OLD_DEFLATE):
        return zlib.decompressobj().decompress(data, length)
    if compression == LZMA:
        return lzma.LZMADecompressor(memlimit=1 << 28).decompress(data, length)
    # Pillow's libtiff unpacks LZW and PackBits, of a TIFF whose 8-bit pixels are these bytes.
    tags = {WIDTH: row_bytes, HEIGHT: length // row_bytes, BITS: 8, COMPRESSION: compression}
    tags |= {PHOTOMETRIC: 1, STRIP_OFFSETS: 8 + 2 + 9 * 12 + 4, SAMPLES: 1}
    tags |= {STRIP_ROWS: length // row_bytes, STRIP_COUNTS: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    try:
        with Image.open(io.BytesIO(head + data), formats=["TIFF"]) as im:
            return im.tobytes()
    except Image.DecompressionBombError as error:  # whose limit on pixels is one on bytes here
        raise ImageError(f"cannot read a TIFF's strip of {length} bytes: save it as PNG") from error
