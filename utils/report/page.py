"""The runs of a folder as one HTML page that loads nothing: figures, charts, pictures to compare.

python -m utils.report.page results -o report.html
"""

import math
from collections.abc import Mapping, Sequence
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
from utils.files import ROOT, sha256, write_bytes
from utils.imaging.images import BAD_IMAGE
from utils.record import PUBLISHED
from utils.report import groups, markup, pictures, published, speed, summary, training_tables
from utils.report.groups import Group, psnr_of
from utils.text import in_terminal, revision

PICTURE_BYTES = 20_000_000  # of all pictures; figures and charts take less than 5 MB more
SMALLEST_SHARE = 60_000  # bytes of an image's pictures; where there is less, fewer images appear
MOST_ROWS = 1000  # images of a set in its table and chart


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "utils.report.page")
    add = parser.add_argument
    add("save_dir", type=command.path, help="that of test_demo.py")
    add("-o", "--output", type=command.file, metavar="FILE", help="else SAVE_DIR/report.html")
    where = "where the images of the sets lie"
    add("--data_dir", type=command.path, default=ROOT / "data", help=where)
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
    runs = groups.read(save_dir)
    if not runs:
        raise UserError(
            f"expected runs of test_demo.py in {save_dir}, found none: run "
            "test_demo.py with this --save_dir first"
        )
    parts = [("runs", "Runs", _overview(runs))]
    sets_shown, budget = groups.by_set(runs), PICTURE_BYTES
    for i, group in enumerate(sets_shown):
        pairs = _pairs(group.name, data_dir, sets)
        articles, notes = _articles(group, pairs, save_dir, budget // (len(sets_shown) - i))
        budget -= sum(map(pictures.size_of, articles.values()))
        parts.append((group.ident, group.name, _figures(group, articles, notes)))
    parts += _published()
    minute = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    count = f"{len(runs)} runs" if len(runs) > 1 else "1 run"
    colours = pictures.apply_colours(np.arange(0, 256, 51).astype(np.uint8)[None])[0]
    page = Template(Path(__file__).with_suffix(".html").read_text(encoding="utf-8")).substitute(
        subtitle=escape(
            f"{count} of test_demo.py in {save_dir.resolve().name}/; page made {minute} UTC"
        ),
        contents="".join(markup.link(ident, title) for ident, title, _ in parts),
        body="\n".join(body for _, _, body in parts),
        colours=", ".join(f"rgb({r} {g} {b})" for r, g, b in colours),
    )
    try:
        write_bytes(output, page.encode(errors="replace"))
    except OSError as error:
        raise OSError(f"cannot write {output}: {error.strerror or error}") from error


def _pairs(name: str, data_dir: Path, sets: Sequence[ImageSet]) -> dict[str, Pair]:
    """Where a set's images lie, by name; nothing if it is not found any more."""
    try:
        found = next((known for known in sets if known.name == name), None) or find(name, data_dir)
    except (ValueError, OSError):
        return {}
    return {pair.name: pair for pair in found.pairs}


def _overview(runs: Sequence[dict[str, Any]]) -> str:
    """The factsheet's table, and what each run ran on."""
    header, *rows = summary.table(runs)
    failed = [f"{run['dataset']}, {failure}" for run in runs for failure in run.get("failed", [])]
    body = (
        markup.table("Runs", [("run", *header[1:]), *rows])
        + "<p class=soft>Time: mean over the images, the first, cold one included. Memory: on a "
        "CPU resident at most, of a process that restores the largest image alone. FLOPs and "
        "activations: at 3x256x256.</p>"
        + markup.notes("Images that failed", failed)
        + f"<h3>Environment</h3>{_environment(runs)}"
    )
    return markup.section("runs", "Runs", body)


def _environment(runs: Sequence[dict[str, Any]]) -> str:
    """What the runs ran on: in a sentence what all share, in a table what differs."""
    keys = ("device", "threads", "torch", "numpy", "python", "cuda", "driver", "system", "date")
    columns = {"run": [summary.row(run)[0] for run in runs]}
    columns["backend"] = [f"{run['backend']} {run['precision']}" for run in runs]
    environments = [run["environment"] for run in runs]
    columns["commit"] = [revision(e) for e in environments]
    for key in keys:
        columns[key] = [str(e.get(key) or "none") for e in environments]
    columns["date"] = [date.replace("T", " ").replace("+00:00", " UTC") for date in columns["date"]]
    shared = {name: cells[0] for name, cells in columns.items() if len(set(cells)) == 1}
    differing = {name: cells for name, cells in columns.items() if name not in shared}
    rows = [tuple(differing), *zip(*differing.values(), strict=True)]
    table = markup.table("Environment", rows, "words") if differing else ""
    return markup.facts(shared) + table


def _label(run: dict[str, Any]) -> str:
    device = run["environment"]["device_type"]
    return f"{run['model']}, {device} {run['backend']} {run['precision']}"


def _scores(group: Group, image: dict[str, Any]) -> dict[str, str]:
    """An image's PSNR by bicubic and in each run of its set."""
    scores = {"bicubic": psnr_of(image, "psnr_bicubic")}
    for run in group.runs:
        own = (psnr_of(other) for other in run["images"] if other["name"] == image["name"])
        scores[_label(run)] = next(own, "")
    return scores


def _figures(group: Group, articles: Mapping[str, str], notes: Sequence[str]) -> str:
    """A set's scores and times, and its pictures, which the names lead to."""
    # A model's name on one line of the header, the rest on the next.
    labels = (label.replace(", ", ",\n") for label in _scores(group, group.images[0]))
    rows: list[Sequence[str]] = [["image", "pixels", *labels]]
    first, worst = group.runs[0], ""
    for i, image in enumerate(group.images[:MOST_ROWS]):
        name, ident = image["name"], f"{group.ident}-{i}"
        size = "x".join(map(str, image["size"]))
        scores = _scores(group, image).values()
        rows.append([markup.link(ident, name) if name in articles else name, size, *scores])
        if i < 5 and image["psnr"] is not None and image in first["images"]:
            label = f"{name} {psnr_of(image)} dB"
            worst += f"<li>{markup.link(ident, label) if name in articles else escape(label)}</li>"
    times = {
        _label(run): [
            (math.prod(image["size"]) / SCALE**2 / 1000, image["runtime_ms"], image["name"])
            for image in run["images"][:MOST_ROWS]
            if image["runtime_ms"] is not None
        ]
        for run in group.runs
    }
    about = f"LR: {'; '.join(dict.fromkeys(run['lr_source'] for run in group.runs))}."
    if len(group.runs) > len({run["model"] for run in group.runs}):
        about += " Backends write the same files: pictures are of whichever ran last."
    if worst:
        worst = f"<h3>Lowest PSNR of {escape(first['model'])}</h3><ul class=chips>{worst}</ul>"
    return (
        f"<section id={group.ident}><h2>{escape(group.name)}</h2>"
        f"<p class=soft>{escape(about)}</p>{worst}"
        f"<div class=pair><div class=listed><h3>PSNR [dB], lowest first, {len(rows) - 1} of "
        f"{len(group.images)} images</h3>{markup.table('PSNR', rows)}"
        "</div><div><h3>Runtime of each image</h3>"
        + markup.chart(times, "LR pixels [thousands]", "runtime [ms]")
        + f"</div></div>{markup.notes('Pictures that are not shown', notes)}</section>"
        + "\n".join(articles.values())
    )


def _articles(
    group: Group, pairs: Mapping[str, Pair], save_dir: Path, budget: int
) -> tuple[dict[str, str], list[str]]:
    """Pictures of each image, by name, of `budget` bytes together; and why others have none."""
    if not pairs:
        return {}, ["the originals are not found any more; --data_dir says where to look"]
    articles, notes = {}, []
    convention: Convention = "uint8" if "each pass" in group.runs[0]["lr_source"] else "double"
    shown = group.images[: budget // SMALLEST_SHARE]
    for i, image in enumerate(tqdm(shown, in_terminal(group.name), unit="image", disable=None)):
        name, ident, scores = image["name"], f"{group.ident}-{i}", _scores(group, image)
        if name not in pairs:
            notes.append(f"{name}: the original is not found any more")
            continue
        try:
            picture = pictures.read(pairs[name], convention, _restored(group, name, save_dir))
        except (*BAD_IMAGE, ValueError, OSError) as error:
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


def _restored(group: Group, name: str, save_dir: Path) -> dict[str, Path]:
    """What each model restored of an image, where the file is still what a run of it has written:
    later runs may have written nothing, or been removed."""
    files = {}
    for run in group.runs:
        file = save_dir / run["model"] / group.name / f"{name}.png"
        written = {image.get("png_sha256") for image in run["images"] if image["name"] == name}
        if file.is_file() and sha256(file) in written:
            files[run["model"]] = file
    return files


def _published() -> list[tuple[str, str, str]]:
    """The benchmarks and the training curve, those that are there."""
    parts = []
    for device in speed.DEVICES:
        if result := speed.read(PUBLISHED / f"benchmark_{device}.json"):
            ident, title = f"speed-{device}", f"Speed, {device}"
            body = f"<p class=soft>{escape(speed.conditions(result))}</p>"
            body += markup.table(title, speed.rows(result))
            body += markup.notes("", speed.remarks(result))
            parts.append((ident, title, markup.section(ident, title, body)))
    training = published.read_training(PUBLISHED)
    if curve := training_tables.curve(training):
        body = markup.chart(curve, "steps [thousands]", "validation PSNR [dB]", lines=True)
        title = "Training of the shipped weights"
        parts.append(("training", "Training", markup.section("training", title, body)))
    return parts


if __name__ == "__main__":
    command.start(main)
