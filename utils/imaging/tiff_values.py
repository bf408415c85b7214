"""The pixels of TIFFs of other than 8 bits a value, or signed."""

import io
import lzma
import struct
import zlib
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from utils.imaging.formats import ImageError
from utils.imaging.tiff import (
    BITS,
    COMPRESSION,
    DEFLATE,
    FILL_ORDER,
    HEIGHT,
    LZMA,
    LZW,
    NONE,
    OLD_DEFLATE,
    PACKBITS,
    PHOTOMETRIC,
    PLANAR,
    PREDICTOR,
    SAMPLE_FORMAT,
    SAMPLES,
    STRIP_COUNTS,
    STRIP_OFFSETS,
    STRIP_ROWS,
    TILE_COUNTS,
    TILE_HEIGHT,
    TILE_OFFSETS,
    TILE_WIDTH,
    WIDTH,
    Layout,
    describe,
)

MOST_STRIPS = 1 << 16  # of a plane; of those that Pillow unpacks, one by one, a quarter
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


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
