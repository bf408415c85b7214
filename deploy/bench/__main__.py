"""The benchmark: how fast each backend is on this machine, and how exact. python -m deploy.bench

Each row runs in a process of its own; all of one size are warmed up, then timed in turns, so that
what disturbs the machine disturbs all of them. Writes one JSON, and table and picture of it. The
times are of a forward alone, as the challenge counts.
"""

import argparse
import contextlib
import itertools
import logging
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from deploy import backends
from deploy.bench import plan
from deploy.bench.large import measure_tiles
from deploy.bench.limits import cost, measure_ceilings
from deploy.bench.worker import MeasureDrift, Refused, Row, RunImages, Timing, rival, workers
from models.team23_LKDN import LKDN
from utils import command, devices, record
from utils.command import UserError
from utils.files import ROOT, write_bytes, write_json
from utils.report import speed

SIZES = [(256, 256), (340, 510), (540, 960)]

logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = _parse(argv)
    return command.run("deploy.bench", lambda: bench(args))


def bench(args: argparse.Namespace) -> int:
    """Measure what was asked for, record and print it; the exit code.

    Raises:
        UserError: a device or network that cannot be had, or too little memory.
    """
    code = command.GOOD
    device = devices.select_device(args.device)
    rows = _rows(args, device)
    result: dict[str, Any] = {"environment": record.environment(device), "rows": []}
    output = args.output or ROOT / "results" / f"benchmark_{device.type}.json"
    command.make_folder(output.parent)
    earlier = (output, record.PUBLISHED / f"benchmark_{device.type}.json")
    labels = [row.label for row in rows]
    logger.info(plan.describe(labels, args.sizes, args.rounds, result["environment"], earlier))

    def keep() -> None:
        """Time goes on being taken where it cannot be written: it may be, at the next size."""
        try:
            write_json(output, result)
        except OSError as error:
            logger.warning("%s was not written: %s", output, error.strerror)

    try:
        measure(result, rows, args.sizes, device, args.rounds, keep)
        if args.big:
            result["big"] = measure_tiles(device)
    except KeyboardInterrupt:
        print("interrupted: what follows is what was measured", file=sys.stderr)
        code = command.FAILED
    if not result["rows"]:
        return code
    print(speed.text(result))
    write_json(output, result)
    write_bytes(output.with_suffix(".png"), speed.picture(result))
    print(f"Recorded in {output}")
    return code


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "deploy.bench")
    add = parser.add_argument
    add("--device", choices=devices.NAMES, default="auto", help="where to run")
    add(
        "--backends",
        nargs="+",
        choices=(*backends.NAMES, "auto"),
        metavar="NAME",
        default=["auto", *backends.NAMES],
        help="beside the plain network",
    )
    add(
        "--precisions",
        nargs="+",
        choices=backends.PRECISIONS,
        metavar="P",
        help="of weights and features; by default all that the device has and does not emulate",
    )
    add("--sizes", nargs="+", type=command.size, metavar="HxW", default=SIZES, help="LR sizes")
    add("--rounds", type=int, default=15, help="timed forwards of each row")
    add(
        "--against",
        nargs="+",
        default=[],
        metavar="FILE.py:Class[:CHECKPOINT]",
        help="other x4 networks to time in the same run, (B, 3, H, W) in 0..1",
    )
    add(
        "--big",
        action="store_true",
        help="also restore an image to 100 megapixels in tiles, in 2 GiB",
    )
    add(
        "-o",
        "--output",
        type=command.file,
        help="JSON to write, else results/benchmark_DEVICE.json",
    )
    args = parser.parse_args(argv)
    if args.output and args.output.suffix == ".png":
        parser.error(f"expected a JSON to write by -o, its picture goes beside it: {args.output}")
    if args.rounds < 1:
        parser.error(f"expected --rounds of at least 1, got {args.rounds}")
    return args


def _rows(args: argparse.Namespace, device: torch.device) -> list[Row]:
    """What was asked for; first the plain network, to which all others are compared."""
    precisions = args.precisions or [
        p for p in backends.PRECISIONS if not backends.is_emulated(p, device)
    ]
    plain = Row("eager", "fp32", prepared=device.type != "cpu")
    rows = [plain, *(Row(*pair) for pair in itertools.product(args.backends, precisions))]
    others = dict.fromkeys(args.against)
    for against in others:
        rival(against)  # refused here if it cannot be made
    classes = Counter(against.split(":")[1] for against in others)
    for against in others:
        own = against.split(":")[1]
        # Two versions or two checkpoints of one network go by all that was given.
        network = own if classes[own] == 1 else against
        rows += [Row(name, "fp32", against, network=network) for name in ("eager", "channels_last")]
    return list(dict.fromkeys(rows))


def measure(
    result: dict[str, Any],
    rows: list[Row],
    sizes: list[tuple[int, ...]],
    device: torch.device,
    rounds: int,
    keep: Callable[[], None] = lambda: None,
) -> None:
    """Time every row at every size, into result["rows"], size by size; `keep` it after each.

    The ratios are to the first row, the plain network. A row that cannot run here, or not at one of
    the sizes, is left out from there on, and its reason kept under `refused`; one whose process
    died is left out of all sizes, for nobody can say how exact it is.

    Raises:
        UserError: the plain network cannot run.
    """
    result |= {"rounds": rounds, "ceilings": measure_ceilings(device), "refused": {}}
    result["macs_per_pixel"], result["bytes_per_pixel"] = cost(LKDN())

    def refuse(row: Row, where: str, reason: str) -> None:
        if row == rows[0]:
            raise UserError(f"the plain network cannot run{where}: {reason}")
        result["refused"][f"{row.label}{where}"] = reason
        logger.info("left out: %s%s: %s", row.label, where, reason)

    with workers(rows, device) as pipes:
        ready: dict[Row, dict[str, Any]] = {}
        for row, pipe in pipes.items():
            answer = _receive(pipe)
            if isinstance(answer, Refused):
                refuse(row, "", answer.reason)
            else:
                ready[row] = asdict(row) | {"label": row.label} | asdict(answer)
        running = {row: pipes[row] for row in ready}
        # Over the LR pixels of all forwards, of whatever row: each round takes as long.
        layout = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        total = len(running) * plan.megapixels(sizes, rounds)
        with tqdm(total=total, desc="timing", bar_format=layout, disable=None) as bar:
            for height, width in sizes:
                timings, refused = _time_size(running, height, width, rounds, bar)
                for row, reason in refused.items():
                    refuse(row, f" at {height}x{width}", reason)
                    del running[row]
                for row, figures in _figures(result, timings, height, width).items():
                    result["rows"].append(ready[row] | figures)
                keep()
        # Last: the float64 network would count as memory.
        for row in tqdm([row for row in ready if not row.against], "accuracy", disable=None):
            drift = _ask(pipes[row], MeasureDrift())
            own = [figures for figures in result["rows"] if figures["label"] == row.label]
            if not isinstance(drift, Refused):
                for figures in own:
                    figures["psnr_drift_db"] = drift
            elif own:  # fast, but who knows what
                refuse(row, "", drift.reason)
                result["rows"] = [figures for figures in result["rows"] if figures not in own]


def _time_size(
    pipes: dict[Row, Connection], height: int, width: int, rounds: int, bar: tqdm
) -> tuple[dict[Row, list[Timing]], dict[Row, str]]:
    """Each row's timings at one size, and why rows have none."""
    timings: dict[Row, list[Timing]] = {row: [] for row in pipes}
    refused: dict[Row, str] = {}

    def run(row: Row, count: int, to: list[Timing]) -> None:
        bar.set_postfix_str(f"{height}x{width}, {row.label}")
        answer = _ask(pipes[row], RunImages(height, width, count))
        bar.update(count * height * width / 1e6)
        if isinstance(answer, Refused):
            refused[row] = answer.reason
            del timings[row]
        else:
            to.append(answer)

    for row in pipes:
        run(row, plan.WARM_UP, [])
    for _ in range(rounds):
        for row, own in list(timings.items()):
            run(row, plan.TURN + 1, own)
    return timings, refused


def _figures(
    result: dict[str, Any], timings: dict[Row, list[Timing]], height: int, width: int
) -> dict[Row, dict[str, Any]]:
    """The figures of each row at one size, of which the first is the plain network."""
    percentiles = {
        row: np.percentile([timing.ms for timing in own], [20, 50, 80]).tolist()
        for row, own in timings.items()
    }
    plain = percentiles[next(iter(timings))][1]
    measured = {}
    for row, (p20, p50, p80) in percentiles.items():
        measured[row] = {
            "height": height,
            "width": width,
            "memory_mib": timings[row][-1].memory_mib,
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            "ratio_to_eager": plain / p50,
        }
        if not row.against:
            measured[row] |= {
                "tflop_s": 2 * result["macs_per_pixel"] * height * width / p50 / 1e9,
                "gb_s": result["bytes_per_pixel"] * height * width / p50 / 1e6,
            }
    return measured


def _ask(pipe: Connection, question: RunImages | MeasureDrift) -> Any:
    """What a row's process answers; Refused if it died."""
    with contextlib.suppress(OSError):  # it died, as is seen below
        pipe.send(question)
    return _receive(pipe)


def _receive(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return Refused("its process died, perhaps for want of memory")


if __name__ == "__main__":
    command.start(main)
