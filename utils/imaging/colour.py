"""Colours that a file tells without an ICC profile: PNG's chunks, AVIF's numbers; and the profile
that says the same."""

import struct
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from utils.imaging.formats import Png, read_checked

Chunks = tuple[tuple[bytes, bytes], ...]  # names and contents of PNG chunks
NAMES = (b"cICP", b"sRGB", b"gAMA", b"cHRM")
MOST_TAGS = 100  # of a profile
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # IEC 61966-2-1
D50 = (0.9642, 1.0, 0.8249)  # XYZ of the white that profiles are relative to
BRADFORD = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))


@dataclass(frozen=True)
class Space:
    """x and y of white, red, green and blue; and a parametric curve from values to light, of one
    number, an exponent, or of five, as ICC's types 0 and 3 have it."""

    corners: tuple[float, ...]
    curve: tuple[float, ...]


WHITE = (0.3127, 0.329)  # D65
SRGB = Space((*WHITE, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), SRGB_CURVE)
ADOBE_RGB = Space((*WHITE, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06), (563 / 256,))
# ITU-T H.273, tables 2 and 3.
PRIMARIES = {
    1: SRGB.corners,
    9: (*WHITE, 0.708, 0.292, 0.17, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
    12: (*WHITE, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06),
}
CURVES = {4: (2.2,), 5: (2.8,), 8: (1.0,), 13: SRGB_CURVE}


def read_chunks(file: BinaryIO, png: Png | None = None, has_profile: bool = False) -> Chunks:
    """What a PNG tells of its colours, or an AVIF in the form of PNG's cICP; else nothing.

    has_profile: the picture has an ICC profile. In an AVIF or HEIC that is what counts; numbers
    beside it may be those of another picture, such as one that a gain map makes.
    """
    found: dict[bytes, bytes] = {}
    for name, at, length in png.chunks if png else ():
        if name == b"IDAT":
            break
        if name in NAMES and length <= 32:
            file.seek(at)
            if data := read_checked(file, name, length):
                found.setdefault(name, data)
    if has_profile:
        return tuple(found.items())
    file.seek(0)
    head = file.read(4104)
    code = head.partition(b"colrnclx")[2][:4] if head[4:8] == b"ftyp" else b""
    # Not told, or what all take for sRGB: BT.709 and 601, and sRGB itself.
    if len(code) == 4 and not (code[1] in (1, 2) and code[3] in (1, 2, 6, 13)):
        found[b"cICP"] = bytes((code[1], code[3], 0, 1))
    return tuple(found.items())


def find_space(chunks: Chunks) -> Space | None:
    """The colours that chunks tell, by the precedence of PNG's third edition; None where these are
    no numbers of a known meaning, as PQ and HLG."""
    told = dict(chunks)
    try:
        if code := told.get(b"cICP"):
            return Space(PRIMARIES[code[0]], CURVES[code[1]])
        if b"sRGB" in told:
            return SRGB
        corners, curve = SRGB.corners, SRGB.curve
        if data := told.get(b"cHRM"):
            corners = tuple(value / 100000 for value in struct.unpack(">8I", data))
        if data := told.get(b"gAMA"):
            curve = (100000 / int.from_bytes(data, "big"),)
        space = Space(corners, curve)
        return SRGB if _is_near_srgb(space) else space
    except (KeyError, IndexError, ZeroDivisionError, struct.error):
        return None


def _is_near_srgb(space: Space) -> bool:
    """As files of sRGB round it: an exponent of 2.2 and three digits."""
    near = np.allclose(space.corners, SRGB.corners, atol=2e-3)
    return near and (len(space.curve) == 5 or abs(space.curve[0] - 2.2) < 0.03)


def find_profile(chunks: Chunks, grey: bool = False) -> bytes | None:
    """An ICC profile of what chunks tell; None where that is sRGB, which needs none, or nothing."""
    space = find_space(chunks)
    if space is None or space == SRGB:
        return None
    try:
        return make_profile(space, grey)
    except (ArithmeticError, ValueError, struct.error):  # absurd numbers
        return None


def make_profile(space: Space, grey: bool = False) -> bytes:
    """An ICC profile, version 4.2 (ICC.1:2004-10), of RGB or of grey with that curve."""
    kind = 3 if len(space.curve) == 5 else 0
    curve = struct.pack(">4s4xHxx", b"para", kind) + _fixed(*space.curve)
    adapt, corners = _adapted(space)
    tags = {b"chad": struct.pack(">4s4x", b"sf32") + _fixed(*adapt.flatten())}
    if grey:
        tags[b"kTRC"] = curve
    else:
        for letter, corner in zip((b"r", b"g", b"b"), corners.T, strict=True):
            tags |= {letter + b"XYZ": _xyz(corner), letter + b"TRC": curve}
    return _profile_of(tags, grey)


def find_grey(icc: bytes) -> bytes | None:
    """The profile of grey that a profile of RGB is for pixels of equal red, green and blue; None
    where it has not one curve for all three."""
    try:
        (count,) = struct.unpack(">I", icc[128:132])
        table = icc[132 : 132 + 12 * min(count, MOST_TAGS)]
        tags = {n: icc[at : at + size] for n, at, size in struct.iter_unpack(">4sII", table)}
        red, green, blue = (tags[name] for name in (b"rTRC", b"gTRC", b"bTRC"))
    except (struct.error, KeyError):
        return None
    if not red == green == blue or red[:4] not in (b"curv", b"para"):
        return None
    return _profile_of({b"kTRC": red}, grey=True)


def _profile_of(tags: dict[bytes, bytes], grey: bool) -> bytes:
    """A profile with these tags and those that every one has."""
    text = "Made from the colour tags of the picture".encode("utf-16-be")
    record = struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": record, b"cprt": record, b"wtpt": _xyz(D50), **tags}
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    colours = b"GRAY" if grey else b"RGB "
    header = struct.pack(
        ">4xI4s4s4s6H4s", 0x04200000, b"mntr", colours, b"XYZ ", 2024, 1, 1, 0, 0, 0, b"acsp"
    )
    header = (header + bytes(28) + _fixed(*D50)).ljust(124, b"\0")
    return struct.pack(">I", 128 + len(table) + len(body)) + header + table + body


def _adapted(space: Space) -> tuple[NDArray, NDArray]:
    """Bradford's adaptation of the white to D50, and the XYZ of red, green and blue after it, in
    columns: ICC.1:2004-10, annex E."""
    white, *corners = (
        np.array((x / y, 1, (1 - x - y) / y))
        for x, y in zip(space.corners[::2], space.corners[1::2], strict=True)
    )
    cones = np.array(BRADFORD)
    gains = np.diag(cones @ D50 / (cones @ white))
    adapt = np.linalg.inv(cones) @ gains @ cones
    matrix = np.stack(corners, 1)
    return adapt, adapt @ (matrix * np.linalg.solve(matrix, white))


def _xyz(values: NDArray | tuple[float, ...]) -> bytes:
    return struct.pack(">4s4x", b"XYZ ") + _fixed(*values)


def _fixed(*values: float) -> bytes:
    """s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))
