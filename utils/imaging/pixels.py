"""What a file's values are as pixels: grey or colour of 8 or 16 bits, upright."""

import io
import re
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from utils.imaging import tiff, tiff_values
from utils.imaging.formats import ImageError, check_size

GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
NETPBM = re.compile(
    rb"P(?:(?P<plain>(?P<bits>1)|[23])|[56])"
    + GAP
    + rb"(?P<width>\d{1,9})"
    + GAP
    + rb"(?P<height>\d{1,9})(?(bits)|"
    + GAP
    + rb"(?P<most>\d{1,9}))\s"
)


def deep_tiff(
    file: BinaryIO, layout: tiff.Layout, bands: tuple[str, ...], rawmode: str
) -> tuple[NDArray, str]:
    """More than 8 bits of a TIFF, in the bands and of the rawmode that it had with 8."""
    pixels, note = tiff_values.read_deep(file, layout)[..., : len(bands)], ""
    if layout.get(tiff.SAMPLE_FORMAT, 1) != 1:
        pixels, note = _deep_grey(pixels)
    if layout.get(tiff.PHOTOMETRIC) == 0:  # white is zero
        pixels = np.iinfo(pixels.dtype).max - pixels
    if "a" in rawmode:  # alpha is multiplied into the colours
        alpha = np.maximum(pixels[..., -1:], 1).astype(np.float32)
        colours = (pixels[..., :-1] / alpha).clip(0, 1) * np.iinfo(pixels.dtype).max
        pixels = np.dstack((np.rint(colours).astype(pixels.dtype), pixels[..., -1]))
    return pixels, note


def read_netpbm(file: BinaryIO, header: re.Match[bytes]) -> NDArray:
    """PBM, PGM or PPM written in digits, or of more than 8 bits, scaled to 8 or 16."""
    width, height, most = int(header["width"]), int(header["height"]), int(header["most"] or 1)
    check_size(width, height)
    shape = (height, width, 3 if header[0][1:2] in b"36" else 1)
    count = width * height * shape[2]
    file.seek(header.end())
    if not header["plain"]:
        values = np.frombuffer(file.read(2 * count), ">u2", count)
    else:
        data = re.sub(rb"#[^\r\n]*", b"", file.read(16 * count + (1 << 16)))
        if header["most"]:
            # All there are: of a number of them NumPy leaves those missing as memory was before. A
            # text or another picture may follow.
            digits = re.match(rb"[\d\s]*", data)[0]  # type: ignore[index]
            values = np.fromstring(digits, np.int32, sep=" ")[:count]
        else:  # 1 is black, and there may be no blanks between
            data = data.translate(None, b" \t\r\n\v\f")
            values = np.uint8(ord("1")) - np.frombuffer(data, np.uint8, count)
    if len(values) < count or not count or not 0 < most < 65536 or values.min() < 0:
        raise ImageError("expected a whole PNM, got one that lacks pixels")
    if header["bits"] and values.max() > 1:
        raise ImageError("expected 0 and 1 in a PBM, got other characters")
    levels, dtype = (255, np.uint8) if most < 256 else (65535, np.uint16)
    values = values.clip(0, most)
    if most < levels:
        values = np.rint(values * np.float32(levels / most))
    return values.reshape(shape).astype(dtype)


def to_pixels(im: Image.Image, rawmode: str) -> tuple[NDArray, str]:
    """A decoded picture as (H, W, 1..4), and what to know about it."""
    mode, note = im.mode, ""
    if mode[0] in "IF":
        pixels, note = _deep_grey(np.asarray(im))
        return pixels[..., None], note
    if mode == "CMYK":
        if rawmode.startswith("CMYK;16"):
            note = "its CMYK was read as 8 bit"
        try:
            profile = ImageCms.ImageCmsProfile(io.BytesIO(im.info["icc_profile"]))
            srgb = ImageCms.createProfile("sRGB")
            im = ImageCms.profileToProfile(im, profile, srgb, outputMode="RGB") or im
        except (KeyError, OSError, ImageCms.PyCMSError):  # none, or a damaged one
            im = im.convert("RGB")
    elif mode not in ("L", "LA", "RGB", "RGBA"):
        clear = mode in ("PA", "RGBa") or mode == "P" and im.has_transparency_data
        grey = {"1": "L", "La": "LA"}
        im = im.convert(grey.get(mode, "RGBA" if clear else "RGB"))
    return np.atleast_3d(np.asarray(im)), note


def _deep_grey(values: NDArray) -> tuple[NDArray, str]:
    """Grey of more than 8 bits, or signed, as 16 bit, and what to know about it."""
    if not np.isfinite(values).all():
        raise ImageError("expected finite pixels, got NaN or infinity")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f" and low >= 0 and high <= 1:
        values = np.rint(values.astype(max(values.dtype, np.dtype(np.float32))) * 65535)
    elif values.dtype.kind == "f" or low < 0 or high > 65535:
        values = np.rint((values.astype(np.float64) - low) * (65535 / (high - low or 1)))
        return values.astype(np.uint16), f"its values, {low:g} to {high:g}, became 0 to 65535"
    return values.astype(np.uint8 if values.dtype.itemsize == 1 else np.uint16), ""


def turn(pixels: NDArray, orientation: int) -> NDArray:
    """Upright pixels of those with this orientation, as EXIF counts them."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    down = -1 if orientation in (3, 4, 7, 8) else 1
    return pixels[::down, :: -1 if orientation in (2, 3, 6, 7) else 1]
