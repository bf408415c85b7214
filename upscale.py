"""Enlarge photos four times: python upscale.py photo.jpg writes photo_x4.png beside it."""

import argparse
import logging
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    # As Python sets it, but with -P.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent)]
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while libraries are loaded

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from deploy import backends
from deploy.photos import folders, suffixes
from deploy.photos.folders import Job, Plan
from deploy.pipeline import OUT_OF_MEMORY, Tally, fail, run
from deploy.upscaler import Upscaler
from utils import command, devices
from utils.datasets import SCALE
from utils.memory import is_exhausted
from utils.text import in_terminal

logger = logging.getLogger("upscale")


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(argv)
    command.show_log(logging.WARNING)
    for name in ("upscale", "deploy"):
        logging.getLogger(name).setLevel(logging.INFO if args.verbose else logging.WARNING)
    return command.run("upscale.py", lambda: upscale(args), failures=(MemoryError,))


def upscale(args: argparse.Namespace) -> int:
    """Enlarge what was asked for; the exit code.

    Raises:
        UserError: inputs, output, device, backend or weights that cannot be had.
        MemoryError: too little is free.
    """
    tally = Tally()
    plan = folders.plan(args.inputs, args.output, args.suffix, args.ext, args.recursive)
    jobs, there = select(plan, args.shard, args.skip_existing)
    upscaler = make_upscaler(args)
    ran = f"{upscaler.backend.name} {upscaler.backend.precision}"
    weights = in_terminal(upscaler.checkpoint)
    print(f"LKDN x{SCALE} on {upscaler.device}, {ran}, weights {weights}", flush=True)
    logger.info("memory bound: %d MiB", upscaler.memory_bytes >> 20)
    alone = len(jobs) == 1
    upscaler.progress = alone  # within the image, where there are no others to count
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
    print(summary(tally, there, args.output))
    return command.FAILED if tally.failed else command.GOOD


def make_upscaler(args: argparse.Namespace) -> Upscaler:
    """The network as these options want it."""
    try:
        return Upscaler(
            device=args.device,
            backend=args.backend,
            precision=args.precision,
            checkpoint=args.checkpoint,
            tile=args.tile or None,
            memory_bytes=None if args.memory is None else args.memory << 20,
            self_ensemble=args.self_ensemble,
        )
    except Exception as error:
        of_library = error.__cause__ if isinstance(error, backends.BackendError) else None
        if not is_exhausted(of_library or error):
            raise
        told = isinstance(error, MemoryError) and str(error)
        advice = f"{error}: free some, or allow more by --memory MIB" if told else OUT_OF_MEMORY
        raise MemoryError(f"out of memory: {advice}") from error


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    what = "images and folders of images"
    add("inputs", type=command.path, nargs="*", metavar="INPUT", help=what)
    add("-i", "--input", type=command.path, nargs="+", action="extend", default=[], help="the same")
    add(
        "-o",
        "--output",
        type=command.path,
        help="the folder of the results, or a file name if there is one image; without it they go "
        "beside their inputs",
    )
    add(
        "-t",
        "--tile",
        type=int,
        default=0,
        metavar="N",
        help="side of a tile in pixels of the input; with 0 a CPU takes the fastest, and a GPU "
        "cuts what is too large for it",
    )
    add(
        "--memory",
        type=int,
        metavar="MIB",
        help="what an image may take where --tile is 0; without it half of what is free, of which "
        "a CPU's network takes no more than is fastest",
    )
    add("--suffix", default="x4", help="added to each name, behind an underscore")
    add(
        "--ext",
        choices=("png", "auto", "jpg", "webp", "tif", "bmp"),
        help="the format of the results; auto is the input's, and png where that cannot hold it; "
        "without it png, or what a file name of -o ends in",
    )
    add("--recursive", action="store_true", help="go into sub-folders, and repeat them under -o")
    add(
        "--skip_existing",
        action="store_true",
        help="leave out images whose result is there, by its name and size, and write over no "
        "picture of another size",
    )
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
        help="what runs the network; auto is the fastest that runs here, as exact as --precision "
        "allows",
    )
    add("--precision", choices=backends.PRECISIONS, default="fp32", help="of weights and features")
    add("--checkpoint", type=command.path, help="weights to use instead of the shipped ones")
    add(
        "--self_ensemble",
        action="store_true",
        help="average over 8 flips and turns of each image, in 8 times the time",
    )
    add("--verbose", action="store_true", help="print memory, tiles, and a line an image")
    given = sys.argv[1:] if argv is None else argv
    end = given.index("--") if "--" in given else len(given)
    args = parser.parse_intermixed_args(given[:end])  # inputs may stand among the options
    args.inputs += args.input + parser.parse_args(given[end:]).inputs
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
    """The images of this share, and how many of it are left out because their results are there."""
    for path in plan.left_out:
        logger.info("left out, for it is named like a result: %s", path)
    by_name = {folders.place_of(job.target.with_suffix("")): job for job in plan.jobs}

    def is_result(path: Path) -> bool:
        job = by_name.get(folders.place_of(path.with_suffix("")))
        if not job or folders.place_of(path) == folders.place_of(job.target):
            return bool(job)
        header = suffixes.peek(path)  # an earlier run may have had another --ext
        return header is not None and folders.is_of(header, job.source)

    if others := [path for path in plan.left_out if not is_result(path)]:
        logger.warning(
            "images left out, for they are named like results, though of none of these inputs: %d, "
            "such as %s; give another --suffix, or -o a folder, to enlarge them",
            len(others),
            others[0],
        )
    for note in plan.notes:
        logger.warning("%s", note)
    first, step = share
    jobs = plan.jobs[first - 1 :: step]
    if not skip_existing:
        return jobs, 0
    new = []
    for job in jobs:
        result = suffixes.peek(job.target)  # an empty file is none
        if result and folders.is_of(result, job.source):
            continue
        if job.problem or not result:
            new.append(job)
        else:
            problem = f"expected its result in {job.target}, got a picture of another size"
            problem += ": give another --suffix or -o, or move that one away"
            new.append(replace(job, problem=problem))
    return new, len(jobs) - len(new)


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
    text += f" to {in_terminal(str(where))}" if tally.written else ""
    text += f", {there} were there" if there else ""
    if tally.failed:
        text += "\n  ".join([f", {len(tally.failed)} failed:", *tally.failed])
    return text


if __name__ == "__main__":
    command.start(main)
