"""Images and the files that hold them, whole and damaged."""

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

H, W = 9, 14
SOMEBODY = "José ©".encode()
ARTIST, ORIENTATION, EXIF_IFD, GPS_IFD = 0x013B, 0x0112, 0x8769, 0x8825


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> NDArray:
    """Independent random values: every misplaced one shows."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def smooth(dtype: type = np.uint8, channels: int = 3) -> NDArray:
    """(64, 96, C) that lossy formats keep within a few levels."""
    y, x = np.mgrid[:64, :96] / 96
    planes = [0.1 + 0.8 * x, 0.9 - 0.8 * y, 0.3 + 0.5 * x * y, 0.2 + 0.4 * x + 0.4 * y]
    return np.rint(np.dstack(planes[:channels]) * np.iinfo(dtype).max).astype(dtype)


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colourful image, so that bicubic and SR are neither perfect nor hopeless."""
    coarse = noise(height // 4 + 2, width // 4 + 2, 3, seed=seed)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def mirrored(image: NDArray) -> NDArray:
    """With 3 pixels more on each side, the picture's own mirrored: the edge's twice."""
    around = cv2.copyMakeBorder(image, 3, 3, 3, 3, cv2.BORDER_REFLECT)
    return around.reshape(image.shape[0] + 6, image.shape[1] + 6, -1)


def save(path: Path, picture: Image.Image, **options: object) -> Path:
    picture.save(path, **options)
    return path


def opened(path: Path | str) -> Image.Image:
    """An image read to its end, and its file closed."""
    with Image.open(path) as image:
        image.load()
    return image


def names(folder: Path) -> list[str]:
    """Everything in a folder and below, hidden and temporary files too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def png(pixels: NDArray, kind: int, bits: int, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG of colour type `kind`, written by its specification; (H, bytes or values)."""
    rows = pixels.astype(">u2") if bits == 16 else pixels
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    width = pixels.shape[1] * 8 // bits if bits < 8 else pixels.shape[1]
    header = struct.pack(">IIBBBBB", width, pixels.shape[0], bits, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def profile(colours: bytes = b"RGB ") -> bytes:
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return data[:16] + colours + data[20:]


def exif(orientation: int = 6) -> bytes:
    tags = Image.Exif()
    tags[ORIENTATION], tags[ARTIST] = orientation, SOMEBODY
    tags[EXIF_IFD] = {0xA002: W, 0xA003: H, 0x9003: "2023:04:05 06:07:08"}
    tags[GPS_IFD] = {1: "N", 2: (47.0, 8.0, 30.0)}
    return tags.tobytes()


def repeated(image: NDArray) -> NDArray:
    """In place of the network: every pixel sixteen times."""
    assert image.dtype in (np.uint8, np.uint16) and image.shape[2] in (1, 3)
    return image.repeat(4, 0).repeat(4, 1)


def small_files() -> dict[str, bytes]:
    """One of each kind, with all that may be in it."""
    rgb, frames = (
        Image.fromarray(noise(31, 37, 3)),
        [Image.new("RGB", (8, 8), c) for c in "rgb" for c in ("red", "blue")],
    )
    files = {}
    extras = {"exif": exif(), "icc_profile": profile()}
    for name, picture, options in (
        ("png", rgb, extras),
        ("jpg", rgb, extras),
        ("webp", rgb, extras),
        ("jpg", rgb, {"progressive": True}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True}),
        ("tif", rgb, extras),
        ("tif", rgb, {"compression": "tiff_lzw"}),
        ("tif", rgb, {"compression": "jpeg"}),
        ("bmp", rgb, {}),
        ("bmp", rgb.quantize(16), {}),
        ("gif", rgb, {}),
        ("gif", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("png", rgb.quantize(16), {"transparency": 3}),
        ("png", frames[0], {"save_all": True, "append_images": frames[1:]}),
        ("tif", frames[0], {"save_all": True, "append_images": frames[1:]}),
    ):
        buffer = io.BytesIO()
        picture.save(buffer, Image.registered_extensions()[f".{name}"], **options)
        files[f"{len(files)}.{name}"] = buffer.getvalue()
    files["deep.png"] = png(noise(H, W, 4, dtype=np.uint16), 6, 16)
    files["deep.tif"] = cv2.imencode(".tif", noise(H, W, 3, dtype=np.uint16))[1].tobytes()
    return files


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """A file with some damage: bits, a header's fields, an end, or pieces changed about."""
    changed = bytearray(data)
    kind = rng.integers(5)
    if kind == 0:
        for at in rng.integers(0, len(data), rng.integers(1, 9)):
            changed[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        return data[: rng.integers(1, len(data))]
    elif kind == 2:
        at = rng.integers(0, min(64, len(data)))
        size = rng.choice([1, 2, 4])
        changed[at : at + size] = rng.choice([b"\xff", b"\0", b"\x7f", b"\x80"]) * int(size)
    elif kind == 3:
        a, b, c = sorted(rng.integers(0, len(data), 3))
        return data[:a] + data[b:c] + data[a:b] + data[c:]
    else:
        a, b = sorted(rng.integers(0, len(data), 2))
        return data[:a] + data[a:b] * int(rng.integers(0, 3)) + data[b:]
    return bytes(changed)
