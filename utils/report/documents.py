"""Published runs -> the generated parts of the READMEs and the model card.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from utils import command
from utils.command import UserError
from utils.datasets import BENCHMARKS, IMAGES
from utils.files import ROOT, read_json, write_all
from utils.record import ENTRY, RUN, run_stem
from utils.report import comparison, gpu, kernels, published, speed, summary
from utils.report import training_tables as tables
from utils.report.published import Record, benchmarks, records
from utils.schema import NAME, misfit
from utils.text import device_name, encoded, in_code, in_markdown, markdown, number, revision

DOCUMENTS = (
    "README.md",
    "results/README.md",
    "model_zoo/README.md",
    "train/README.md",
    "deploy/README.md",
    "kernels/README.md",
)
TABLE_1 = "Y-PSNR [dB] / SSIM, x4"
AUTHORS_FILE = "LKDN-S_x4_fused.pth"  # their released weights, fused
# LR pixels of the factsheet's two stages: steps, patches a step, pixels a patch.
AUTHORS_PIXELS = 950_000 * 128 * 64**2 + 50_000 * 64 * 120**2


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "utils.report.documents")
    parser.add_argument(
        "--publish",
        nargs="*",
        type=command.path,
        metavar="FILE",
        required=True,
        help="runs to copy to results/published/; none: only make the tables",
    )
    args = parser.parse_args(argv)
    return command.run("utils.report.documents", lambda: publish(args.publish))


def publish(files: Sequence[Path], root: Path = ROOT) -> None:
    """Copy runs to results/published/, all or none, and bring every generated table up to date.

    Raises:
        UserError: a file holds no run, or one that is empty, in which something failed, or which is
            of other weights; nothing is copied then.
    """
    folder = root / "results" / "published"
    training = published.read_training(folder)
    copies: dict[Path, bytes] = {}
    for file in files:
        try:
            run, content = read_json(file), file.read_bytes()
        except (OSError, ValueError) as error:
            raise UserError(f"expected the JSON of a run, got {file}: {error}") from error
        name = _published_name(file, run, training)
        if folder / name in copies:
            raise UserError(f"expected different runs, got two of {name}: leave one out")
        copies[folder / name] = content
        if speed.is_whole(run):
            copies[(folder / name).with_suffix(".png")] = speed.picture(run)
    write_all(copies)
    regenerate(root)


def _published_name(file: Path, run: Any, training: dict[str, Any]) -> str:
    """What a run is called in results/published/. Raises UserError where it does not go there."""
    for kind, name in ((speed.BENCHMARK, "benchmark"), (speed.LARGE, "large")):
        if not misfit(run, kind):
            return f"{name}_{run['environment']['device_type']}.json"
    for kind, name in ((kernels.MODELLED, "modelled"), (kernels.COMPILED, "compiled")):
        if not misfit(run, kind) and NAME.fullmatch(run["triton"]):
            return f"{name}_{run['triton']}.json"
    if not misfit(run, gpu.CHECK) and NAME.fullmatch(run["part"]):
        return f"gpu_check/{run['part']}.json"
    if problem := misfit(run, RUN):
        raise UserError(
            "expected the JSON of a run of test_demo.py, deploy.bench.large, "
            "deploy.bench.modelled, deploy.gpu_check or all of deploy.bench, got "
            f"{file}: {problem}"
        )
    if not run["images"]:
        raise UserError(f"expected a run with images, got none in {file}: run test_demo.py again")
    if (failed := run.get("failed")) != []:
        count = "nobody knows how many" if failed is None else len(failed)
        raise UserError(
            f"expected a run without failures, got {count} in {file}: run test_demo.py again"
        )
    if not summary.is_complete(run):
        name, n = run["dataset"], len(run["images"])
        raise UserError(
            f"expected a run of the {IMAGES[name]} images of {name}, got one of {n} in {file}: "
            "complete the set and run test_demo.py again"
        )
    if published.is_stale(run, training):
        raise UserError(
            f"expected a run of the weights in model_zoo/, got one of others in {file}: run "
            "test_demo.py again"
        )
    return f"{run_stem(run)}.json"


def regenerate(root: Path = ROOT) -> None:
    """Write every generated part of the documents anew from results/published/."""
    paths = [root / name for name in DOCUMENTS if (root / name).exists()]
    write_all({path: encoded(fill_in(path.read_text(encoding="utf-8"), root)) for path in paths})


def fill_in(document: str, root: Path = ROOT) -> str:
    """A document with its generated parts as the published runs have them.

    Raises:
        KeyError: it asks for a part that is not in PARTS.
    """
    folder = root / "results" / "published"

    def part(match: re.Match[str]) -> str:
        return f"{match[1]}\n{PARTS[match[2]](folder)}\n{match[4]}"

    pattern = r"(<!-- generated: (\w+) -->)\n(.*?\n)??(<!-- end -->)"
    return re.sub(pattern, part, document, flags=re.DOTALL)


def _output(folder: Path) -> str:
    """What `python test_demo.py` prints, from the demo run of the shipped weights."""
    demo = [
        run for run in published.runs(folder) if (run["model"], run["dataset"]) == (ENTRY, "demo")
    ]
    run = next(filter(summary.is_plain, demo), None)
    if run is None:
        return "not measured"
    return f"```\n{in_code(summary.text(run, f'results/{run_stem(run)}.json')).strip()}\n```"


def _scores(folder: Path) -> str:
    """The judge's ten seconds: bicubic, these weights, the authors', and how far apart they are."""
    scored = [run for run in published.runs(folder) if comparison.is_scored(run)]
    ours = {
        run["dataset"]: run for run in scored if run["model"] == ENTRY and summary.is_plain(run)
    }
    theirs = {
        run["dataset"]: run
        for run in scored
        if run["checkpoint"]["name"] == AUTHORS_FILE and summary.is_plain(run)
    }
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
        _gap(ours[name]["ave_psnr_y"], theirs[name]["ave_psnr_y"]) + f" the authors' on {name}"
        for name in BENCHMARKS
        if name in ours and name in theirs
    ]
    seen = sum(map(tables.lr_pixels, published.read_training(folder).get("stages", [])))
    if not gaps or not seen:
        return table
    return (
        f"{table}\n\nThese weights are {' and '.join(gaps)}. They have seen "
        f"{seen / 1e9:.1f} billion LR pixels in training, the authors' "
        f"{AUTHORS_PIXELS / 1e9:.0f} billion."
    )


def _gap(ours: float, theirs: float) -> str:
    return f"{abs(ours - theirs):.2f} dB {'above' if ours > theirs else 'below'}"


def _quality(folder: Path) -> str:
    """Table 1 of the factsheet with every published benchmark run below it, and the sets of any."""
    cells = {"factsheet (published)": comparison.published_scores()}
    runs = sorted(filter(comparison.is_scored, published.runs(folder)), key=lambda r: r["model"])
    of_file: dict[str, set[tuple[str, str]]] = {}
    for run in runs:
        weights = (run["model"], run["checkpoint"]["sha256"])
        of_file.setdefault(run["checkpoint"]["name"], set()).add(weights)
    for run in runs:
        name = "this repository" if run["model"] == ENTRY else run["checkpoint"]["name"]
        if run["model"] != ENTRY and len(of_file[name]) > 1:  # a file's name tells too little
            name = f"{name} of {run['model']}, sha256 {run['checkpoint']['sha256'][:8]}"
        name += "" if summary.is_plain(run) else f", {run['backend']} {run['precision']}"
        cells.setdefault(name, {})[run["dataset"]] = comparison.scores_of(run)
        bicubic = cells.setdefault("bicubic (Y-PSNR)", {})
        bicubic[run["dataset"]] = number(run["ave_psnr_y_bicubic"], 3)
    cells.setdefault("this repository", {})
    measured = [s for s in BENCHMARKS if s in cells.get("bicubic (Y-PSNR)", {})]
    return markdown(comparison.by_set(cells, TABLE_1, measured or BENCHMARKS))


def _costs_in_words(folder: Path) -> str:
    """What the network costs and how fast it is, with the conditions."""
    run = next((run for run in published.runs(folder) if run["model"] == ENTRY), None)
    if run is None:
        return "not measured"
    counts = (
        f"It costs {run['flops'] / 1e9:.2f} G FLOPs and {run['activations'] / 1e6:.1f} M "
        f"activations at 3x256x256, in {run['num_conv']} convolutions."
    )
    return " ".join([counts, *map(speed.sentence, benchmarks(folder).values())])


def _efficiency(folder: Path) -> str:
    """Table 2 of the factsheet with every published run."""
    more = ["warm median [ms]", "bicubic [dB]", "device", "threads", "commit", "date"]
    rows, runs = [[*summary.COLUMNS, *more]], published.runs(folder)
    rows += [[*row, "", "", "", "", "", "2023"] for row in summary.factsheet_rows(runs)]
    for run in runs:
        environment = run["environment"]
        rows.append(
            [
                *summary.row(run),
                number(run["median_runtime_ms"], 2),
                number(run["ave_psnr_bicubic"], 2),
                device_name(environment),
                str(environment["threads"]),
                revision(environment),
                environment["date"][:10],
            ]
        )
    return markdown(rows)


def _training(folder: Path) -> Record:
    """The record of the shipped weights' training."""
    return in_markdown(published.read_training(folder))


def _each(table: Callable[[Record], str], found: Sequence[Record]) -> str:
    """A table for each record."""
    return "\n\n".join(map(table, found)) or "not measured"


PARTS: dict[str, Callable[[Path], str]] = {
    "output": _output,
    "scores": _scores,
    "costs_in_words": _costs_in_words,
    "quality": _quality,
    "efficiency": _efficiency,
    "training": lambda folder: tables.shipped(_training(folder)),
    "validation": lambda folder: tables.validation(_training(folder)),
    "commands": lambda folder: tables.commands(_training(folder)),
    "trials": lambda folder: tables.trials(published.trials(folder)),
    "throughput": lambda f: tables.throughput(records(f, "throughput/*.json", tables.THROUGHPUT)),
    "agreement": lambda f: tables.agreement(records(f, "agreement_*.json", tables.AGREEMENT)),
    "benchmark": lambda folder: speed.of_devices(benchmarks(folder), speed.table),
    "costs": lambda folder: markdown(comparison.costs(published.runs(folder))),
    "large": lambda folder: speed.large(records(folder, "large_*.json", speed.LARGE)),
    "speed": lambda folder: speed.of_devices(benchmarks(folder), speed.sentence),
    "modelled": lambda f: _each(kernels.modelled, records(f, "modelled_*.json", kernels.MODELLED)),
    "compiled": lambda f: _each(kernels.compiled, records(f, "compiled_*.json", kernels.COMPILED)),
    "gpu_check": lambda folder: gpu.checks(records(folder, "gpu_check/*.json", gpu.CHECK)),
}


if __name__ == "__main__":
    command.start(main)
