"""Enlarge photos four times: python upscale.py photo.jpg writes photo_x4.png beside it."""

import argparse
import logging
import re
import shutil
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from deploy import backends
from deploy.photos import decode, encode, folders
from deploy.photos.decode import Photo
from deploy.photos.enlarge import enlarge
from deploy.photos.folders import Job, Plan
from deploy.upscaler import SCALE, Upscaler
from utils import command, devices
from utils.images import BAD_IMAGE, ImageError

WAITING = 128 << 20  # bytes of results that may wait for being written; a larger one is waited for
LARGE = 64 << 20  # bytes of a result, uncompressed, from which on the disk is looked at first
FAILURES = (*BAD_IMAGE, ValueError, OSError)  # of one image; the others go on

logger = logging.getLogger("upscale")


@dataclass
class Tally:
    """What became of the images so far; `failed` has a line each."""

    written: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reading:
    """An image that is being read."""

    job: Job
    photo: Future[Photo]


@dataclass(frozen=True)
class Writing:
    """A result of so many bytes that is being written."""

    job: Job
    done: Future[None]
    size: int


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("upscale", "deploy"):
        logging.getLogger(name).setLevel(logging.INFO if args.verbose else logging.WARNING)
    return command.run("upscale.py", lambda: upscale(args), wrong=(MemoryError,))


def upscale(args: argparse.Namespace) -> int:
    """Enlarge what was asked for; the exit code.

    Raises:
        UserError: inputs, output, device, backend or weights that cannot be had.
        MemoryError: not even the smallest tile fits.
    """
    tally = Tally()
    plan = folders.plan(args.inputs, args.output, args.suffix, args.ext, args.recursive)
    jobs, there = select(plan, args.shard, args.skip_existing)
    upscaler = Upscaler(
        args.device,
        args.backend,
        args.precision,
        args.checkpoint,
        args.tile or None,
        args.memory and args.memory << 20,
        args.self_ensemble,
    )
    print(
        f"LKDN x{SCALE} on {upscaler.device}, {upscaler.backend.name} "
        f"{upscaler.backend.precision}, weights {upscaler.checkpoint}",
        flush=True,
    )
    logger.info("memory bound: %d MiB", upscaler.memory_bytes >> 20)
    upscaler.progress = alone = len(jobs) == 1
    try:
        with logging_redirect_tqdm(), tqdm(total=len(jobs), unit="image", disable=alone) as bar:
            for problem in plan.unreadable:
                fail(tally, problem)
            run(jobs, upscaler, args.jobs, tally, bar)
    except KeyboardInterrupt:
        print(
            f"interrupted: {len(tally.written)} of {len(jobs)} images are written; "
            "--skip_existing goes on from there",
            file=sys.stderr,
        )
        return command.FAILED
    encoding = sys.stdout.encoding or "utf-8"  # which may lack what stands in a file's name
    print(summary(tally, there, args.output).encode(encoding, "backslashreplace").decode(encoding))
    return command.FAILED if tally.failed else command.GOOD


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=command.HelpFormatter)
    add = parser.add_argument
    add("inputs", type=Path, nargs="*", metavar="INPUT", help="images and folders of images")
    add(
        "-i",
        "--input",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="INPUT",
        help="the same",
    )
    add(
        "-o",
        "--output",
        type=Path,
        help="the folder of the results, or a file name if there is one image; without it they go "
        "beside their inputs",
    )
    add(
        "-t",
        "--tile",
        type=int,
        default=0,
        metavar="N",
        help="side of a tile in pixels of the input; with 0 what fits into memory is not cut",
    )
    add(
        "--memory",
        type=int,
        metavar="MIB",
        help="what an image may take; without it half of what is free, and on a CPU no more than "
        "what is fastest",
    )
    add("--suffix", default="x4", help="added to each name, behind an underscore")
    add(
        "--ext",
        choices=("png", "auto", "jpg", "webp"),
        default="png",
        help="the format of the results; auto is the input's",
    )
    add("--recursive", action="store_true", help="go into sub-folders, and repeat them under -o")
    add("--skip_existing", action="store_true", help="leave out images whose result is there")
    add(
        "--shard",
        type=_shard,
        default="1/1",
        metavar="I/N",
        help="every N-th image, from the I-th on, for several processes or machines",
    )
    add(
        "--jobs",
        type=int,
        default=2,
        metavar="N",
        help="threads that read and write images beside the network",
    )
    add("--device", choices=devices.NAMES, default="auto", help="where to run")
    add(
        "--backend",
        choices=("auto", *backends.NAMES),
        default="auto",
        help="what runs the network; auto is the fastest that runs here and is as exact",
    )
    add("--precision", choices=backends.PRECISIONS, default="fp32", help="of weights and features")
    add("--checkpoint", type=Path, help="weights to use instead of the shipped ones")
    add(
        "--self_ensemble",
        action="store_true",
        help="average over 8 flips and turns of each image, in 8 times the time",
    )
    add("--verbose", action="store_true", help="print memory, tiles, and a line an image")
    args = parser.parse_args(argv)
    args.inputs += args.input
    for name, least in (("tile", 0), ("memory", 1), ("jobs", 1)):
        value = getattr(args, name)
        if value is not None and value < least:
            parser.error(f"expected --{name} of at least {least}, got {value}")
    if Path(args.suffix).name != args.suffix:
        parser.error(f"expected a --suffix that may stand in a file name, got {args.suffix}")
    return args


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(
            f"expected I/N such as 1/4, with I from 1 to N, got {text}"
        )
    return int(match[1]), int(match[2])


def select(plan: Plan, share: tuple[int, int], skip_existing: bool) -> tuple[list[Job], int]:
    """The images of this share, and how many of it are left out because their results exist."""
    for path in plan.left_out:
        logger.info("left out, for it is named like a result: %s", path)
    jobs = folders.shard(plan.jobs, *share)
    if not skip_existing:
        return jobs, 0
    new = [job for job in jobs if job.problem or not job.target.exists()]
    return new, len(jobs) - len(new)


def run(jobs: Sequence[Job], upscaler: Upscaler, threads: int, tally: Tally, bar: tqdm) -> None:
    """Restore image by image, while threads read the next ones and write the last ones.

    Whatever ends it, images that are being written then are written whole, and counted.
    """
    waiting, reads, writes = deque(jobs), deque[Reading](), deque[Writing]()
    pool = ThreadPoolExecutor(threads)
    try:
        while waiting or reads:
            while waiting and len(reads) < threads:
                reads.append(Reading(waiting[0], pool.submit(read, waiting.popleft())))
            reading = reads.popleft()
            try:
                writes.append(_restore(reading, upscaler, pool))
            except FAILURES as error:
                fail(tally, _one_line(reading.job.source, error))
                bar.update()
            _settle(writes, threads, tally, bar)
        _settle(writes, 0, tally, bar)
    finally:
        pool.shutdown(cancel_futures=True)
        _settle(deque(w for w in writes if not w.done.cancelled()), 0, tally, bar)


def read(job: Job) -> Photo:
    """The image of a job, or ImageError."""
    if job.problem:
        raise ImageError(job.problem)
    return decode.read(job.source)


def _restore(reading: Reading, upscaler: Upscaler, pool: ThreadPoolExecutor) -> Writing:
    """Restore an image and hand it to the threads that write."""
    job, photo = reading.job, reading.photo.result()
    height, width = photo.pixels.shape[:2]
    check_space(job.target.parent, SCALE**2 * photo.pixels.nbytes)
    began = time.perf_counter()
    enlarged = enlarge_photo(photo, upscaler)
    logger.info(
        "%s: %dx%d, %.2f s, to %s",
        job.source,
        width,
        height,
        time.perf_counter() - began,
        job.target,
    )
    if enlarged.note:
        logger.warning("%s: %s", job.source, enlarged.note)
    return Writing(job, pool.submit(encode.write, job.target, enlarged), enlarged.pixels.nbytes)


def enlarge_photo(photo: Photo, upscaler: Upscaler) -> Photo:
    """The photo four times as large; without alpha no copy of it in float32 is made."""
    if photo.alpha is None:
        return replace(photo, pixels=upscaler(photo.pixels))
    return enlarge(photo, upscaler.restore, SCALE)


def check_space(folder: Path, size: int) -> None:
    """OSError unless so many bytes are free, if they are many."""
    if size < LARGE:
        return
    free = shutil.disk_usage(folders.find_existing(folder)).free
    if free < size:
        raise OSError(
            f"expected {size >> 20} MiB free for the result in {folder}, got "
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
    tally.failed.append(problem)
    logger.error("failed: %s", problem)


def _one_line(source: Path, error: BaseException) -> str:
    """One line that names the file once."""
    message = " ".join(str(error).split()) or type(error).__name__
    return f"{source}: {message.removesuffix(f': {source}')}"


def summary(tally: Tally, there: int, output: Path | None) -> str:
    """What was written where, what was there, and each failure."""
    count = len(tally.written) + len(tally.failed)
    places = {path.parent for path in tally.written}
    where: object = output or "the folders of the inputs"
    if len(tally.written) == 1:
        where = tally.written[0]
    elif len(places) == 1:
        where = places.pop()
    text = f"{len(tally.written)} of {count} images written"
    text += f" to {where}" if tally.written else ""
    text += f", {there} were there" if there else ""
    if tally.failed:
        text += "\n  ".join([f", {len(tally.failed)} failed:", *tally.failed])
    return text


if __name__ == "__main__":
    sys.exit(main())
