"""Damaged and hostile inputs for every reader of files, in processes that are watched.

python -m tests.fuzz [--images N] [--checkpoints N] [--states N] [--runs N] [--keep FOLDER]

The same seed makes the same inputs. Each may take 20 s of a CPU and 2 GiB of memory.
"""

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from tests.fuzz import checkpoints, pictures, records, states
from tests.fuzz.kinds import READ, REFUSED, WRONG, Kind
from tests.fuzz.workers import LIMIT_MIB, LIMIT_S, Result, try_all
from utils import command
from utils.text import aligned, printable

KINDS = ((pictures.KIND, 3000), (checkpoints.KIND, 1000), (states.KIND, 200), (records.KIND, 300))
SHOWN = 5  # failures of a kind that are shown with what was said


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code: 1 where anything but READ and REFUSED happened."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=command.HelpFormatter,
    )
    for kind, count in KINDS:
        parser.add_argument(f"--{kind.name}", type=int, default=count, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="at once")
    parser.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="copy the inputs that fail there"
    )
    args = parser.parse_args(argv)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that are started
    rows = [["", READ, REFUSED, *WRONG, "slowest [CPU s]", "most memory [MiB]", "took [s]"]]
    failures = 0
    for kind, _ in KINDS:
        if count := getattr(args, kind.name):
            start = time.monotonic()
            results = run(kind, count, args)
            row, failed = counted(kind, results)
            rows.append([*row, f"{time.monotonic() - start:.0f}"])
            failures += failed
    print(f"\nSeed {args.seed}; allowed: {LIMIT_S:.0f} s of a CPU and {LIMIT_MIB} MiB an input")
    print(aligned(rows))
    return command.FAILED if failures else command.GOOD


def run(kind: Kind, count: int, args: argparse.Namespace) -> list[Result]:
    """Try all inputs of a kind, and show the first failures."""
    results = []
    tried = try_all(kind, args.seed, count, args.processes, args.keep)
    for result in tqdm(tried, kind.name, count, unit="input", disable=None):
        results.append(result)
        if result.outcome in WRONG and sum(r.outcome in WRONG for r in results) <= SHOWN:
            lines = [printable(line, 500) for line in result.said.strip().splitlines()[-12:]]
            tqdm.write("\n  ".join([f"{kind.name} {result.index}: {result.outcome}", *lines]))
    return results


def counted(kind: Kind, results: list[Result]) -> tuple[list[str], int]:
    """A row of the table, and how many failed."""
    counts = Counter(result.outcome for result in results)
    numbers = [str(counts[outcome]) for outcome in (READ, REFUSED, *WRONG)]
    slowest, peak = max(r.cpu_s for r in results), max(r.peak_mib for r in results)
    row = [kind.name, *numbers, f"{slowest:.1f}", str(peak)]
    return row, sum(counts[outcome] for outcome in WRONG)


if __name__ == "__main__":
    command.start(main)
