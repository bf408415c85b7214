"""Training speed, one change at a time: python train/throughput.py --data DIR -o FILE.json

Runs train.py once for each row, in a fresh process, and records what its log has: steps and patches
a second after a warm-up, the loss of equal steps, the memory. Each row changes one thing of the one
it is compared with. A row that fails is recorded with its reason, if it was not measured before.
"""

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":
    # In place of train/, where `train` would be train.py.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from train.process import add_data, require_data, run_train
from utils import command, devices, record
from utils.command import UserError
from utils.files import sha256, write_json
from utils.report.training_tables import THROUGHPUT

BUSY = "another process on one core"  # ends the names of rows that are measured beside one

logger = logging.getLogger("throughput")

FUSED = "--precision bf16 --depthwise triton --compile on"
ROWS = {
    "cpu": {
        "branches run as they are, NCHW": "--no-fold --no-channels_last --no-tuned_cpu",
        "+ branches folded at each step": "--no-channels_last --no-tuned_cpu",
        "+ channels_last": "--no-tuned_cpu",
        "+ denormals flushed, freed memory kept": "",
        "+ bf16": "--precision bf16",
        "+ torch.compile, without bf16": "--compile on",
        "native kernels": "--kernels native",
        "native kernels, bf16": "--kernels native --precision bf16",
        f"native kernels, {BUSY}": "--kernels native",
    },
    "cuda": {
        "branches run as they are, NCHW": "--no-fold --no-channels_last --crops cpu",
        "+ patches cut on the GPU": "--no-fold --no-channels_last",
        "+ branches folded at each step": "--no-channels_last",
        "+ bf16": "--no-channels_last --precision bf16",
        "+ channels_last": "--precision bf16",
        "+ Triton depthwise": "--precision bf16 --depthwise triton",
        "+ torch.compile": FUSED,
        "+ CUDA graphs": f"{FUSED} --graphs",
        "torch.compile without Triton depthwise": "--precision bf16 --compile on",
        "torch.compile, NCHW": "--precision bf16 --compile on --no-channels_last",
        "channels_last and dense pairs": "--precision bf16 --dense",
        "torch.compile and dense pairs": f"{FUSED} --dense",
        "CUDA graphs and dense pairs": f"{FUSED} --dense --graphs",
        "CUDA graphs and channels of zeros": f"{FUSED} --aligned --graphs",
    },
}


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    args = parse(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return command.run("train/throughput.py", lambda: measure_all(args))


def measure_all(args: argparse.Namespace) -> int:
    """Measure and record every row that was asked for; the exit code.

    Raises:
        UserError: the device or the data cannot be had, or there is no such row.
        OSError: the record cannot be written.
    """
    require_data(args)
    device = devices.select_device(args.device)
    rows = ROWS["cuda" if device.type == "cuda" else "cpu"]
    names = [row_of(asked, list(rows)) for asked in args.rows or rows]
    measured: dict[str, Any] = {
        "throughput_of": "train/train.py",
        "batch": args.batch,
        "patch": args.patch,
        "steps": args.steps,
        "rounds": args.rounds,
        "init": sha256(args.init) if args.init else None,
        "environment": record.environment(device),
        "rungs": [],
    }
    measured["rungs"] = earlier_rows(args.output, measured)
    chosen = [(name, row.split()) for name, row in rows.items() if name in names]
    speeds: dict[str, list[float]] = {}
    failed_late = False
    for name, options in chosen * args.rounds:
        with busy_process() if name.endswith(BUSY) else contextlib.nullcontext():
            row = {"name": name, "options": options, **measure(options, args)}
        if "failed" not in row:
            speeds.setdefault(name, []).extend(row.pop("speeds"))
            row = {**row, **spread(speeds[name], args.batch)}
        elif any(name == other["name"] and "failed" not in other for other in measured["rungs"]):
            logger.info("%s: %s; what was measured before stays", name, row["failed"])
            failed_late = True
            continue
        logger.info(
            "%s: %s",
            name,
            row.get("failed") or f"{row['steps_per_s']:.2f} steps/s, loss {row['loss']:.6f}",
        )
        by_name = {other["name"]: other for other in [*measured["rungs"], row]}
        measured["rungs"] = [by_name[other] for other in rows if other in by_name]
        write_json(args.output, measured)  # after each: time may run out
    failed = any("failed" in row for row in measured["rungs"] if row["name"] in names)
    return command.FAILED if failed or failed_late else command.GOOD


def row_of(asked: str, names: list[str]) -> str:
    """The name of a row that was asked for by number or name. Raises UserError if there is none."""
    if asked in names:
        return asked
    if asked.isdecimal() and int(asked) < len(names):
        return names[int(asked)]
    listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names))
    raise UserError(f"expected --rows of {listed}, got {asked}")


def earlier_rows(file: Path, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows in `file` if they were measured under the same conditions, date and commit apart,
    so that they may be measured in several calls."""

    what = "record of train/throughput.py"
    earlier = record.read_record(file, THROUGHPUT, what) if file.exists() else None
    if earlier is None:
        return []
    changing = {"date", "commit", "dirty"}
    changing |= {"instructions"} - earlier["environment"].keys()  # older records do not tell them

    def conditions(measured: dict[str, Any]) -> dict[str, Any]:
        environment = {k: v for k, v in measured["environment"].items() if k not in changing}
        return {**measured, "rungs": None, "environment": environment}

    rows: list[dict[str, Any]] = earlier["rungs"]
    return rows if conditions(earlier) == conditions(now) else []


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = command.parser(__doc__)
    add = parser.add_argument
    add_data(parser)
    add("-o", "--output", type=command.file, required=True, metavar="FILE", help="JSON to write")
    add("--device", choices=devices.NAMES, default="auto")
    add("--batch", type=int, default=128, help="patches a step")
    add("--patch", type=int, default=256, help="HR pixels a side")
    add("--steps", type=int, default=200, help="steps a row; the first fifth warms up")
    add("--init", type=command.path, metavar="FILE", help="weights to start from")
    add("--minutes", type=float, default=10, metavar="M", help="at most so long a row")
    add(
        "--rounds",
        type=int,
        default=1,
        metavar="N",
        help="measure the rows in turn so often, on a machine whose speed changes",
    )
    add(
        "--rows", nargs="+", metavar="ROW", help="only these, by number from 0 or by name; else all"
    )
    args = parser.parse_args(argv)
    for name, least in (("steps", 10), ("rounds", 1)):
        if (value := getattr(args, name)) < least:
            parser.error(f"expected --{name} of at least {least}, got {value}")
    if args.init and not os.path.isfile(args.init):
        parser.error(f"expected weights in --init {args.init}, found no such file")
    return args


def measure(options: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """One run of train.py: its speed after the warm-up and its last loss, or why it failed."""
    numbers = (
        f"--stage 1 --batch {args.batch} --patch {args.patch} --steps {args.steps} "
        f"--log_every {max(1, args.steps // 20)} --optimizer muon --lr 0.02 --warmup {args.steps} "
        f"--norm_start 0.1 --device {args.device}"
    )
    init = ["--init", args.init] if args.init else []
    began = time.monotonic()
    try:
        lines = run_train([*numbers.split(), *init, *options], args, args.output, args.minutes)
    except RuntimeError as error:
        return {"failed": str(error)}
    lines = [line for line in lines if "loss" in line]
    speeds = [x["images_per_s"] / args.batch for x in lines if x["step"] > args.steps / 5]
    return {
        "speeds": speeds,
        "loss": lines[-1]["loss"],
        "memory_mib": lines[-1].get("memory_mib"),
        "seconds": time.monotonic() - began,
    }


def spread(speeds: list[float], batch: int) -> dict[str, float]:
    """Median and percentiles of steps a second, over all rounds."""
    p20, median, p80 = np.percentile(speeds, [20, 50, 80]).tolist()
    return {
        "steps_per_s": median,
        "steps_per_s_p20": p20,
        "steps_per_s_p80": p80,
        "patches_per_s": median * batch,
    }


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Meanwhile a process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as other:
        try:
            yield
        finally:
            other.kill()


if __name__ == "__main__":
    command.start(main)
