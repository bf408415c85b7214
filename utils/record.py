"""The environment of a run, and runs on disk: written, named and read."""

import contextlib
import functools
import itertools
import logging
import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import template
from utils.files import ROOT, finite, read_json, write_bytes, write_json
from utils.schema import NAME, Kind, misfit
from utils.text import encoded, printable

PUBLISHED = ROOT / "results" / "published"
ENTRY = "23_LKDN"  # what the shipped weights are called in results
# What other commands write, and write_run of all runs.
OTHERS = (
    *("results.json", "benchmark_*.json", "large_*.json", "agreement_*.json", "*_training.json"),
    *("modelled_*.json", "compiled_*.json", "results_before*.json"),
)

# What multiplies on a CPU, by Linux' name of it, the fastest first.
WIDEST = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "avx512f": "AVX-512", "avx2": "AVX2"}

ENVIRONMENT: dict[str, Kind] = {
    "device": str,
    "device_type": NAME,
    "instructions?": (str, None),
    "threads": int,
    "date": str,
    "commit": (str, None),
}
# A time, or a score; JSON has no infinity, which is the PSNR of equal images.
FIGURE: Kind = (float, None)
COUNT = range(10**15)
RUN: dict[str, Kind] = {
    **dict.fromkeys(("model", "dataset", "backend", "precision"), NAME),
    **dict.fromkeys(("lr_source", "flops_counter"), str),
    "checkpoint": {"name": (str, None), "sha256": (str, None)},
    "environment": ENVIRONMENT,
    **dict.fromkeys(("num_parameters", "flops", "activations", "num_conv"), COUNT),
    "flops_fvcore?": (COUNT, None),
    **{
        f"ave_{score}": FIGURE
        for score in ("psnr", "psnr_y", "ssim", "ssim_y", "psnr_bicubic", "psnr_y_bicubic")
    },
    **{f"{time}_runtime_ms": FIGURE for time in ("ave", "median", "p20", "p80")},
    "memory_mib": FIGURE,
    "memory_of?": str,
    "plain?": {"average": FIGURE, "median": FIGURE},
    "images": [
        {
            "name": NAME,
            "size": [range(1, 10**6), range(1, 10**6)],
            **dict.fromkeys(("psnr", "psnr_bicubic", "runtime_ms"), FIGURE),
            "ssim?": FIGURE,
            "png_sha256?": str,
        }
    ],
    "images_in_set?": COUNT,
    "failed?": [str],
}

logger = logging.getLogger(__name__)


def environment(device: torch.device) -> dict[str, Any]:
    """What a number depends on besides the code: versions, device, flags, commit, date (UTC)."""
    commit, dirty = _commit()
    cuda = device.type == "cuda"
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "cuda": torch.version.cuda,
        "driver": _driver() if cuda else None,
        "device": torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        "device_type": device.type,
        "instructions": None if cuda else _instructions(),
        "threads": torch.get_num_threads(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "cudnn": torch.backends.cudnn.version(),
        "cudnn_enabled": torch.backends.cudnn.enabled,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the repository and whether tracked files differ from it; None outside git."""
    # From here up to the top: nothing, but in a copy of the files in another repository.
    if _output(["git", "-C", str(ROOT), "rev-parse", "--show-cdup"]) != "":
        return None, None
    head = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if not head:
        return None, None
    status = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return head, bool(status)


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_output(query) or "").split("\n")[0] or None


def _cpu_name() -> str:
    name = _told_of_cpu("model name")
    return f"{name}, {os.cpu_count()} cores" if name else platform.processor() or platform.machine()


def _instructions() -> str | None:
    """The widest that this CPU multiplies by: virtual machines may hide some of a model's."""
    able = _told_of_cpu("flags").split()
    return next((word for flag, word in WIDEST.items() if flag in able), None)


def _told_of_cpu(field: str) -> str:
    """What Linux tells of the first CPU, or an empty text."""
    with contextlib.suppress(OSError):
        if line := re.search(rf"^{field}\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M):
            return line[1].strip()
    return ""


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def run_stem(run: dict[str, Any]) -> str:
    """File name of a run, without suffix: one per model, set, device, backend and precision."""
    return "_".join(
        (
            run["model"],
            run["dataset"],
            run["environment"]["device_type"],
            run["backend"],
            run["precision"],
        )
    )


def write_run(save_dir: Path, run: dict[str, Any]) -> Path:
    """Record a run in `save_dir` and bring the template's results.json and .txt up to date.

    Replaces an earlier run of the same name, with a warning if that was of other weights or
    images, and touches no other. Where it is the folder's first run, results of the organisers'
    template that are there are kept under another name. Several processes may do this in one
    folder at once.
    """
    path = save_dir / f"{run_stem(run)}.json"
    if not read_runs(save_dir):
        _set_aside(save_dir)
    _warn_of_replaced(path, run)
    write_json(path, run)
    seen = None
    while seen != (now := _states(save_dir)):  # again if another process wrote a run meanwhile
        seen = now
        runs = read_runs(save_dir)
        write_json(save_dir / "results.json", template.results(runs))
        write_bytes(save_dir / "results.txt", encoded(template.table(runs)))
    return path


def _set_aside(save_dir: Path) -> None:
    """Keep results that no run here has written."""
    for name in ("results.json", "results.txt"):
        file = save_dir / name
        if file.is_file():
            numbers = itertools.count(1)
            places = (file.with_name(f"{file.stem}_before{i}{file.suffix}") for i in numbers)
            place = next(place for place in places if not place.exists())
            with contextlib.suppress(FileNotFoundError):  # another process has done it
                file.rename(place)
                logger.warning("%s was there and is now %s", file, place)


def _warn_of_replaced(path: Path, run: dict[str, Any]) -> None:
    """Say so where the run of this name was of something else. Sets of one name may lie in several
    folders, and one set may be measured on other LR images, or have changed."""
    try:
        earlier = read_json(path)
        is_other = {
            "weights": earlier["checkpoint"]["sha256"] != run["checkpoint"]["sha256"],
            "images": _images_of(earlier) != _images_of(run),
        }
    except (OSError, ValueError, KeyError, TypeError):
        return
    if others := " and ".join(what for what, is_so in is_other.items() if is_so):
        logger.warning(
            "%s is replaced: it was of other %s; give another --save_dir to keep such runs",
            path,
            others,
        )


def _images_of(run: dict[str, Any]) -> tuple[Any, ...]:
    """What tells the images of a run from others: where LR is from, names, sizes, bicubic PSNR."""
    images = finite(run["images"])  # as they are read again
    return run["lr_source"], [
        (image["name"], image["size"], round(image["psnr_bicubic"] or 0, 3)) for image in images
    ]


def _states(save_dir: Path) -> list[tuple[str, int, int]]:
    states = []
    for path in _run_files(save_dir):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            states.append((path.name, path.stat().st_mtime_ns, path.stat().st_size))
    return states


def _run_files(folder: Path) -> list[Path]:
    """The JSON files in a folder that may be runs: no record of another command."""
    files = sorted(path for path in folder.glob("*.json") if path.is_file())
    return [path for path in files if not any(map(path.match, OTHERS))]


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs recorded in a folder, by file name; other JSON files are named and left out."""
    found = (read_record(path, RUN, "run of test_demo.py") for path in _run_files(folder))
    return [run for run in found if run is not None]


def read_record(path: Path, kind: Kind, what: str) -> dict[str, Any] | None:
    """The JSON in a file if it is of a kind; else None, with a warning that calls it no `what`."""
    try:
        record: dict[str, Any] = read_json(path)
        if problem := misfit(record, kind):
            raise ValueError(problem)
    except (OSError, ValueError) as error:
        _name_once(path, what, str(error))
        return None
    return record


@functools.cache
def _name_once(path: Path, what: str, problem: str) -> None:
    """Say what is left out: a command reads its folder again after each of its own runs."""
    name = printable(path, most=4096)
    logger.warning("left out, for it is no %s: %s: %s", what, name, problem)


def recorded(run: dict[str, Any], save_dir: Path, failures: list[str]) -> str:
    """Record a run and say where; where that fails, what was measured is shown all the same."""
    try:
        path = write_run(save_dir, run).resolve()
    except OSError as error:
        failures.append(f"record of {run['model']} on {run['dataset']}: {error}")
        return "no file, for it could not be written"
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
