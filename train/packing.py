"""Trees of training images, decoded once into one memory-mapped uint8 file with their LR images."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from utils.bicubic import downscale
from utils.datasets import SCALE, held_out
from utils.files import read_json, remove_leftovers, whole_file, write_bytes
from utils.images import ImageError, find_images, mod_crop, read_rgb

logger = logging.getLogger(__name__)

FORMAT = 1
LR_FOLDER = re.compile(r"LR|.*_LR(_bicubic)?")


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
    """

    pixels: Tensor
    images: tuple[PackedImage, ...]
    fingerprint: str
    skipped: tuple[str, ...]


def pack(folders: Sequence[Path], cache: Path, first: int | None = None) -> Pack:
    """Pack every HR image below `folders`, or open the pack made of the same files before.

    LR images are those in folders called LR, NAME_LR or NAME_LR_bicubic (and X4 in them), with or
    without x4 behind the name; where there is none, LR is made from the whole HR image by the
    MATLAB-equal bicubic. Folders of validation or test images (DIV2K_valid_HR, ..) and of the
    benchmark sets are left out, with a warning: they are not for training.

    Args:
        folders: trees of HR images, with or without LR images; or alone the .json of a pack,
            which is opened as it is.
        cache: where packs are kept; needs about 3.2 bytes a HR pixel.
        first: take only the first so many HR images, by path, of each folder; not for a pack.

    Raises:
        FileNotFoundError: a folder does not exist.
        ImageError: no usable image was found.
    """
    if [Path(folder).suffix for folder in folders] == [".json"]:
        if first is not None:
            raise ImageError(
                f"expected folders to take the first {first} images of, got the pack "
                f"{folders[0]}: leave --first out"
            )
        return open_pack(Path(folders[0]))
    pairs = [pair for folder in folders for pair in _find_pairs(Path(folder), first)]
    key = hashlib.sha256(json.dumps([FORMAT, [_stamp(pair) for pair in pairs]]).encode())
    stem = Path(cache) / key.hexdigest()[:16]
    index_path, pixels_path = stem.with_suffix(".json"), stem.with_suffix(".bin")
    if not _is_whole(index_path, pixels_path):
        _write(pairs, pixels_path, index_path)
    pack = open_pack(index_path)
    if not pack.images:
        index_path.unlink()
        reasons = "; ".join(pack.skipped[:3])
        raise ImageError(
            f"expected training images in {', '.join(map(str, folders))}, got none "
            f"that can be used{': ' + reasons if reasons else ''}"
        )
    for reason in pack.skipped:
        logger.warning("skipped: %s", reason)
    if pack.skipped:
        logger.warning("skipped %d of %d images", len(pack.skipped), len(pairs))
    return pack


def open_pack(index_path: Path) -> Pack:
    """A pack from its .json and the .bin beside it.

    Raises:
        FileNotFoundError, ImageError: it is not there, or not whole.
    """
    pixels_path = index_path.with_suffix(".bin")
    if not index_path.exists():
        raise FileNotFoundError(f"expected a pack, found no file {index_path}")
    if not _is_whole(index_path, pixels_path):
        raise ImageError(
            f"expected a whole pack, got one cut short or without its pixels in "
            f"{pixels_path}: pack the images again, or join its parts"
        )
    index = read_json(index_path)
    # Copy-on-write, not read-only: torch warns of arrays that it could not write to.
    pixels = np.zeros((0, 3), np.uint8)
    if index["images"]:
        pixels = np.memmap(pixels_path, np.uint8, mode="c").reshape(-1, 3)
    images = tuple(PackedImage(**image) for image in index["images"])
    return Pack(torch.from_numpy(pixels), images, index["fingerprint"], tuple(index["skipped"]))


def _is_whole(index_path: Path, pixels_path: Path) -> bool:
    """Whether a pack is there with all of its pixels."""
    try:
        images = read_json(index_path)["images"]
        pixels = sum(i["height"] * i["width"] * (1 + SCALE**2) for i in images)
        return pixels_path.stat().st_size == 3 * pixels
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _find_pairs(folder: Path, first: int | None) -> list[tuple[Path, Path | None]]:
    """(HR file, LR file or None) of one folder."""
    lr_files: dict[tuple[str, ...], Path] = {}
    hr_files, left_out = [], set()
    for path in find_images(folder):
        below = path.relative_to(folder.parent).parts[:-1]
        if forbidden := held_out(below):
            left_out.add(forbidden)
        elif any(LR_FOLDER.fullmatch(part) for part in below):
            lr_files[_identity(path)] = path
        elif not any("_LR" in part for part in below):  # other degradations and scales
            hr_files.append(path)
    for name in sorted(left_out):
        logger.warning("left out %s: validation and test images are not for training", name)
    return [(path, lr_files.get(_identity(path))) for path in hr_files[:first]]


def held_out_images(folder: Path) -> list[Path]:
    """The images below `folder` of validation, test and benchmark sets, HR and LR, by the names
    of their folders."""
    return [path for path in find_images(folder) if held_out(path.parent.parts)]


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Digest of an image's pixels, as a pack has it, -> file. Unreadable ones are reported and
    left out."""
    found = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path, digest in zip(files, pool.map(_digest_of, files), strict=True):
            if digest:
                found[digest] = str(path)
    return found


def _digest_of(path: Path) -> str | None:
    try:
        return _digest(mod_crop(read_rgb(path), SCALE, path))
    except ImageError as error:
        logger.warning("not compared: %s", error)
        return None


def _digest(hr: NDArray[np.uint8]) -> str:
    return hashlib.sha256(_describe(hr)).hexdigest()


def _describe(pixels: NDArray[np.uint8]) -> bytes:
    """Shape and pixels, to be hashed."""
    return str(pixels.shape).encode() + pixels.tobytes()


def _identity(path: Path) -> tuple[str, ...]:
    """What an HR image and its LR image have in common: folders without _HR, _LR_bicubic, X4, ..
    and the name without x4."""
    folders = [re.sub(r"_?(HR|LR)(_bicubic)?$", "", part) for part in path.parent.parts]
    kept = [part for part in folders if part not in ("", f"X{SCALE}")]
    return (*kept, path.stem.removesuffix(f"x{SCALE}"))


def _stamp(pair: tuple[Path, Path | None]) -> list[list[str | int]]:
    """What tells one state of the files from another without reading them."""
    files = [path for path in pair if path]
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _write(pairs: Sequence[tuple[Path, Path | None]], pixels_path: Path, index_path: Path) -> None:
    """Write pixels, then the index: a pack with an index is whole."""
    images, skipped, offset, total = [], [], 0, hashlib.sha256()
    for path in (pixels_path, index_path):
        remove_leftovers(path, age_s=3600)
    with whole_file(pixels_path) as file:
        for path, loaded in tqdm(_load_all(pairs), "pack", len(pairs), unit="image"):
            if isinstance(loaded, str):
                skipped.append(loaded)
                continue
            lr, hr = loaded
            for part in (lr, hr):
                file.write(part.tobytes())
                total.update(_describe(part))
            height, width = lr.shape[:2]
            hr_offset = offset + height * width
            images.append(PackedImage(path.name, height, width, offset, hr_offset, _digest(hr)))
            offset = hr_offset + height * width * SCALE**2
    index = {
        "fingerprint": total.hexdigest(),
        "images": [asdict(image) for image in images],
        "skipped": skipped,
    }
    write_bytes(index_path, json.dumps(index).encode())


Loaded = tuple[NDArray[np.uint8], NDArray[np.uint8]] | str


def _load_all(pairs: Sequence[tuple[Path, Path | None]]) -> Iterator[tuple[Path, Loaded]]:
    """Decode on all cores, in order, a few images ahead."""
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(pairs), 4 * workers):
            chunk = pairs[start : start + 4 * workers]
            yield from zip((hr for hr, _ in chunk), pool.map(_load, chunk), strict=True)


def _load(pair: tuple[Path, Path | None]) -> Loaded:
    """(LR, HR) pixels, or why this pair cannot be used."""
    hr_path, lr_path = pair
    try:
        hr = mod_crop(read_rgb(hr_path), SCALE, hr_path)
        lr = read_rgb(lr_path) if lr_path else downscale(hr, SCALE)
    except ImageError as error:
        return str(error)
    if (expected := (hr.shape[0] // SCALE, hr.shape[1] // SCALE, 3)) != lr.shape:
        return f"expected {expected} pixels in {lr_path}, got {lr.shape}: not the LR of {hr_path}"
    return lr, hr
