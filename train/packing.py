"""Trees of training images, decoded once into one memory-mapped uint8 file with their LR images."""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from train.packs import Pack, PackedImage, describe, digest_of, open_pack
from utils.bicubic import downscale
from utils.datasets import SCALE, DatasetError, held_out, names_of
from utils.files import remove_leftovers, whole_file, write_bytes
from utils.imaging.images import BAD_IMAGE, ImageError, find_images, mod_crop, read_rgb
from utils.layouts import File, read
from utils.memory import is_exhausted
from utils.pairing import pair
from utils.text import first_line

logger = logging.getLogger(__name__)

FORMAT = 2
UNUSABLE = (*BAD_IMAGE, OSError)  # one image, whatever is wrong with it, never ends the others


def pack(
    folders: Sequence[Path], cache: Path, first: int | None = None, keep: Collection[str] = ()
) -> Pack:
    """Pack every HR image below `folders`, or open the pack made of the same files before.

    LR images are found by the table in utils/layouts.py; where there is none, LR is made from the
    whole HR image by the MATLAB-equal bicubic. Folders of validation or test images
    (DIV2K_valid_HR, ..) and of the benchmark sets are left out, with a warning: they are not for
    training. An image that cannot be used is skipped, with its reason; one that the system did not
    let be read is tried again whenever the pack is opened.

    Args:
        folders: trees of HR images, with or without LR images; or alone the .json of a pack,
            which is opened as it is.
        cache: where packs are kept; needs about 3.2 bytes a HR pixel.
        first: take only the first so many HR images, by path, of each folder; not for a pack.
        keep: fingerprints of packs that runs go on from, which stay without what was not read.

    Raises:
        FileNotFoundError: a folder does not exist.
        UserError: a folder in one cannot be read, or LR images belong to no HR image.
        ImageError: no usable image was found.
    """
    if [Path(folder).suffix for folder in folders] == [".json"]:
        if first is not None:
            raise ImageError(
                f"expected folders to take the first {first} images of, got the pack "
                f"{folders[0]}: leave --first out"
            )
        return open_pack(Path(folders[0]))
    pairs = _find_pairs([Path(folder) for folder in folders], first)
    key = hashlib.sha256(json.dumps([FORMAT, [_stamp(pair) for pair in pairs]]).encode())
    stem = Path(cache) / key.hexdigest()[:16]
    index_path, pixels_path = stem.with_suffix(".json"), stem.with_suffix(".bin")
    earlier = (stem.with_name(f"{stem.name}-{of[:16]}.json") for of in keep)
    try:
        pack = open_pack(next(filter(Path.exists, earlier), index_path))
        for path in (pixels_path, index_path, index_path.with_suffix(".verified")):
            remove_leftovers(path, age_s=3600)  # of one who was killed before another packed
        known = set(map(os.path.realpath, pack.unread))
        unread = [pair for pair in pairs if os.path.realpath(pair[0]) in known]
        if pack.fingerprint in keep:
            if unread:
                logger.info("%d images that were not read stay out of the run", len(unread))
        elif not all(isinstance(_load(pair), Skipped) for pair in unread):
            logger.warning("what could not be read before can be now: the pack is made anew")
            # Runs that have it go on with it. The index first: without that there is no pack.
            for path in (index_path, pixels_path):
                path.rename(path.with_stem(f"{stem.name}-{pack.fingerprint[:16]}"))
            pack = _write(pairs, pixels_path, index_path)
    except FileNotFoundError:
        pack = _write(pairs, pixels_path, index_path)
    except ImageError as error:
        logger.warning("%s; it is made anew", error)
        pack = _write(pairs, pixels_path, index_path)
    if not pack.images:
        index_path.unlink()
        index_path.with_suffix(".verified").unlink(missing_ok=True)
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


def _find_pairs(folders: Sequence[Path], first: int | None) -> list[tuple[Path, Path | None]]:
    """(HR file, LR file or None), the first so many HR files of each folder. Raises DatasetError
    where LR images belong to no HR image."""
    files: dict[str, File] = {}  # by what they are, whatever they are called
    left_out, again = set(), 0
    for folder in folders:
        for path in find_images(folder):
            if forbidden := held_out(names_of(path.parent, folder)):
                left_out.add(forbidden)
            elif (file := os.path.realpath(path)) in files:
                again += 1
            else:
                files[file] = read(path, folder)
    for name in sorted(left_out):
        logger.warning("left out %s: validation and test images are not for training", name)
    if again:
        logger.warning("%d images are named more than once, and taken once", again)
    pairing = pair(list(files.values()))
    if reason := pairing.missing():
        raise DatasetError(reason)
    for name in sorted({str(file.path.parent) for file in pairing.left}):
        logger.info("left out %s: of another scale or degradation", name)
    if pairing.alone:
        count, example = len(pairing.alone), pairing.alone[0].path
        logger.warning("left out %d LR images that are no HR image's: %s, ..", count, example)
    sets = {hr.set for hr, lr in pairing.pairs if lr}
    if bare := [hr.path for hr, lr in pairing.pairs if not lr and hr.set in sets]:
        logger.warning(
            "%d HR images have no LR image among the others': %s, ..; theirs are made by bicubic",
            len(bare),
            bare[0],
        )
    taken: Counter[Path] = Counter()
    chosen = []
    for hr, lr in pairing.pairs:
        taken[hr.tree] += 1
        if first is None or taken[hr.tree] <= first:
            chosen.append((hr.path, lr))
    return chosen


def held_out_images(folder: Path) -> list[Path]:
    """The images below `folder` of validation, test and benchmark sets, HR and LR, by the names
    of their folders."""
    inside = len(folder.parts)
    return [path for path in find_images(folder) if held_out(path.parent.parts[inside:])]


def digests(files: Sequence[Path]) -> dict[str, str]:
    """Digest of an image's pixels, as a pack has it, -> file. Unreadable ones are reported and
    left out."""
    found = {}
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for path, digest in zip(files, pool.map(_digest_of_file, files), strict=True):
            if digest:
                found[digest] = str(path)
    return found


def _digest_of_file(path: Path) -> str | None:
    try:
        return digest_of(mod_crop(read_rgb(path), SCALE, path))
    except UNUSABLE as error:
        logger.warning("not compared: %s", _reason(error, path))
        return None


def _stamp(pair: tuple[Path, Path | None]) -> list[list[str | int]]:
    """What tells one state of the files from another without reading them."""
    return [[str(path.resolve()), *_state_of(path)] for path in pair if path]


def _state_of(path: Path) -> list[int]:
    """Size and time; nothing of a link to nowhere, which is skipped like any bad image."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _write(pairs: Sequence[tuple[Path, Path | None]], pixels_path: Path, index_path: Path) -> Pack:
    """Write pixels, then the index: a pack with an index is whole. It is opened as any other."""
    images, offset, total = [], 0, hashlib.sha256()
    skipped: dict[str, Skipped] = {}
    for path in (pixels_path, index_path, index_path.with_suffix(".verified")):
        remove_leftovers(path, age_s=3600)
    with whole_file(pixels_path) as file:
        for path, loaded in tqdm(_load_all(pairs), "pack", len(pairs), unit="image"):
            if isinstance(loaded, Skipped):
                skipped[str(path)] = loaded
                continue
            lr, hr = loaded
            for part in (lr, hr):
                file.write(part.tobytes())
                for content in describe(part):
                    total.update(content)
            height, width = lr.shape[:2]
            hr_offset = offset + height * width
            images.append(PackedImage(path.name, height, width, offset, hr_offset, digest_of(hr)))
            offset = hr_offset + height * width * SCALE**2
    index = {
        "fingerprint": total.hexdigest(),
        "images": [asdict(image) for image in images],
        "skipped": [skip.reason for skip in skipped.values()],
        "unread": [os.path.abspath(path) for path, skip in skipped.items() if skip.may_pass],
    }
    write_bytes(index_path, json.dumps(index).encode())
    return open_pack(index_path)


@dataclass(frozen=True)
class Skipped:
    """Why an image is not used, and whether that is the system's doing and may pass."""

    reason: str
    may_pass: bool = False


Loaded = tuple[NDArray[np.uint8], NDArray[np.uint8]] | Skipped


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
    except UNUSABLE as error:
        cause = error.__cause__ or error
        # What a decoder finds broken is an OSError without a number.
        of_system = isinstance(cause, OSError) and cause.errno is not None
        return Skipped(_reason(error, hr_path), of_system or is_exhausted(cause))
    if (expected := (hr.shape[0] // SCALE, hr.shape[1] // SCALE, 3)) != lr.shape:
        return Skipped(
            f"expected {expected} pixels in {lr_path}, got {lr.shape}: not the LR of {hr_path}"
        )
    return lr, hr


def _reason(error: Exception, path: Path) -> str:
    """Why an image cannot be used, with its name."""
    reason = first_line(error, most=1000)
    return reason if isinstance(error, ImageError) else f"{path}: {reason}"
