"""Record a run as a row of the table of trials: python train/trial.py RUN NAME

Every run that taught something gets one, failures included. What is recorded is in the run's own
files: numbers, seed, steps, minutes, machine, and the scores on the validation images.
"""

import argparse
import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # In place of train/, where `train` would be train.py.
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from train import log
from train.commands import commands
from train.records import last_stage, training_records, without_digests
from utils import command
from utils.command import UserError
from utils.files import read_json, write_bytes, write_json
from utils.record import PUBLISHED, read_runs
from utils.report import curves, documents, published
from utils.report.training_tables import VAL
from utils.weights import CheckpointError, read_checkpoint

TRIALS = PUBLISHED / "trials"
SCORES = ("step", "val", "val_psnr", "val_psnr_y", "others")

logger = logging.getLogger("trial")


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "source",
        type=command.path,
        metavar="RUN_OR_CHECKPOINT",
        help="folder of a run (its last stage is taken), or a stage's file",
    )
    parser.add_argument("name", metavar="NAME", help="file name of the row, without suffix")
    parser.add_argument("--note", default="", metavar="TEXT", help="what was learnt, one line")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if not args.name.replace("_", "").replace("-", "").isalnum():
        parser.error(f"expected a NAME of letters, digits, _ and -, got {args.name}")

    def work() -> None:
        file = TRIALS / f"{args.name}.json"
        record = trial(args.source, args.name, args.note)
        there = earlier_trial(file, record)
        record["note"] = args.note or there.get("note", "")
        write_json(file, record)
        documents.regenerate()
        draw()
        logger.info("%s and the tables are up to date", file)

    return command.run("train/trial.py", work)


def earlier_trial(file: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The trial of the same run in `file`, which may have gone on since; empty where there is none.
    Raises UserError where it is another run's."""
    if not file.exists():
        return {}
    with contextlib.suppress(ValueError, LookupError, TypeError):
        there: dict[str, Any] = read_json(file)
        runs = [(one["history"][0]["environment"]["date"], one["seed"]) for one in (there, record)]
        if runs[0] == runs[1]:
            return there
    raise UserError(
        f"expected a new NAME, or that of a trial of this run, got {file.stem}, which is another "
        f"run's: give another NAME, or remove {file}"
    )


def draw(folder: Path = PUBLISHED) -> None:
    """Draw the scores of all trials over the pixels they have seen, beside those of published runs
    on the validation images."""
    scored = (r for r in read_runs(folder) if r["dataset"] == VAL and r["ave_psnr_y"])
    lines = {run["checkpoint"]["name"]: run["ave_psnr_y"] for run in scored}
    write_bytes(folder / "trials.png", curves.picture(published.trials(folder), lines))


def trial(source: Path, name: str, note: str) -> dict[str, Any]:
    """The record of a checkpoint's stage; of the last one in the folder of a run.

    Raises:
        CheckpointError: there is no checkpoint of train.py.
    """
    file = last_stage(source) if source.is_dir() else source
    run = file.parent
    records = training_records(read_checkpoint(file), run)
    if not records:
        raise CheckpointError(f"expected a checkpoint of train/train.py, got {file}")
    own = without_digests(records[-1])
    name_of_stage = own["stage"]["name"]
    lines = [line for line in log.read(run / "log.jsonl") if line["stage"] == name_of_stage]
    return {
        "trial": name,
        "note": note,
        "command": commands(records)[-1],
        **own,
        "minutes": sum(work["minutes"] for work in own["history"]),
        "validation": [
            {key: line[key] for key in SCORES if key in line}
            # The log may be ahead of its checkpoint, or of a copy of an earlier one; that it
            # diverged always comes after the last weights that were saved.
            for line in log.scored([line for line in lines if line["step"] <= own["step"]])
        ],
        "failed": next((line["failed"] for line in lines if "failed" in line), None),
    }


if __name__ == "__main__":
    command.start(main)
