"""Published runs -> the generated parts of the READMEs and the model card.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import argparse
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils import command
from utils.command import UserError
from utils.datasets import BENCHMARKS
from utils.files import ROOT, read_json, write_bytes
from utils.record import ENTRY, is_run, read_runs, run_stem
from utils.report import comparison, speed, summary, training_tables
from utils.text import markdown, number

DOCUMENTS = (
    "README.md",
    "results/README.md",
    "model_zoo/README.md",
    "train/README.md",
    "deploy/README.md",
)
TABLE_1 = "Y-PSNR [dB] / SSIM, x4"
AUTHORS_FILE = "LKDN-S_x4_fused.pth"  # their released weights, fused
# LR pixels of the factsheet's two stages: steps, patches a step, pixels a patch.
AUTHORS_PIXELS = 950_000 * 128 * 64**2 + 50_000 * 64 * 120**2


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.report.documents", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--publish",
        nargs="*",
        type=Path,
        metavar="FILE",
        required=True,
        help="runs to copy to results/published/; none: only make the tables",
    )
    args = parser.parse_args(argv)
    return command.run("utils.report.documents", lambda: publish(args.publish))


def publish(files: Sequence[Path], root: Path = ROOT) -> None:
    """Copy runs to results/published/ and bring every generated table up to date.

    Raises:
        UserError: a file holds no run, or one in which images failed; nothing is copied then.
    """
    published = root / "results" / "published"
    contents: dict[Path, Any] = {}
    for file in files:
        try:
            run = read_json(file)
        except (OSError, ValueError) as error:
            raise UserError(f"expected the JSON of a run, got {file}: {error}") from error
        contents[file] = run
        if speed.is_whole(run) or speed.is_large(run):
            continue
        if not is_run(run):
            raise UserError(
                f"expected the JSON of a run of test_demo.py, "
                f"deploy.bench.large or all of deploy.bench, got {file}"
            )
        if failed := run.get("failed", ["nobody knows"]):
            raise UserError(
                f"expected a run without failures, got {len(failed)} failed images in {file}"
            )
        if _is_stale(run, _training(published)):
            raise UserError(
                f"expected a run of the weights in model_zoo/, got one of others "
                f"in {file}: run test_demo.py again"
            )
    published.mkdir(parents=True, exist_ok=True)
    for file, content in contents.items():
        if file.resolve().parent != published.resolve():
            shutil.copyfile(file, published / file.name)
        if speed.is_whole(content) and (drawn := speed.picture(content)):
            write_bytes((published / file.name).with_suffix(".png"), drawn)
    regenerate(root)


def regenerate(root: Path = ROOT) -> None:
    """Write every generated part of the documents anew from results/published/."""
    for name in DOCUMENTS:
        path = root / name
        if path.exists():
            write_bytes(path, fill_in(path.read_text(encoding="utf-8"), root).encode())


def fill_in(document: str, root: Path = ROOT) -> str:
    """A document with its generated parts as the published runs have them.

    Raises:
        KeyError: it asks for a part that is not in PARTS.
    """
    published = _read(root / "results" / "published")

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{PARTS[match[2]](published)}\n{match[4]}"

    pattern = r"(<!-- generated: (\w+) -->)\n(.*?\n)??(<!-- end -->)"
    return re.sub(pattern, part, document, flags=re.DOTALL)


@dataclass(frozen=True)
class Published:
    """What results/published/ holds: runs of test_demo.py, the record of the shipped weights'
    training, the records of train/trial.py, train/throughput.py and train/agreement.py, and the
    runs of deploy.bench by the type of their device and of deploy.bench.large."""

    runs: list[dict[str, Any]]
    training: dict[str, Any]
    trials: list[dict[str, Any]]
    throughput: list[dict[str, Any]]
    agreement: list[dict[str, Any]]
    benchmarks: dict[str, dict[str, Any]]
    large: list[dict[str, Any]]


def _read(folder: Path) -> Published:
    def records(names: str) -> list[dict[str, Any]]:
        return [read_json(file) for file in sorted(folder.glob(names), key=number_and_name)]

    training = _training(folder)
    benchmarks = records("ladder_*.json")
    return Published(
        runs=[run for run in read_runs(folder) if not _is_stale(run, training)],
        training=training,
        trials=records("trials/*.json"),
        throughput=records("throughput/*.json"),
        agreement=records("agreement_*.json"),
        benchmarks={result["environment"]["device_type"]: result for result in benchmarks},
        large=records("large_*.json"),
    )


def number_and_name(file: Path) -> tuple[int, str]:
    """To sort files by the number that their names begin with: 9-psnr before 10-batch-6."""
    head = file.name.partition("-")[0]
    return int(head) if head.isdecimal() else 0, file.name


def _training(folder: Path) -> dict[str, Any]:
    path = folder / f"{ENTRY}_training.json"
    return read_json(path) if path.exists() else {}


def _is_stale(run: dict[str, Any], training: dict[str, Any]) -> bool:
    """Whether a run is of weights that were shipped before: its figures are not of these."""
    sha256 = run["checkpoint"]["sha256"]
    return run["model"] == ENTRY and sha256 != training.get("sha256", sha256)


def _output(published: Published) -> str:
    """What `python test_demo.py` prints, from the demo run of the shipped weights."""
    run = next(
        (
            r
            for r in published.runs
            if (r["model"], r["dataset"]) == (ENTRY, "demo") and summary.is_plain(r)
        ),
        None,
    )
    if run is None:
        return "not measured"
    return f"```\n{summary.text(run, f'results/{run_stem(run)}.json').strip()}\n```"


def _scores(published: Published) -> str:
    """The judge's ten seconds: bicubic, these weights, the authors', and how far apart they are."""
    scored = [run for run in published.runs if comparison.is_scored(run)]
    ours = {
        run["dataset"]: run for run in scored if run["model"] == ENTRY and summary.is_plain(run)
    }
    theirs = {run["dataset"]: run for run in scored if run["checkpoint"]["name"] == AUTHORS_FILE}
    if not ours:
        return "not measured"
    cells = {
        "bicubic": {name: number(run["ave_psnr_y_bicubic"], 3) for name, run in ours.items()},
        "these weights": {name: comparison.scores_of(run) for name, run in ours.items()},
        "the authors' weights, measured here": {
            name: comparison.scores_of(run) for name, run in theirs.items()
        },
        "factsheet (published)": comparison.published_scores(),
    }
    table = markdown(comparison.by_set(cells, TABLE_1, [s for s in BENCHMARKS if s in ours]))
    gaps = [
        f"{theirs[name]['ave_psnr_y'] - ours[name]['ave_psnr_y']:.2f} dB on {name}"
        for name in BENCHMARKS
        if name in ours and name in theirs
    ]
    seen = sum(map(training_tables.lr_pixels, published.training.get("stages", [])))
    if not gaps or not seen:
        return table
    return (
        f"{table}\n\nThese weights are {' and '.join(gaps)} below the authors': they have seen "
        f"{seen / 1e9:.1f} billion LR pixels in training, the authors' "
        f"{AUTHORS_PIXELS / 1e9:.0f} billion."
    )


def _quality(published: Published) -> str:
    """Table 1 of the factsheet with every published benchmark run below it, and the sets of any."""
    cells = {"factsheet (published)": comparison.published_scores()}
    for run in sorted(published.runs, key=lambda run: run["model"]):
        if comparison.is_scored(run):
            name = "this repository" if run["model"] == ENTRY else run["checkpoint"]["name"]
            name += "" if summary.is_plain(run) else f", {run['backend']} {run['precision']}"
            cells.setdefault(name, {})[run["dataset"]] = comparison.scores_of(run)
            bicubic = cells.setdefault("bicubic (Y-PSNR)", {})
            bicubic[run["dataset"]] = number(run["ave_psnr_y_bicubic"], 3)
    cells.setdefault("this repository", {})
    measured = [s for s in BENCHMARKS if s in cells.get("bicubic (Y-PSNR)", {})]
    return markdown(comparison.by_set(cells, TABLE_1, measured or BENCHMARKS))


def _costs_in_words(published: Published) -> str:
    """What the network costs and how fast it is, with the conditions."""
    run = next((run for run in published.runs if run["model"] == ENTRY), None)
    if run is None:
        return "not measured"
    counts = (
        f"It costs {run['flops'] / 1e9:.2f} G FLOPs and {run['activations'] / 1e6:.1f} M "
        f"activations at 3x256x256, in {run['num_conv']} convolutions."
    )
    return " ".join([counts, *map(speed.sentence, published.benchmarks.values())])


def _efficiency(published: Published) -> str:
    """Table 2 of the factsheet with every published run."""
    more = ["warm median [ms]", "bicubic [dB]", "device", "threads", "commit", "date"]
    rows = [[*summary.COLUMNS, *more]]
    rows += [[*row, "", "", "", "", "", "2023"] for row in summary.factsheet_rows(published.runs)]
    for run in published.runs:
        environment = run["environment"]
        rows.append(
            [
                *summary.row(run),
                number(run["median_runtime_ms"], 2),
                number(run["ave_psnr_bicubic"], 2),
                environment["device"],
                str(environment["threads"]),
                str(environment["commit"])[:7],
                environment["date"][:10],
            ]
        )
    return markdown(rows)


PARTS: dict[str, Callable[[Published], str]] = {
    "output": _output,
    "scores": _scores,
    "costs_in_words": _costs_in_words,
    "quality": _quality,
    "efficiency": _efficiency,
    "training": lambda published: training_tables.shipped(published.training),
    "validation": lambda published: training_tables.validation(published.training),
    "commands": lambda published: training_tables.commands(published.training),
    "trials": lambda published: training_tables.trials(published.trials),
    "throughput": lambda published: training_tables.throughput(published.throughput),
    "agreement": lambda published: training_tables.agreement(published.agreement),
    "benchmark": lambda published: speed.tables(published.benchmarks),
    "costs": lambda published: markdown(comparison.costs(published.runs)),
    "large": lambda published: speed.large(published.large),
    "speed": lambda published: speed.sentences(published.benchmarks),
}


if __name__ == "__main__":
    command.start(main)
