"""The environment of a run, and runs on disk: written, named and read."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

import numpy as np
import torch

from utils import template
from utils.files import ROOT, read_json, write_bytes, write_json

PUBLISHED = ROOT / "results" / "published"
ENTRY = "23_LKDN"  # what the shipped weights are called in results


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
    head = _output(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    if not head:
        return None, None
    status = _output(["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"])
    return head, bool(status)


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return (_output(query) or "").split("\n")[0] or None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return platform.processor() or platform.machine()


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

    Replaces an earlier run of the same name and touches no other. Several processes may do this
    in one folder at once.
    """
    path = save_dir / f"{run_stem(run)}.json"
    write_json(path, run)
    seen = None
    while seen != (now := _states(save_dir)):  # again if another process wrote a run meanwhile
        seen = now
        runs = read_runs(save_dir)
        write_json(save_dir / "results.json", template.results(runs))
        write_bytes(save_dir / "results.txt", template.table(runs).encode())
    return path


def _states(save_dir: Path) -> list[tuple[str, int, int]]:
    files = ((path, path.stat()) for path in _run_files(save_dir))
    return [(path.name, stat.st_mtime_ns, stat.st_size) for path, stat in files]


def _run_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.name != "results.json")


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The runs recorded in a folder, by file name; other JSON files are left out."""
    runs = []
    for path in _run_files(folder):
        try:
            content = read_json(path)
        except (OSError, ValueError):
            continue
        if is_run(content):
            runs.append(content)
    return runs


def is_run(run: Any) -> bool:
    """Whether the content of a JSON file is a run of test_demo.py, with all that pages and tables
    show; one of another version may lack some."""
    return (
        _has(run, dict | None, "checkpoint")
        and _has(run, str, "model", "dataset", "lr_source", "backend", "precision")
        and _has(run, int | float, "num_parameters", "flops", "activations", "num_conv")
        and _has(run, int | float | None, "ave_psnr", "ave_ssim", "ave_runtime_ms", "memory_mib")
        and _has(run.get("environment"), str, "device_type")
        and _has({"failed": []} | run, list, "images", "failed")
        and all(map(_is_whole_image, run["images"]))
    )


def _is_whole_image(image: Any) -> bool:
    return (
        _has(image, str, "name")
        and _has(image, list, "size")
        and all(isinstance(side, int) for side in image["size"])
        and _has(image, int | float | None, "psnr", "psnr_bicubic", "runtime_ms")
    )


def _has(record: Any, kind: type | UnionType, *keys: str) -> bool:
    return isinstance(record, dict) and all(
        key in record and isinstance(record[key], kind) for key in keys
    )
