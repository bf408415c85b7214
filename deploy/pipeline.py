"""Photos through the network one by one, while threads read the next ones and write the last."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from deploy.photos import encode, suffixes
from deploy.photos.enlarge import enlarge
from deploy.photos.folders import Job
from deploy.upscaler import Upscaler
from utils.datasets import SCALE
from utils.files import find_existing, free_space
from utils.imaging import decode
from utils.imaging.decode import Photo
from utils.imaging.images import BAD_IMAGE, ImageError
from utils.memory import is_exhausted
from utils.text import in_terminal

WAITING = 128 << 20  # bytes of results that may wait for being written; a larger one is waited for
LARGE = 64 << 20  # bytes of a result, uncompressed, from which on the disk is looked at first
# The share of its bytes that an enlarged photo takes in a file at least.
SMALLEST, SMALLEST_LOSSY = 1 / 8, 1 / 50
FAILURES = (*BAD_IMAGE, ValueError, OSError)  # of one image; the others go on
# What to do when memory runs out.
OUT_OF_MEMORY = "free some, or let the network take less of it by --memory MIB or a smaller --tile"

logger = logging.getLogger(__name__)


@dataclass
class Tally:
    """What became of the images so far; `failed` has a line each."""

    written: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Writing:
    """A result of so many bytes that is being written."""

    job: Job
    done: Future[None]
    size: int


def run(jobs: Sequence[Job], upscaler: Upscaler, threads: int, tally: Tally, bar: tqdm) -> None:
    """Restore image by image, while threads read the next ones and write the last ones.

    Whatever ends it, images that are being written then are written whole, and counted.
    """
    waiting, reads, writes = deque(jobs), deque[tuple[Job, Future[Photo]]](), deque[Writing]()
    pool = ThreadPoolExecutor(threads)
    try:
        while waiting or reads:
            while waiting and len(reads) < threads:
                reads.append((waiting[0], pool.submit(read, waiting.popleft())))
            job, photo = reads.popleft()
            try:
                writes.append(_restore(job, photo.result(), upscaler, pool))
            except FAILURES as error:
                fail(tally, _one_line(job.source, error))
                bar.update()
            _settle(writes, threads, tally, bar)
        _settle(writes, 0, tally, bar)
    finally:
        pool.shutdown(cancel_futures=True)
        _settle(deque(w for w in writes if not w.done.cancelled()), 0, tally, bar)


def read(job: Job) -> Photo:
    """The image of a job, or ImageError where it or its result cannot be."""
    if job.problem:
        raise ImageError(job.problem)
    photo = decode.read(job.source)
    encode.check(job.target, photo, SCALE)
    return photo


def _restore(job: Job, photo: Photo, upscaler: Upscaler, pool: ThreadPoolExecutor) -> Writing:
    """Restore an image and hand it to the threads that write."""
    height, width = photo.pixels.shape[:2]
    deep = job.target.suffix.lower() in suffixes.DEEP
    check_space(job.target, SCALE**2 * (photo.pixels.nbytes if deep else photo.pixels.size))
    began = time.perf_counter()
    enlarged = enlarge(photo, upscaler)
    spent = time.perf_counter() - began
    logger.info("%s: %dx%d, %.2f s, to %s", job.source, width, height, spent, job.target)
    notes = (enlarged.note, encode.find_losses(job.target, enlarged))
    if note := "; ".join(filter(None, notes)):
        logger.warning("%s: %s", job.source, note)
    return Writing(job, pool.submit(encode.write, job.target, enlarged), enlarged.pixels.nbytes)


def check_space(target: Path, size: int) -> None:
    """OSError where a result whose pixels are so many bytes, if they are many, will not fit."""
    if size < LARGE:
        return
    if (suffix := target.suffix.lower()) != ".bmp":
        size = round(size * (SMALLEST_LOSSY if suffix in suffixes.LOSSY else SMALLEST))
    free = free_space(find_existing(target.parent))
    if free is not None and free < size:
        raise OSError(
            f"expected at least {size >> 20} MiB free for the result in {target.parent}, got "
            f"{free >> 20}: make room, or give another -o"
        )


def _settle(writes: deque[Writing], most: int, tally: Tally, bar: tqdm) -> None:
    """Wait until at most so many results, and no more than WAITING bytes, are to be written."""
    while len(writes) > most or sum(w.size for w in writes) > WAITING:
        job = writes[0].job
        try:
            writes[0].done.result()
        except FAILURES as error:
            fail(tally, _one_line(job.source, error))
        else:
            tally.written.append(job.target)
        writes.popleft()
        bar.update()


def fail(tally: Tally, problem: str) -> None:
    """Note and log that an image could not be made."""
    tally.failed.append(in_terminal(problem))
    logger.error("failed: %s", problem)


def _one_line(source: Path, error: BaseException) -> str:
    """One line that names the file once."""
    if is_exhausted(error):
        return f"{source}: out of memory: {OUT_OF_MEMORY}"
    message = " ".join(str(error).removesuffix(f": {source}").split()) or type(error).__name__
    return f"{source}: {message}"
