"""Image files to uint8 RGB arrays to network tensors and back, the challenge's way."""

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.command import UserError
from utils.files import write_bytes
from utils.imaging import decode
from utils.imaging.formats import ImageError

SYSTEM_FOLDERS = {"lost+found", "System Volume Information", "$RECYCLE.BIN"}
# What a data set takes. Photos may be of more formats: deploy/photos/suffixes.py.
EXTENSIONS = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}

logger = logging.getLogger(__name__)

# What concerns one image and not the others; running out of memory is a RuntimeError on a CPU.
BAD_IMAGE = (ImageError, FloatingPointError, MemoryError, RuntimeError)


def read_rgb(path: str | Path) -> NDArray[np.uint8]:
    """Read an image file as (H, W, 3) uint8 RGB; grey is repeated, alpha dropped, depth 8 bit.

    The orientation that a file tells of is not applied. Warns of further frames, and of values that
    had to be scaled.

    Raises:
        ImageError: the file is missing, empty, truncated or no image.
    """
    photo = decode.read(path, pixels_only=True)
    if photo.note:
        logger.warning("%s: %s", path, photo.note)
    pixels = photo.pixels
    if pixels.dtype == np.uint16:  # exact for 8-bit values times 257 and times 256 alike
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.shape[2] == 1:
        pixels = pixels.repeat(3, 2)
    return np.require(pixels, requirements=["C", "W"])  # what Pillow decoded is read-only


def write_png(path: str | Path, rgb: NDArray[np.uint8]) -> None:
    """Write (H, W, 3) uint8 RGB as a PNG; the file appears whole or not at all.

    Raises:
        OSError: the folder cannot be written.
    """
    ok, encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
    if not ok:
        raise ImageError(f"expected (H, W, 3) uint8, got {rgb.shape} {rgb.dtype}: {path}")
    write_bytes(path, encoded.tobytes())


def to_tensor(rgb: NDArray[np.uint8], device: str | torch.device = "cpu") -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, H, W) float32, 0..1."""
    tensor = torch.from_numpy(np.ascontiguousarray(rgb)).to(device)
    return tensor.permute(2, 0, 1)[None].float() / 255


def to_uint8(tensor: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) float, nominally 0..1 -> (H, W, 3) uint8, clamped, then rounded.

    Raises:
        FloatingPointError: the tensor holds NaN or infinity.
    """
    if not torch.isfinite(tensor).all():
        raise FloatingPointError("expected finite pixels, got NaN or infinity from the network")
    pixels = (tensor[0].float().clamp(0, 1) * 255).round().to(torch.uint8)
    return pixels.permute(1, 2, 0).cpu().numpy()


def mod_crop(
    rgb: NDArray[np.uint8], multiple: int = 4, path: str | Path = "the image"
) -> NDArray[np.uint8]:
    """Cut right and bottom so that height and width are multiples of `multiple`.

    Raises:
        ImageError: the image, which `path` names, is smaller than `multiple`.
    """
    height, width = (size - size % multiple for size in rgb.shape[:2])
    if not height or not width:
        raise ImageError(
            f"expected at least {multiple}x{multiple} pixels, got "
            f"{rgb.shape[1]}x{rgb.shape[0]}: {path}"
        )
    return rgb[:height, :width]


def find_images(folder: str | Path, recursive: bool = True) -> list[Path]:
    """Image files in a folder, and below it if `recursive`, sorted by path; hidden files and
    folders and those of the system are left out, linked folders entered once, links to nowhere
    kept: they fail when they are read.

    Raises:
        FileNotFoundError: the folder does not exist.
        UserError: it, or a folder in it, cannot be read: its images would be missing unnoticed.
    """

    def refuse(error: OSError) -> None:
        raise UserError(
            f"cannot read the folder {error.filename}: {error.strerror}; let it be read, or move "
            "it away"
        ) from error

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"expected a folder of images, got none: {folder}")
    found, seen = [], set()
    for root, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        visited = (real := os.path.realpath(root)) in seen
        seen.add(real)
        inner = [f for f in sorted(folders) if f[0] != "." and f not in SYSTEM_FOLDERS]
        folders[:] = inner if recursive and not visited else []
        if not visited:
            paths = [Path(root, file) for file in files if file[0] != "."]
            try:
                # A link to nowhere is an image that cannot be read: who reads it will say so.
                own = [p for p in paths if p.suffix.lower() in EXTENSIONS]
                found += [p for p in own if p.is_file() or not p.exists()]
            except PermissionError as error:
                refuse(error)
    return sorted(found)
