"""Files with some damage, by a random generator: bytes anywhere, sizes, chunks, values of JSON."""

import copy
import math
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator
LARGEST = 4 << 20  # bytes of a damaged file
EXTREMES = (0, 1, 0x7F, 0xFF, 0x3FFF, 0x7FFF, 8192, 30000, 0xFFFF, 1 << 20, 2**31 - 1, 2**32 - 1)
SIGNATURE = b"\x89PNG\r\n\x1a\n"

HOSTILE = (
    "",
    "| a | b |\n|---|---|",
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "\x1b[2J\x1b[31mred\x07",
    "../../../etc/passwd",
    "/dev/full",
    "a/b",
    "..",
    "\\input{/etc/passwd} $ % # & _ { } ~ ^",
    "<!-- end -->",
    "<!-- generated: output -->",
    "${body} $contents",
    "\ud800 alone",
    "\u202egnp.x",
    "name\r\nmore",
    "\0",
    "`x` [y](javascript:alert(1)) *z*",
    "n" * 300,
    "n" * 100_000,
    "\\1 \\g<9>",
    "NaN",
    "2026-13-45T99:99:99+99:99",
)


def pick(rng: Rng, items: Sequence[Any]) -> Any:
    """One of a sequence, as it is: numpy's own choice makes arrays of them."""
    return items[int(rng.integers(len(items)))]


def damaged(data: bytes, rng: Rng, size: tuple[int, int] = (0, 0)) -> bytes:
    """A file with one to three kinds of damage; `size`: the width and height that are in it."""
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        kinds: list[Callable[[bytes, Rng], bytes]] = [_bits, _run, _cut, _moved, _repeated, _number]
        if min(size) > 0:
            kinds += [lambda d, r: _resized(d, r, size)] * 2
        if data.startswith((SIGNATURE, b"\xff\xd8", b"RIFF")):
            kinds += [_chunks] * 2
        data = pick(rng, kinds)(data, rng)[:LARGEST] or b"\0"
    if data.startswith(SIGNATURE) and rng.random() < 0.7:
        data = _with_checksums(data)  # so that what is behind them is reached
    return data


def _bits(data: bytes, rng: Rng) -> bytes:
    changed = bytearray(data)
    most = len(data) if rng.random() < 0.5 else min(len(data), 256)
    for at in rng.integers(0, most, rng.integers(1, 9)):
        changed[at] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _run(data: bytes, rng: Rng) -> bytes:
    """Bytes in a row replaced by random or equal ones."""
    at, length = int(rng.integers(len(data))), int(rng.choice([1, 2, 4, 16, 256]))
    random = rng.bytes(length)
    return data[:at] + pick(rng, [random, b"\0" * length, b"\xff" * length]) + data[at + length :]


def _cut(data: bytes, rng: Rng) -> bytes:
    if rng.random() < 0.5:
        return data[: int(rng.integers(1, len(data) + 1))]
    a, b = sorted(map(int, rng.integers(0, len(data), 2)))
    return data[:a] + data[b:]


def _moved(data: bytes, rng: Rng) -> bytes:
    a, b, c = sorted(map(int, rng.integers(0, len(data), 3)))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def _repeated(data: bytes, rng: Rng) -> bytes:
    a, b = sorted(map(int, rng.integers(0, len(data), 2)))
    times = min(int(rng.choice([2, 3, 50, 5000])), 1 + LARGEST // (b - a + 1))
    return data[:a] + data[a:b] * times + data[b:]


def _number(data: bytes, rng: Rng) -> bytes:
    """Two or four bytes of the beginning, or a number in digits there, set to an extreme."""
    value = pick(rng, EXTREMES)
    at = int(rng.integers(min(len(data), 512)))
    if data[at : at + 1].isdigit() and rng.random() < 0.7:
        end = next((i for i in range(at, len(data)) if not 48 <= data[i] < 58), len(data))
        return data[:at] + str(value).encode() + data[end:]
    new = (
        struct.pack(pick(rng, [">I", "<I"]), value)
        if value > 0xFFFF or rng.random() < 0.5
        else (struct.pack(pick(rng, [">H", "<H"]), value))
    )
    return data[:at] + new + data[at + len(new) :]


def _resized(data: bytes, rng: Rng, size: tuple[int, int]) -> bytes:
    """Width or height, wherever the file may have it, set to an extreme."""
    forms = [">H", "<H", ">I", "<I"]
    found = [
        (form, at)
        for side in size
        for form in forms
        for at in _places(data[:4096], struct.pack(form, side))
    ]
    if not found:
        return _number(data, rng)
    form, at = pick(rng, found)
    value = pick(rng, EXTREMES) & (0xFFFF if form[1] == "H" else 0xFFFFFFFF)
    new = struct.pack(form, value)
    return data[:at] + new + data[at + len(new) :]


def _places(data: bytes, part: bytes) -> Iterator[int]:
    at = data.find(part)
    while at >= 0:
        yield at
        at = data.find(part, at + 1)


def _chunks(data: bytes, rng: Rng) -> bytes:
    """A chunk of a PNG, JPEG or WebP left out, repeated, exchanged with another, or emptied."""
    head, chunks = split(data)
    if len(chunks) < 2:
        return _bits(data, rng)
    i, j = map(int, rng.integers(0, len(chunks), 2))
    kind = int(rng.integers(4))
    if kind == 0:
        del chunks[i]
    elif kind == 1:
        chunks[i:i] = [chunks[j]] * min(int(rng.choice([1, 2, 2000])), LARGEST // len(chunks[j]))
    elif kind == 2:
        chunks[i], chunks[j] = chunks[j], chunks[i]
    else:
        chunks[i] = _cut(chunks[i], rng)
    return head + b"".join(chunks)


def split(data: bytes) -> tuple[bytes, list[bytes]]:
    """The beginning and the chunks of a PNG, JPEG or WebP; what follows the last is one too."""
    begin, chunks = (2 if data[:2] == b"\xff\xd8" else 8 if data[:1] == b"\x89" else 12), []
    at = begin
    while at < len(data):
        if begin == 8:
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        elif begin == 12:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            end = at + 8 + length + length % 2
        elif data[at + 1 : at + 2] == b"\xda":  # what follows is compressed
            end = next((p for p in _places(data, b"\xff\xc4") if p > at), len(data))
        else:
            end = at + 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
        chunks.append(data[at:end])
        at = end
    return data[:begin], chunks


def _with_checksums(data: bytes) -> bytes:
    head, chunks = split(data)
    return head + b"".join(
        chunk[:-4] + struct.pack(">I", zlib.crc32(chunk[4:-4])) if len(chunk) >= 12 else chunk
        for chunk in chunks
    )


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value in dictionaries and lists, that of the whole left out."""
    items: Any = content.items() if isinstance(content, dict) else ()
    for key, value in enumerate(content) if isinstance(content, list) else items:
        yield (*path, key)
        yield from places(value, (*path, key))


def value(rng: Rng) -> Any:
    """Something that does not belong there."""
    nested: Any = [0]
    for _ in range(int(rng.choice([3, 300]))):
        nested = pick(rng, [[nested], {"a": nested}])
    numbers = [0, -1, 1, 2**31, 2**63, -(2**64), 10**400, True, False, None]
    floats = [0.0, -0.0, 0.5, -1e-300, 1e300, math.nan, math.inf, -math.inf]
    others = [[], {}, [None], {"": 1}, nested, ["a", 1], [[1, 2]] * 3, list(range(5000))]
    return pick(rng, [*numbers, *floats, *HOSTILE, *others])


Special = tuple[type, Callable[[Any, Rng], Any]]


def restructured(content: Any, rng: Rng, special: Special | None = None) -> Any:
    """A record with one to three of its values, keys or lists changed; those of a `special` type
    by its function where they are to stay of their kind."""
    content = copy.deepcopy(content)
    for _ in range(int(rng.choice([1, 1, 2, 3]))):
        # Of the many places in long lists no more than of the few above them.
        known = list(places(content))
        depth = pick(rng, sorted({len(keys) for keys in known}) or [0])
        chosen = [keys for keys in known if len(keys) == depth]
        if not chosen:
            return value(rng)
        *path, key = pick(rng, chosen)
        inner = content
        for step in path:
            inner = inner[step]
        _change(inner, key, rng, special)
    return content


def _change(inner: Any, key: Any, rng: Rng, special: Special | None) -> None:
    kind = int(rng.integers(6))
    if special and isinstance(inner[key], special[0]) and rng.random() < 0.5:
        inner[key] = special[1](inner[key], rng)
    elif kind == 0:
        del inner[key]
    elif kind == 1 and isinstance(inner, dict):
        inner[pick(rng, HOSTILE)] = inner.pop(key)
    elif kind == 1:
        inner[key:key] = [copy.deepcopy(inner[key])] * int(rng.choice([1, 3, 100]))
    elif kind == 2:  # of the same kind, but extreme
        old = inner[key]
        same = [HOSTILE, [0, -1, 2**63, 10**400], [math.nan, math.inf, -1.0, 1e300, 5e-324]]
        inner[key] = pick(rng, same[0 if isinstance(old, str) else 1 + isinstance(old, float)])
    elif kind == 3:
        others = [inner[k] for k in inner] if isinstance(inner, dict) else inner
        inner[key] = copy.deepcopy(pick(rng, list(others)))
    else:
        inner[key] = value(rng)
