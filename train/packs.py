"""Packs of training pairs on the disk: opened, and verified once."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utils.datasets import SCALE
from utils.files import read_json, write_json
from utils.imaging.images import ImageError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackedImage:
    """One pair in a pack. Sizes are the LR image's; the HR image is `SCALE` times as large.

    Offsets count pixels (3 bytes) from the start of the file. `sha256` is that of the decoded,
    mod-cropped HR pixels.
    """

    name: str
    height: int
    width: int
    lr_offset: int
    hr_offset: int
    sha256: str


@dataclass(frozen=True)
class Pack:
    """Training pairs ready to be cropped.

    pixels: (N, 3) uint8, every image's rows one after another, memory-mapped.
    fingerprint: sha256 over all images, LR and HR; equal data have equal fingerprints.
    skipped: files that could not be used, each with its reason.
    unread: those of them that the system did not let be read, and may later.
    """

    pixels: Tensor
    images: tuple[PackedImage, ...]
    fingerprint: str
    skipped: tuple[str, ...]
    unread: tuple[str, ...] = ()


def open_pack(index_path: Path) -> Pack:
    """A pack from its .json and the .bin beside it. The first time, and after any change of the
    two, all pixels are compared with the digests in the index; a .verified beside them says that
    this was done.

    Raises:
        FileNotFoundError: it is not there.
        ImageError: it is not whole, or its pixels are not those that its index describes.
    """
    if not index_path.exists():
        raise FileNotFoundError(f"expected a pack, found no file {index_path}")
    pixels_path, mark = index_path.with_suffix(".bin"), index_path.with_suffix(".verified")
    images, fingerprint, skipped, unread = _read_index(index_path)
    size = 3 * sum(i.height * i.width * (1 + SCALE**2) for i in images)
    if not pixels_path.is_file() or pixels_path.stat().st_size != size:
        raise ImageError(
            f"expected a whole pack, got one cut short or without its pixels in {pixels_path}: "
            "pack the images again, or join its parts"
        )
    # Copy-on-write, not read-only: torch warns of arrays that it could not write to.
    pixels = np.zeros((0, 3), np.uint8)
    if images:
        pixels = np.memmap(pixels_path, np.uint8, mode="c").reshape(-1, 3)
    now = [_state_of(index_path), _state_of(pixels_path)]
    if _read_mark(mark) != now:
        if reason := _find_damage(images, fingerprint, pixels):
            raise ImageError(
                f"expected in {pixels_path} the pixels that {index_path.name} describes, got other "
                f"ones ({reason}): pack the images again, or copy the pack again"
            )
        with suppress(OSError):  # in a folder that cannot be written it is verified each time
            write_json(mark, now)
    return Pack(torch.from_numpy(pixels), images, fingerprint, skipped, unread)


def describe(pixels: NDArray[np.uint8]) -> Iterator[bytes | memoryview]:
    """Shape and pixels, to be hashed one after the other."""
    yield str(pixels.shape).encode()
    yield np.ascontiguousarray(pixels).data


def digest_of(pixels: NDArray[np.uint8]) -> str:
    """The digest of an image in a pack's index."""
    digest = hashlib.sha256()
    for part in describe(pixels):
        digest.update(part)
    return digest.hexdigest()


def _read_index(
    path: Path,
) -> tuple[tuple[PackedImage, ...], str, tuple[str, ...], tuple[str, ...]]:
    """Images, fingerprint, and what was skipped and what unread, or ImageError."""
    try:
        index = read_json(path)
        images = tuple(PackedImage(**image) for image in index["images"])
        fingerprint, skipped = index["fingerprint"], tuple(index["skipped"])
        unread = tuple(index.get("unread", ()))  # older packs have none
        texts = [fingerprint, *skipped, *unread, *(t for i in images for t in (i.name, i.sha256))]
        sizes = [number for image in images for number in (image.height, image.width)]
        offsets = [number for image in images for number in (image.lr_offset, image.hr_offset)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError
        if not all(type(number) is int for number in (*sizes, *offsets)):
            raise TypeError
        if min(sizes, default=1) < 1 or min(offsets, default=0) < 0:
            raise ValueError
    except (ValueError, LookupError, TypeError) as error:
        raise ImageError(
            f"expected the index of a pack, got something else in {path}: pack the images again"
        ) from error
    return images, fingerprint, skipped, unread


def _state_of(path: Path) -> list[int]:
    """What changes when a file does, and costs nothing to ask."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _read_mark(path: Path) -> object:
    """What a file says of another's state, or nothing."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _find_damage(images: Sequence[PackedImage], fingerprint: str, pixels: NDArray[np.uint8]) -> str:
    """The first thing in which a pack differs from its index, or ""."""
    whole, offset = hashlib.sha256(), 0
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:  # hashing lets others run
        found = pool.map(lambda image: digest_of(cut_pair(pixels, image)[1]), images)
        bar = tqdm(zip(images, found, strict=True), "verify the pack", len(images), unit="image")
        for image, digest in bar:
            area = image.height * image.width
            if (image.lr_offset, image.hr_offset) != (offset, offset + area):
                return f"{image.name} lies elsewhere"
            if digest != image.sha256:
                return f"{image.name} has another digest"
            for part in cut_pair(pixels, image):
                for content in describe(part):
                    whole.update(content)
            offset += area * (1 + SCALE**2)
    return "" if whole.hexdigest() == fingerprint else "LR images have another digest"


def cut_pair(
    pixels: NDArray[np.uint8], image: PackedImage
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """LR (H, W, 3) and HR (4H, 4W, 3) of an image, views; flat and short where the pixels end."""
    cuts = []
    for offset, scale in ((image.lr_offset, 1), (image.hr_offset, SCALE)):
        height, width = image.height * scale, image.width * scale
        flat = pixels[offset : offset + height * width]
        cuts.append(flat.reshape(height, width, 3) if len(flat) == height * width else flat)
    return cuts[0], cuts[1]


def on_device(pack: Pack, device: torch.device) -> Pack:
    """The pack with its pixels on a CUDA device, where crops are made then, if they take no more
    than half of the memory free there; else as it is, with a message."""
    if device.type != "cuda":
        return pack
    free = torch.cuda.mem_get_info(device)[0]
    if pack.pixels.numel() > free / 2:
        logger.warning(
            "patches are cut on the CPU: the data take %.1f GiB, %.1f are free on %s",
            pack.pixels.numel() / 2**30,
            free / 2**30,
            device,
        )
        return pack
    return replace(pack, pixels=pack.pixels.to(device))
