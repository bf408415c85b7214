"""Small pictures of every format, depth and layout that is read, and the commands' readers."""

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, features

from tests.fuzz.damage import Rng, damaged, pick
from tests.fuzz.kinds import Kind, Unfit
from tests.image_files import exif, noise, png, profile
from utils.imaging import decode, formats
from utils.imaging.images import ImageError, read_rgb

W, H = 37, 29


@functools.cache
def seeds() -> list[tuple[str, bytes]]:
    """Whole files, (suffix, content)."""
    return [*_pngs(), *_by_pillow(), *_tiffs(), *_bmps(), *_pnms()]


def _pngs() -> Iterator[tuple[str, bytes]]:
    """All colour types and depths, plain and interlaced, with palettes and clear colours."""
    palette = (b"PLTE", noise(256, 3).tobytes())
    for kind, channels, depths in (
        (0, 1, (1, 2, 4, 8, 16)),
        (2, 3, (8, 16)),
        (3, 1, (1, 2, 4, 8)),
        (4, 2, (8, 16)),
        (6, 4, (8, 16)),
    ):
        for bits in depths:
            extra = [(b"PLTE", palette[1][: 3 * 2**bits])] if kind == 3 else []
            clear = {0: b"\0\1", 2: b"\0\1\0\2\0\3", 3: b"\0\x80"}.get(kind)
            dtype = np.uint16 if bits == 16 else np.uint8
            width = (W * bits + 7) // 8 if bits < 8 else W * channels
            pixels = noise(H, width, dtype=dtype)
            if bits >= 8:
                pixels = pixels.reshape(H, W, channels)
            yield "png", png(pixels, kind, bits, *extra)
            if clear:
                yield "png", png(pixels, kind, bits, *extra, (b"tRNS", clear))
            yield "png", interlaced(kind, channels * bits, bits, *extra)
    colour = [(b"gAMA", struct.pack(">I", 45455)), (b"cHRM", bytes(32)), (b"cICP", b"\x09\x10\0\1")]
    texts = [(b"tEXt", b"Title\0text"), (b"zTXt", b"Title\0\0" + zlib.compress(b"t" * 5000))]
    more = [(b"iCCP", b"p\0\0" + zlib.compress(profile())), (b"eXIf", exif()), *colour, *texts]
    yield "png", png(noise(H, W, 3), 2, 8, *more, (b"pHYs", struct.pack(">IIB", 2835, 2835, 1)))


def interlaced(kind: int, bits: int, depth: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG in Adam7's seven passes, of random bytes; `bits` of a pixel, `depth` of a value."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    raw = b""
    for x, y, dx, dy in (*passes, (0, 1, 1, 2)):
        width, height = (W - x + dx - 1) // dx, (H - y + dy - 1) // dy
        raw += b"".join(b"\0" + noise((width * bits + 7) // 8).tobytes() for _ in range(height))
    header = struct.pack(">IIBBBBB", W, H, depth, kind, 0, 0, 1)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def _encoded(picture: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def _by_pillow() -> Iterator[tuple[str, bytes]]:
    """JPEG, MPO, WebP, GIF, AVIF and animated PNG."""
    rgb, grey = Image.fromarray(noise(H, W, 3)), Image.fromarray(noise(H, W))
    rgba = Image.fromarray(noise(H, W, 4))
    extras = {"exif": exif(), "icc_profile": profile()}
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    yield "jpg", _encoded(rgb, "JPEG", **extras)
    for options in ({"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}):
        yield "jpg", _encoded(rgb, "JPEG", **options)
    yield "jpg", _encoded(grey, "JPEG", progressive=True)
    yield "jpg", _encoded(rgb.convert("CMYK"), "JPEG")
    yield "jpg", _encoded(rgb, "JPEG", keep_rgb=True)
    yield "jpg", _encoded(rgb, "MPO", **frames)
    yield "webp", _encoded(rgb, "WEBP", **extras)
    yield "webp", _encoded(rgba, "WEBP", quality=60)
    yield "webp", _encoded(rgba, "WEBP", lossless=True)
    yield "webp", _encoded(rgb, "WEBP", duration=100, **frames)
    yield "gif", _encoded(rgb, "GIF")
    yield "gif", _encoded(rgba, "GIF")
    yield "gif", _encoded(rgb, "GIF", **frames)
    yield "png", _encoded(rgb, "PNG", **frames)
    if features.check("avif"):
        yield "avif", _encoded(rgb, "AVIF", **extras)
        yield "avif", _encoded(rgba, "AVIF")
        yield "avif", _encoded(rgb, "AVIF", **frames)


def _tiffs() -> Iterator[tuple[str, bytes]]:
    """Depths, compressions, planes, strips, and pages by Pillow and by hand."""
    rgb = Image.fromarray(noise(H, W, 3))
    for compression in ("raw", "tiff_lzw", "packbits", "tiff_adobe_deflate", "jpeg"):
        yield "tif", _encoded(rgb, "TIFF", compression=compression)
    for bilevel in ("group3", "group4", "tiff_ccitt"):
        yield "tif", _encoded(rgb.convert("1"), "TIFF", compression=bilevel)
    for mode in ("L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "1"):
        source = rgb.convert("RGB").convert(mode) if mode != "LAB" else Image.new("LAB", (W, H))
        yield "tif", _encoded(source, "TIFF")
    for dtype in (np.uint16, np.int32, np.float32):
        yield "tif", _encoded(Image.fromarray(noise(H, W).astype(dtype)), "TIFF")
    yield "tif", _encoded(rgb, "TIFF", exif=exif(), icc_profile=profile())
    yield "tif", _encoded(rgb, "TIFF", save_all=True, append_images=[rgb, rgb])
    yield "tif", _encoded(rgb, "TIFF", big_tiff=True)
    yield "tif", cv2.imencode(".tif", noise(H, W, 3, dtype=np.uint16))[1].tobytes()
    for order in "<>":
        yield "tif", tiff(noise(H, W, 3, dtype=np.uint16), order)
        yield "tif", tiff(noise(H, W, 4), order, tile=16)
        yield "tif", tiff(noise(3, H, W), order, planar=True)
        yield "tif", tiff(noise(H, W, 1, dtype=np.uint32), order)
        yield "tif", tiff(noise(H, W, 3, dtype=np.uint8).astype(np.float32), order)


def tiff(pixels: NDArray, order: str, tile: int = 0, planar: bool = False) -> bytes:
    """An uncompressed TIFF, (H, W, C), or (C, H, W) where planar; in tiles of a size, or strips."""
    channels = pixels.shape[0] if planar else pixels.shape[2]
    height, width = pixels.shape[1:] if planar else pixels.shape[:2]
    pixels = pixels.astype(pixels.dtype.newbyteorder(order))
    if tile:
        rows = np.pad(pixels, ((0, -height % tile), (0, -width % tile), (0, 0)))
        parts = [
            rows[y : y + tile, x : x + tile].tobytes()
            for y in range(0, height, tile)
            for x in range(0, width, tile)
        ]
    else:
        parts = [p.tobytes() for p in pixels] if planar else [pixels.tobytes()]
    at, body = 8, b"".join(parts)
    starts = [at + sum(map(len, parts[:i])) for i in range(len(parts))]
    kind = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags: dict[int, list[int]] = {
        256: [width],
        257: [height],
        258: [8 * pixels.itemsize] * channels,
        259: [1],
        262: [2 if channels > 2 else 1],
        277: [channels],
        284: [1 + planar],
        339: [kind] * channels,
    }
    if channels == 4:
        tags[338] = [2]
    if tile:
        tags |= {322: [tile], 323: [tile], 324: starts, 325: [*map(len, parts)]}
    else:
        tags |= {273: starts, 278: [height], 279: [*map(len, parts)]}
    directory, more = struct.pack(order + "H", len(tags)), b""
    begin = at + len(body) + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            packed, more = struct.pack(order + "I", begin + len(more)), more + packed
        directory += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at + len(body))
    return head + body + directory + struct.pack(order + "I", 0) + more


def _bmps() -> Iterator[tuple[str, bytes]]:
    rgb = Image.fromarray(noise(H, W, 3))
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield "bmp", _encoded(rgb.convert(mode), "BMP")
    yield "dib", _encoded(rgb, "DIB")
    runs = b"".join(bytes((W, i, 0, 0)) for i in range(H)) + b"\0\1"
    masks = struct.pack("<III", 0xF800, 0x07E0, 0x1F)
    rows = noise(H, (W * 2 + 3) // 4 * 4).tobytes()
    for bits, method, extra, data in (
        (4, 0, bytes(64), noise(H, (W // 2 + 4) // 4 * 4).tobytes()),
        (8, 1, bytes(1024), runs),
        (4, 2, bytes(64), runs),
        (16, 0, b"", rows),
        (16, 3, masks, rows),
    ):
        for height in (H, -H):
            info = struct.pack("<IiiHHIIiiII", 40, W, height, 1, bits, method, 0, 0, 0, 0, 0)
            start = 14 + len(info) + len(extra)
            head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
            yield "bmp", head + info + extra + data
    core = struct.pack("<IHHHH", 12, W, H, 1, 24)
    yield "bmp", b"BM" + struct.pack("<IHHI", 0, 0, 0, 26) + core + noise(H, W * 3 + 1).tobytes()


def _pnms() -> Iterator[tuple[str, bytes]]:
    text = " ".join(map(str, noise(H * W * 3))).encode()
    size = b"%d %d\n" % (W, H)
    yield "pbm", b"P1\n" + size + b"1 0 " * (W * H // 2) + b"1"
    yield "pgm", b"P2\n# a comment\n" + size + b"255\n" + text
    yield "ppm", b"P3\n" + size + b"255\n" + text
    yield "pbm", b"P4\n" + size + noise(H, (W + 7) // 8).tobytes()
    for most, dtype in ((255, ">u1"), (1000, ">u2"), (65535, ">u2")):
        grey, rgb = (noise(H, W, c).astype(dtype).tobytes() for c in (1, 3))
        yield "pgm", b"P5\n" + size + b"%d\n" % most + grey
        yield "ppm", b"P6\n" + size + b"%d\n" % most + rgb
    yield "pfm", b"Pf\n" + size + b"-1.0\n" + noise(H, W).astype("<f4").tobytes()
    yield "pfm", b"PF\n" + size + b"1.0\n" + noise(H, W, 3).astype(">f4").tobytes()


def make(rng: Rng, folder: Path) -> Path:
    """A damaged picture, sometimes under the suffix of another format."""
    suffix, data = pick(rng, seeds())
    if rng.random() < 0.05:
        suffix = pick(rng, ["png", "jpg", "tif", "webp", "bmp"])
    path = folder / f"picture.{suffix}"
    path.write_bytes(damaged(data, rng, (W, H)))
    return path


def attack(path: Path) -> None:
    """Read it for upscale.py, and for the challenge and training."""
    errors = []
    for reader in (decode.read, read_rgb):
        try:
            result = reader(path)
        except ImageError as error:
            if str(path) not in str(error):
                raise Unfit(f"a message that does not name the file: {error}") from error
            errors.append(error)
            continue
        if isinstance(result, np.ndarray):
            result = decode.Photo(result)
        height, width, channels = result.pixels.shape
        if not (0 < height * width <= formats.LARGEST and channels in (1, 3)):
            raise Unfit(f"pixels {result.pixels.shape} of {reader.__name__}")
        if result.pixels.dtype not in (np.uint8, np.uint16):
            raise Unfit(f"pixels of {result.pixels.dtype}")
        alpha = result.alpha
        if alpha is not None and (alpha.shape, alpha.dtype) != (
            (height, width),
            result.pixels.dtype,
        ):
            raise Unfit(f"alpha {alpha.shape} {alpha.dtype} of pixels {result.pixels.shape}")
    if errors:
        raise errors[0]


KIND = Kind("images", make, attack, (ImageError,))
