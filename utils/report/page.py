"""The runs of a folder as one HTML page that loads nothing: figures, charts, pictures to compare.

python -m utils.report.page results -o report.html
"""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import command
from utils.bicubic import Convention
from utils.command import UserError
from utils.datasets import SCALE, ImageSet, Pair, find
from utils.files import ROOT, finite, read_json, write_bytes
from utils.record import ENTRY, PUBLISHED, read_runs
from utils.report import markup, pictures, speed, summary, training_tables
from utils.text import number

PICTURE_BYTES = 20_000_000  # of all pictures; figures and charts take less than 5 MB more
SMALLEST_SHARE = 60_000  # bytes of an image's pictures; where there is less, fewer images appear
MOST_ROWS = 1000  # images of a set in its table and chart


@dataclass(frozen=True)
class Group:
    """The runs of one set, and its images, the one of the lowest PSNR first."""

    ident: str
    name: str
    runs: list[dict[str, Any]]
    images: list[dict[str, Any]]


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.report.page", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("save_dir", type=Path, help="that of test_demo.py")
    add("-o", "--output", type=Path, metavar="FILE", help="without it, SAVE_DIR/report.html")
    add("--data_dir", type=Path, default=ROOT / "data", help="where the images of the sets lie")
    args = parser.parse_args(argv)
    output = args.output or args.save_dir / "report.html"
    return command.run("utils.report.page", lambda: write(args.save_dir, output, args.data_dir))


def write(
    save_dir: Path, output: Path, data_dir: Path = ROOT / "data", sets: Sequence[ImageSet] = ()
) -> None:
    """Make the page of all runs in `save_dir`; the file appears whole or not at all.

    Args:
        save_dir: that of test_demo.py: the runs' JSON files and the images they wrote.
        output: the HTML file.
        data_dir: where the sets lie that are not among `sets`, found already.

    Raises:
        UserError: no runs.
        OSError: the file cannot be written.
    """
    runs = [run for run in map(finite, read_runs(save_dir)) if _is_whole(run)]
    if not runs:
        raise UserError(
            f"expected runs of test_demo.py in {save_dir}, found none: run "
            "test_demo.py with this --save_dir first"
        )
    parts = [("runs", "Runs", _overview(runs))]
    groups, budget = _groups(runs), PICTURE_BYTES
    for i, group in enumerate(groups):
        pairs = _pairs(group.name, data_dir, sets)
        articles, notes = _articles(group, pairs, save_dir, budget // (len(groups) - i))
        budget -= sum(map(pictures.size_of, articles.values()))
        parts.append((group.ident, group.name, _figures(group, articles, notes)))
    parts += _published()
    minute = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    colours = pictures.coloured(np.arange(0, 256, 51).astype(np.uint8)[None])[0]
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        subtitle=escape(
            f"{len(runs)} run{'s' * (len(runs) > 1)} of test_demo.py in "
            f"{save_dir.resolve().name}/; page made {minute} UTC"
        ),
        contents="".join(markup.link(ident, title) for ident, title, _ in parts),
        body="\n".join(body for _, _, body in parts),
        colours=", ".join(f"rgb({r} {g} {b})" for r, g, b in colours),
    )
    try:
        write_bytes(output, page.encode(errors="replace"))
    except OSError as error:
        raise OSError(f"cannot write {output}: {error.strerror or error}") from error


def _is_whole(run: dict[str, Any]) -> bool:
    """Whether a run has all that the page shows; JSON of another version may lack some of it."""
    try:
        texts = [*summary.row(run), run["model"], run["dataset"], run["lr_source"]]
        texts += run.get("failed", [])
        for image in run["images"]:
            texts += [image["name"], _psnr(image), *(f"{side:d}" for side in image["size"])]
            texts += [number(image[key], 2) for key in ("psnr_bicubic", "runtime_ms")]
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    return bool(run["images"]) and all(isinstance(text, str) for text in texts)


def _groups(runs: Sequence[dict[str, Any]]) -> list[Group]:
    """The runs by set; in each the shipped weights and the plain network come first."""
    groups = []
    for i, name in enumerate(dict.fromkeys(run["dataset"] for run in runs), 1):
        own = [run for run in runs if run["dataset"] == name]
        own.sort(key=lambda run: (run["model"] != ENTRY, run["model"], not summary.is_plain(run)))
        images = {image["name"]: image for run in reversed(own) for image in run["images"]}
        groups.append(Group(f"set-{i}", name, own, sorted(images.values(), key=_rank)))
    return groups


def _rank(image: dict[str, Any]) -> tuple[bool, float, str]:
    """Where an image stands: the lowest PSNR first, what was not measured last."""
    psnr = math.inf if image["psnr"] is None else image["psnr"]
    return _psnr(image) == "not measured", psnr, image["name"]


def _psnr(image: dict[str, Any]) -> str:
    if image["psnr"] is None and image["psnr_bicubic"] is not None:  # JSON has no infinity
        return "infinite"
    return number(image["psnr"], 2)


def _pairs(name: str, data_dir: Path, sets: Sequence[ImageSet]) -> dict[str, Pair]:
    """Where a set's images lie, by name; nothing if it is not found any more."""
    try:
        found = next((known for known in sets if known.name == name), None) or find(name, data_dir)
    except (ValueError, OSError):
        return {}
    return {pair.name: pair for pair in found.pairs}


def _overview(runs: Sequence[dict[str, Any]]) -> str:
    """The factsheet's table, and what each run ran on."""
    keys = ("device", "threads", "torch", "numpy", "python", "cuda", "driver", "system", "date")
    rows = [["", "backend", "commit", *keys]]
    for run in runs:
        environment = run["environment"]
        changed = ", changed" if environment.get("dirty") else ""
        rows.append(
            [
                summary.row(run)[0],
                f"{run['backend']} {run['precision']}",
                f"{str(environment.get('commit'))[:7]}{changed}",
                *(str(environment.get(key) or "none") for key in keys),
            ]
        )
    failed = [f"{run['dataset']}, {failure}" for run in runs for failure in run.get("failed", [])]
    return (
        "<section id=runs><h2>Runs</h2>"
        + markup.table("Runs", summary.table(runs))
        + "<p class=soft>Time: mean over the images, the first, cold one included. Memory: on a "
        "CPU resident at most, the whole process. FLOPs and activations: at 3x256x256.</p>"
        + markup.notes("Images that failed", failed)
        + f"<h3>Environment</h3>{markup.table('Environment', rows, 'words')}</section>"
    )


def _label(run: dict[str, Any]) -> str:
    device = run["environment"]["device_type"]
    return f"{run['model']}, {device} {run['backend']} {run['precision']}"


def _scores(group: Group, image: dict[str, Any]) -> dict[str, str]:
    """An image's PSNR by bicubic and in each run of its set."""
    scores = {"bicubic": number(image["psnr_bicubic"], 2)}
    for run in group.runs:
        own = (_psnr(other) for other in run["images"] if other["name"] == image["name"])
        scores[_label(run)] = next(own, "")
    return scores


def _figures(group: Group, articles: Mapping[str, str], notes: Sequence[str]) -> str:
    """A set's scores and times, and its pictures, which the names lead to."""
    # A model's name on one line of the header, the rest on the next.
    labels = (
        label.replace(", ", ",\n").replace(" ", "\u00a0")
        for label in _scores(group, group.images[0])
    )
    rows: list[Sequence[str]] = [["", "pixels", *labels]]
    worst = ""
    for i, image in enumerate(group.images[:MOST_ROWS]):
        name, ident = image["name"], f"{group.ident}-{i}"
        size = "x".join(map(str, image["size"]))
        scores = _scores(group, image).values()
        rows.append([markup.link(ident, name) if name in articles else name, size, *scores])
        if i < 5 and image["psnr"] is not None:
            label = f"{name} {_psnr(image)} dB"
            worst += f"<li>{markup.link(ident, label) if name in articles else escape(label)}</li>"
    times = {
        _label(run): [
            (math.prod(image["size"]) / SCALE**2 / 1000, image["runtime_ms"], image["name"])
            for image in run["images"][:MOST_ROWS]
            if image["runtime_ms"] is not None
        ]
        for run in group.runs
    }
    several = len(group.runs) > len({run["model"] for run in group.runs})
    shared = " Backends write the same files: pictures are of whichever ran last." * several
    return (
        f"<section id={group.ident}><h2>{escape(group.name)}</h2><p class=soft>LR: "
        f"{escape(group.runs[0]['lr_source'])}.{shared}</p>"
        + (f"<h3>Lowest PSNR</h3><ul class='chips worst'>{worst}</ul>" if worst else "")
        + f"<div class=pair><div><h3>PSNR [dB], lowest first, {len(rows) - 1} of "
        f"{len(group.images)} images</h3>{markup.table('PSNR', rows)}"
        + "</div><div><h3>Runtime of each image</h3>"
        + markup.chart(times, "LR pixels [thousands]", "runtime [ms]")
        + f"</div></div>{markup.notes('Not shown', notes)}</section>"
        + "\n".join(articles.values())
    )


def _articles(
    group: Group, pairs: Mapping[str, Pair], save_dir: Path, budget: int
) -> tuple[dict[str, str], list[str]]:
    """Pictures of each image, by name, of `budget` bytes together; and why others have none."""
    articles, notes = {}, []
    convention: Convention = "uint8" if "each pass" in group.runs[0]["lr_source"] else "double"
    shown = group.images[: min(budget // SMALLEST_SHARE, MOST_ROWS)]
    for i, image in enumerate(tqdm(shown, group.name, unit="image", disable=None)):
        name, ident, scores = image["name"], f"{group.ident}-{i}", _scores(group, image)
        files = {
            run["model"]: save_dir / run["model"] / group.name / f"{name}.png" for run in group.runs
        }
        if name not in pairs:
            notes.append(
                f"{name}: the original is not found any more; --data_dir says where to look"
            )
            continue
        try:
            picture = pictures.read(pairs[name], convention, files)
        except (ValueError, OSError) as error:
            notes.append(f"{name}: {error}")
            continue
        share = budget // (len(shown) - i)
        if article := pictures.article_within(share, ident, name, scores, picture):
            articles[name] = article
            budget -= pictures.size_of(article)
        else:
            notes.append(f"{name}: no room, the page's size is bounded")
    if more := len(group.images) - len(shown):
        notes.append(
            f"{more} of {len(group.images)} images, those of the highest PSNR: no room, "
            "the page's size is bounded"
        )
    return articles, notes


def _published() -> list[tuple[str, str, str]]:
    """The benchmarks and the training curve, those that are there."""
    parts = []
    for device in speed.DEVICES:
        result = _json(PUBLISHED / f"ladder_{device}.json")
        if speed.is_whole(result):
            ident, title = f"speed-{device}", f"Speed, {device}"
            body = f"<p class=soft>{escape(speed.conditions(result))}</p>"
            body += markup.table(title, speed.rows(result))
            body += markup.notes("", speed.remarks(result))
            parts.append((ident, title, markup.section(ident, title, body)))
    training = _json(PUBLISHED / f"{ENTRY}_training.json") or {}
    if curve := training_tables.curve(training):
        chart = markup.chart(curve, "steps [thousands]", "validation PSNR [dB]", lines=True)
        title = "Training of the shipped weights"
        parts.append(("training", "Training", markup.section("training", title, chart)))
    return parts


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


if __name__ == "__main__":
    sys.exit(main())
