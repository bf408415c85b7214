"""The log of a run: one JSON line per so many steps, and its curves as a picture."""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from utils.files import whole_file, write_bytes

logger = logging.getLogger(__name__)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line to a log.jsonl, and not to half a one that a full disk left."""
    with path.open("a+b") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        begin = b"" if file.read() in (b"", b"\n") else b"\n"
        file.write(begin + json.dumps(line, allow_nan=False).encode() + b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All lines of a log.jsonl that this module wrote; others, as a crash or a power cut leaves
    them, are left out, those before the last with a warning."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    parsed = [_parse(line) for line in lines[:-1]]
    if bad := parsed.count(None):
        logger.warning("left out %d of %d lines of %s: damaged", bad, len(parsed), path)
    return [line for line in parsed if line is not None]


def _parse(line: str) -> dict[str, Any] | None:
    """A line of a log, or None if it is not one."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("stage"), str):
        return None
    good = type(content.get("step")) is int and isinstance(content.get("loss", 0), int | float)
    scores = [content.get(key) for key in ("val_psnr", "val_psnr_y")]
    good &= all(isinstance(score, int | float | None) for score in scores)
    good &= isinstance(content.get("val", ""), str) and isinstance(content.get("others", {}), dict)
    return content if good else None


def scored(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last scores of each step, on the set that the last line is of: a run may go on with
    another --val, whose scores are not to be compared. Older lines name none; they count as its."""
    scores = {(x["stage"], x["step"]): x for x in lines if "val_psnr" in x}
    decides = list(scores.values())[-1].get("val") if scores else None
    return [line for line in scores.values() if line.get("val", decides) == decides]


def has_scores(lines: Sequence[dict[str, Any]], step: int, names: Iterable[str]) -> bool:
    """Whether a step's last scores are of these sets, the first of which decides; an older line
    does not name that one."""
    line = next((x for x in reversed(lines) if "val_psnr" in x and x["step"] == step), None)
    first, *others = names
    return (
        line is not None
        and line.get("val", first) == first
        and set(others) <= line.get("others", {}).keys()
    )


def trim(path: Path, stage: str, step: int) -> None:
    """Drop what a run logged of this stage after `step`, and that it failed there: a resumed run
    writes it again."""
    kept = [
        x for x in read(path) if x["stage"] != stage or (x["step"] <= step and "failed" not in x)
    ]
    if path.exists():
        write_bytes(path, "".join(json.dumps(line) + "\n" for line in kept).encode())


def plot(path: Path, picture: Path) -> None:
    """Draw loss and validation PSNR of a log.jsonl over the steps, one colour a stage; say so where
    matplotlib is missing or the picture cannot be written."""
    try:
        from matplotlib.figure import Figure  # half a second: only for the picture
    except ImportError:
        logger.warning("no %s: matplotlib is not installed", picture.name)
        return

    lines = read(path)
    figure = Figure(figsize=(9, 6), layout="constrained")
    losses, scores = figure.subplots(2, 1, sharex=True)
    offset = 0
    for stage in dict.fromkeys(line["stage"] for line in lines):
        own = [line for line in lines if line["stage"] == stage]
        for axes, key, marker in ((losses, "loss", ""), (scores, "val_psnr_y", ".")):
            points = [(offset + line["step"], line[key]) for line in own if key in line]
            axes.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=stage)
        offset += max(line["step"] for line in own)
    losses.set_ylabel("training loss")
    if all(line.get("loss", 1) > 0 for line in lines):  # minus PSNR is not
        losses.set_yscale("log")
    scores.set_ylabel("validation PSNR (Y), dB")
    scores.set_xlabel("step")
    for axes in (losses, scores):
        axes.grid(alpha=0.3)
        if lines:
            axes.legend()
    try:
        with whole_file(picture) as file:
            figure.savefig(file, format="png")
    except OSError as error:  # the weights are saved: that is what counts
        logger.warning("no %s: %s", picture, error.strerror)
