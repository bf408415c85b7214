"""Rows of a part: run in turn, each recorded as soon as it is done, none lost to a later one."""

import logging
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from utils import record
from utils.files import read_json, write_json
from utils.report.gpu import found
from utils.text import printable

Measure = Callable[[], dict[str, Any]]

UNENDED = "it did not end"  # what a row is recorded with while it runs
LOST = 3  # exit code of a part's own process where the rows left need a new one

logger = logging.getLogger(__name__)


def run_rows(
    part: str, rows: Iterable[tuple[str, Measure]], device: torch.device, file: Path
) -> dict[str, Any]:
    """Run each (name, measurement) that `file` does not have yet; what the file holds then.

    A row that fails is recorded with its reason. A row is recorded before it begins, too, for it
    may be the end of the process.

    Raises:
        SystemExit: LOST, for the device does nothing any more in this process.
    """
    result: dict[str, Any] = {"part": part, "environment": record.environment(device), "rows": []}
    done = {row["name"]: row for row in _earlier(file, result)}

    def write() -> None:
        result["rows"] = list(done.values())
        write_json(file, result)

    write()
    lost = False
    for name, measure in rows:
        if name not in done:
            done[name] = {"name": name, "failed": UNENDED}
            write()
            began = time.perf_counter()
            try:
                row = measure()
            except Exception as error:  # a library's, a compiler's, a driver's
                row = {"failed": f"{type(error).__name__}: {error}"[:2000]}
                lost = not _answers(device)
            done[name] = {"name": name, **row, "seconds": time.perf_counter() - began}
            write()
        logger.info("%s, %s: %s", part, name, printable(found(done[name]), 200))
        if lost:
            sys.exit(LOST)
    return result


def _answers(device: torch.device) -> bool:
    """Whether a device computes: after a fault in a kernel CUDA refuses a process everything."""
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:
        return False


def _earlier(file: Path, now: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a file of the same part, commit, device and versions."""
    same = ("commit", "dirty", "device", "torch", "driver")
    try:
        earlier = read_json(file)
        known = all(earlier["environment"][key] == now["environment"][key] for key in same)
        return earlier["rows"] if known and earlier["part"] == now["part"] else []
    except (OSError, ValueError, LookupError, TypeError):
        return []
