"""What results/published/ holds: records that are whole, with their texts as Markdown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.record import ENTRY, read_record, read_runs
from utils.report import gpu, speed, training_tables
from utils.schema import Kind
from utils.text import in_markdown

Record = dict[str, Any]


@dataclass(frozen=True)
class Published:
    """Runs of test_demo.py, the record of the shipped weights' training, the records of
    train/trial.py, train/throughput.py and train/agreement.py, and the runs of deploy.bench by the
    type of their device, of deploy.bench.large and of deploy.gpu_check."""

    runs: list[Record]
    training: Record
    trials: list[Record]
    throughput: list[Record]
    agreement: list[Record]
    benchmarks: dict[str, Record]
    large: list[Record]
    checks: list[Record]


def read(folder: Path) -> Published:
    """All records in a folder; what is none of its kind is named and left out."""

    def records(names: str, kind: Mapping[str, Kind]) -> list[Record]:
        files = sorted(folder.glob(names), key=number_and_name)
        found = (read_record(file, kind, "whole record") for file in files)
        return [in_markdown(record) for record in found if record]

    training = read_training(folder)
    benchmarks = records("ladder_*.json", speed.BENCHMARK)
    return Published(
        runs=[in_markdown(run) for run in read_runs(folder) if not is_stale(run, training)],
        training=in_markdown(training),
        trials=records("trials/*.json", training_tables.TRIAL),
        throughput=records("throughput/*.json", training_tables.THROUGHPUT),
        agreement=records("agreement_*.json", training_tables.AGREEMENT),
        benchmarks={result["environment"]["device_type"]: result for result in benchmarks},
        large=records("large_*.json", speed.LARGE),
        checks=records("gpu_check/*.json", gpu.CHECK),
    )


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
