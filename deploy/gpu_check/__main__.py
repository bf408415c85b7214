"""All that has to be known on a GPU, in parts that can be cut off: python -m deploy.gpu_check

Each part runs in a process of its own for at most --minutes, writes its JSON after each row, and
goes on where it was cut when the command is given again. Where a row ends the process, or leaves a
device that does nothing any more, the rows after it run in a new one. It needs torch, Triton and
this repository's requirements.txt; fvcore, OpenVINO and ONNX are not asked for. The exit code is 1
if a row failed or a part was cut.
"""

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy import runners
from deploy.gpu_check.parts import PARTS
from deploy.gpu_check.rows import LOST, UNENDED, run_rows
from utils import command, devices
from utils.files import ROOT, read_json, write_json

SIZES = [(256, 256), (340, 510)]


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = command.parser(__doc__, "deploy.gpu_check")
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="in this order")
    add(
        "--device",
        choices=devices.NAMES,
        default="cuda",
        help="cpu is a rehearsal, in Triton's interpreter",
    )
    add("--sizes", nargs="+", type=command.size, metavar="HxW", default=SIZES, help="LR sizes")
    add("--minutes", type=float, default=9, metavar="M", help="at most so long a part")
    output = ROOT / "results" / "gpu_check"
    where = "where the JSONs go"
    add("-o", "--output", type=command.path, default=output, metavar="DIR", help=where)
    add("--inside", action="store_true", help=argparse.SUPPRESS)  # a part's own process
    args = parser.parse_args(argv)
    work = _run_inside if args.inside else _run_all
    return command.run("deploy.gpu_check", lambda: work(args))


def _run_inside(args: argparse.Namespace) -> int:
    """Run one part in this process; the exit code.

    Raises:
        UserError: the device cannot be had, or Triton is not installed.
    """
    device = devices.select_device(args.device)
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    runners.need("triton")
    (part,) = args.parts
    rows = PARTS[part](device, args.sizes)
    result = run_rows(part, rows, device, args.output / f"{part}.json")
    return command.FAILED if any("failed" in row for row in result["rows"]) else command.GOOD


def _run_all(args: argparse.Namespace) -> int:
    """Run the parts, each in processes that a crash or the clock may end; the exit code.

    Raises:
        DeviceError: the device cannot be had.
    """
    devices.select_device(args.device)
    command.make_folder(args.output)
    code = command.GOOD
    for part in args.parts:
        began = time.perf_counter()
        ended = _run_part(part, args)
        how = "" if ended in (command.GOOD, command.FAILED) else f", ended with {ended}"
        if ended is None:
            how = f", cut after {args.minutes:g} minutes"
        rows = _rows(args.output / f"{part}.json")
        failed = sum("failed" in row for row in rows)
        seconds = time.perf_counter() - began
        print(f"{part}: {len(rows)} rows, {failed} failed{how}, {seconds:.0f} s", flush=True)
        if ended != command.GOOD:
            code = command.FAILED
    print(f"Recorded in {args.output}")
    return code


def _run_part(part: str, args: argparse.Namespace) -> int | None:
    """Run a part, in a new process after each row that ended one; the last one's exit code, or
    None where the time was up."""
    file = args.output / f"{part}.json"
    until = time.perf_counter() + 60 * args.minutes
    line = [sys.executable, "-m", "deploy.gpu_check", "--inside", "--parts", part]
    line += ["--device", args.device, "-o", str(args.output.resolve())]
    line += ["--sizes", *(f"{height}x{width}" for height, width in args.sizes)]
    if rows := _rows(file):  # what failed in an earlier call is tried anew
        _keep(file, [row for row in rows if "failed" not in row])
    while True:
        ended = _run_for(line, until - time.perf_counter())
        rows = _rows(file)
        unended = rows and rows[-1].get("failed") == UNENDED
        if ended is None or not (unended or ended == LOST):
            return ended
        if unended:
            how = f"exit code {ended}" if ended >= 0 else signal.Signals(-ended).name
            _keep(file, [*rows[:-1], rows[-1] | {"failed": f"its process ended with {how}"}])


def _run_for(line: list[str], seconds: float) -> int | None:
    """Run a command and end all that it started; its exit code, or None after so many seconds."""
    process = subprocess.Popen(line, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = read_json(file)["rows"]
        return rows if all(isinstance(row, dict) for row in rows) else []
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _keep(file: Path, rows: list[dict[str, Any]]) -> None:
    write_json(file, read_json(file) | {"rows": rows})


if __name__ == "__main__":
    command.start(main)
