"""What results/published/ holds: records that are whole, with their texts as Markdown."""

from pathlib import Path
from typing import Any

from utils.record import ENTRY, read_record, read_runs
from utils.report import speed, training_tables
from utils.schema import Kind
from utils.text import in_markdown

Record = dict[str, Any]


def records(folder: Path, names: str, kind: Kind) -> list[Record]:
    """All of a kind among the files of these names; what is none is named and left out."""
    files = sorted(folder.glob(names), key=number_and_name)
    found = (read_record(file, kind, "whole record") for file in files)
    return [in_markdown(record) for record in found if record]


def trials(folder: Path) -> list[Record]:
    """The records of train/trial.py."""
    return records(folder, "trials/*.json", training_tables.TRIAL)


def runs(folder: Path) -> list[Record]:
    """Runs of test_demo.py, none of weights that were shipped before."""
    training = read_training(folder)
    return [in_markdown(run) for run in read_runs(folder) if not is_stale(run, training)]


def benchmarks(folder: Path) -> dict[str, Record]:
    """Runs of deploy.bench by the type of their device."""
    found = records(folder, "benchmark_*.json", speed.BENCHMARK)
    return {result["environment"]["device_type"]: result for result in found}


def read_training(folder: Path) -> Record:
    """The record of the shipped weights' training; nothing where there is none."""
    path = folder / f"{ENTRY}_training.json"
    if not path.exists():
        return {}
    return read_record(path, training_tables.TRAINING, "whole record") or {}


def number_and_name(file: Path) -> tuple[int, str]:
    """To sort files by the number that their names begin with: 9-psnr before 10-batch-6."""
    head = file.name.partition("-")[0]
    return int(head) if head.isdecimal() and len(head) < 10 else 0, file.name


def is_stale(run: Record, training: Record) -> bool:
    """Whether a run is of weights that were shipped before: its figures are not of these."""
    sha256 = run["checkpoint"]["sha256"]
    return run["model"] == ENTRY and sha256 != training.get("sha256", sha256)
