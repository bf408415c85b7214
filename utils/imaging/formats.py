"""What image files are by their first bytes, and what is looked at before anything is decoded."""

import io
import os
import re
import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

LARGEST = 64 << 20  # LR pixels; 16 times as many come out
MOST_BYTES = 8 * LARGEST  # that are read at once: 16-bit RGBA
MOST_READS = 2_000_000  # a few seconds of them; one of a byte or two counts eight times
MOST_CHUNKS = 1 << 18  # of a PNG

PLUGINS = {  # format: Python module, what Pillow calls it then, package
    "HEIC": ("pillow_heif", "HEIF", "pillow-heif"),
    "JPEG XL": ("pillow_jxl", "JXL", "pillow-jxl-plugin"),
}
OTHERS = {  # what is not read, by its first bytes; a dot stands for any
    "JPEG XL": rb"\xff\x0a|\x00\x00\x00\x0cJXL ",
    "AVIF": rb"....ftypavi[fs]",
    "HEIC": rb"....ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1)",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "Canon's camera raw": rb"....ftypcrx |II\*\x00....CR",
    "a camera's raw": rb"FUJIFILMCCD-RAW|IIU\x00|IIR[OS]|MMOR|FOVb",
    "a film": rb"....ftyp|....moov|\x1a\x45\xdf\xa3|RIFF....AVI ",
    "JPEG XR": rb"II\xbc\x01",
    "an icon": rb"\x00\x00[\x01\x02]\x00[^\x00]\x00",
    "Photoshop": rb"8BPS",
    "GIMP's XCF": rb"gimp xcf",
    "OpenEXR": rb"\x76\x2f\x31\x01",
    "Radiance HDR": rb"#\?R(?:ADIANC|GB)E",
    "DirectDraw": rb"DDS ",
    "QOI": rb"qoif",
    "colour PFM": rb"PF\s",
    "PAM": rb"P7\s",
    "FITS": rb"SIMPLE  =",
    "PCX": rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]",
    "SVG": rb"\s*<svg|\s*<\?xml[^>]*>(?:\s|<!--.*?-->|<!DOCTYPE svg[^>]*>)*<svg",
    "PDF": rb"%PDF",
    "PostScript": rb"%!PS",
    "an archive": rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!",
    "a web page": rb"(?i)\s*<(?:!doctype )?html",
    "a pointer of Git LFS": rb"version https://git-lfs",
    # No magic number: the sizes of header, colour map and pixels fit.
    "TGA": rb".(?:\x00[\x02\x03\x0a\x0b].{5}|\x01[\x01\x09].{4}[\x0f\x10\x18\x20]).{8}"
    rb"[\x08\x0f\x10\x18\x20]",
}
ADVICE = {
    "AVIF": "update Pillow",
    "a web page": "download the image itself",
    "a pointer of Git LFS": "run git lfs pull",
    "an archive": "unpack it",
}


class ImageError(ValueError):
    """An image that cannot be used; the message names the file or size and the reason."""


class ImageReader(io.BufferedReader):
    """A file that is neither read whole if it is huge nor forever in small pieces, whatever its
    content makes a decoder do: ImageError instead."""

    reads = 0
    patches: dict[int, bytes] = {}  # place: what is read there instead

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file. Raises ImageError if it is too much."""
        self.reads += 8 if size in (1, 2) else 1
        if size is None or not 0 <= size <= MOST_BYTES:
            size = os.fstat(self.fileno()).st_size - self.tell()
            if size > MOST_BYTES:
                raise ImageError(
                    f"expected at most {MOST_BYTES >> 20} MiB of data, got {size >> 20}"
                )
        if self.reads > MOST_READS:
            raise ImageError("expected pixels, got too many small pieces of other data")
        start = self.tell() if self.patches else 0
        data = super().read(size)
        for place, patch in self.patches.items():
            if start <= place <= start + len(data) - len(patch):
                at = place - start
                data = data[:at] + patch + data[at + len(patch) :]
        return data


def recognise(head: bytes) -> str:
    """The name of a format that is not read without more, by a file's first bytes, or ""."""
    return next((n for n, magic in OTHERS.items() if re.match(magic, head, re.DOTALL)), "")


def refusal(name: str) -> ImageError:
    """Why a file of this format cannot be read, and what to do."""
    package = PLUGINS[name][2] if name in PLUGINS else ""
    advice = f"pip install {package}" if package else ADVICE.get(name, "save it as PNG")
    return ImageError(f"cannot read {name}: {advice}")


def check_size(width: int, height: int) -> None:
    """Raise ImageError if there are too many pixels."""
    if width * height > LARGEST:
        raise ImageError(too_large(width * height))


def too_large(count: object) -> str:
    """What to say then."""
    return f"expected at most {LARGEST} pixels, got {count}: cut the image into parts"


def check_webp(head: bytes, size: int) -> None:
    """Raise ImageError for a WebP cut short, or too large by its header: memory is taken for it as
    soon as it is opened."""
    if len(head) < 30 or 8 + int.from_bytes(head[4:8], "little") > size:
        raise ImageError("expected a whole WebP, got one cut short")
    if head[12:16] == b"VP8X":
        check_size(*(1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27)))
    elif head[12:16] == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        check_size(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    else:
        check_size(*(size & 0x3FFF for size in struct.unpack("<HH", head[26:30])))


@dataclass(frozen=True)
class Png:
    """Where the parts of a PNG lie: chunks as (name, place of its data, length). size: bytes of its
    pixels, unpacked, as they are filtered."""

    chunks: list[tuple[bytes, int, int]]
    size: int
    interlaced: bool


def read_png(file: BinaryIO) -> Png:
    """The chunks of a PNG up to its end, whatever lies behind it.

    Raises:
        ImageError: it is damaged, cut short or too large.
    """
    chunks: list[tuple[bytes, int, int]] = []
    broken = ImageError("expected a whole PNG, got one cut short or damaged")
    at, packed, size, interlaced = 8, 0, 0, False
    while not chunks or chunks[-1][0] != b"IEND":
        file.seek(at)
        head = file.read(8)
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if len(head) < 8 or not name.isalpha() or length >= 1 << 31 or len(chunks) >= MOST_CHUNKS:
            raise broken
        packed += length if name == b"IDAT" else 0
        if name[:1].isupper() and name != b"PLTE":
            if name == b"IDAT" and packed > 2 * size + (1 << 20):
                raise broken  # more than this is no compression
            data = read_checked(file, name, length)
            if data is None:
                raise broken
            if name == b"IHDR" and length == 13:
                size, interlaced = _png_size(data), bool(data[12])
        chunks.append((name, at + 8, length))
        at += 12 + length
    if chunks[0][0] != b"IHDR" or not packed:
        raise broken
    return Png(chunks, size, interlaced)


def read_checked(file: BinaryIO, name: bytes, length: int) -> bytes | None:
    """The beginning of a chunk's data, or None if it is short or its checksum is another."""
    checksum, first, left = zlib.crc32(name), b"", length
    while left:
        if not (data := file.read(min(left, 1 << 20))):
            return None
        first = first or data
        checksum = zlib.crc32(data, checksum)
        left -= len(data)
    return first if file.read(4) == struct.pack(">I", checksum) else None


def _png_size(header: bytes) -> int:
    """Bytes that a PNG's pixels have, with a filter for each row."""
    width, height, depth, kind, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    check_size(width, height)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(kind, 1)
    passes = [(0, 0, 1, 1)]
    if interlaced:  # Adam7: first column and row, steps between columns and rows
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)]
        passes += [(0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    total = 0
    for x, y, across, down in passes:
        columns, rows = -((x - width) // across), -((y - height) // down)
        total += max(rows, 0) * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total


def check_png_rows(file: BinaryIO, png: Png) -> None:
    """Raise ImageError if a PNG has fewer pixels than its header says, which Pillow leaves black
    without a word."""
    inflate, left = zlib.decompressobj(), png.size
    for name, at, length in png.chunks:
        if name == b"IDAT":
            file.seek(at)
            data = file.read(length)
            while left > 0 and (piece := inflate.decompress(data, 1 << 20)):
                data = inflate.unconsumed_tail
                left -= len(piece)
    if left > 0:
        raise ImageError(f"expected a whole PNG, got one that lacks {left} of {png.size} bytes")


def without_texts(file: BinaryIO, png: Png) -> bytes:
    """A PNG without the texts and the colour profile in it."""
    kept = [b"\x89PNG\r\n\x1a\n"]
    for name, at, length in png.chunks:
        if name not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            file.seek(at - 8)
            kept.append(file.read(12 + length))
    return b"".join(kept)


def check_jpeg_scans(data: bytes, most: int = 50) -> None:
    """Raise ImageError for a JPEG that goes over its pixels more than `most` times: kilobytes that
    would take minutes."""
    start, end = _jpeg_scans(data)
    if (scans := data.count(b"\xff\xda", start, end)) > most:
        raise ImageError(f"expected at most {most} scans in a JPEG, got {scans}")


def with_other_end(data: bytes) -> bytes:
    """A JPEG with further data before its end, which change no pixel if none is missing."""
    _, end = _jpeg_scans(data)
    return data[:end] + bytes([0x55, 0x2A, 0x13, 0x6D]) * 4096 + data[end:]


def _jpeg_scans(data: bytes) -> tuple[int, int]:
    """The places of a JPEG's first scan and of its end."""
    at = 2  # behind the segments, one of which may hold a thumbnail with an end of its own
    while data[at : at + 1] == b"\xff" and data[at + 1] != 0xDA:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at + 1] != 0xFF else 1
    end = data.find(b"\xff\xd9", at)
    return at, end if end >= 0 else len(data)
