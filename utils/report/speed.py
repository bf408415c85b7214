"""A run of deploy.bench in words, as a table and as a picture."""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import read_json
from utils.record import ENVIRONMENT, FIGURE
from utils.schema import Kind, misfit
from utils.text import aligned, in_terminal, machine, markdown, number, revision

HEADER = (
    "LR size, backend",
    "median [ms]",
    "20th",
    "80th",
    "times as fast",
    "memory [MiB]",
    "TFLOP/s",
    "GB/s, unfused",
    "PSNR drift [dB]",
)
PICTURED = (340, 510)  # the LR size of the picture, DIV2K's, or the last that was measured
DEVICES = {
    "cpu": "A CPU",
    "cuda": "An NVIDIA GPU (backend triton, which the tests run in Triton's interpreter)",
}
COLOURS = {"fp32": "#3b6ea8", "fp16": "#3f9b6c", "bf16": "#c9822b"}


MEASURED: dict[str, Kind] = {**ENVIRONMENT, "torch": str}
DIFFERENCE = dict.fromkeys(("differing", "compared", "largest_difference_levels"), int)
ROW: dict[str, Kind] = {
    **dict.fromkeys(("label", "backend", "ran", "against"), str),
    "precision": re.compile("|".join(COLOURS)),
    **dict.fromkeys(("height", "width"), range(1, 10**6)),
    **dict.fromkeys(("p20_ms", "p50_ms", "p80_ms", "ratio_to_eager"), float),
    "memory_mib": FIGURE,
    **dict.fromkeys(("tflop_s?", "gb_s?", "psnr_drift_db?"), FIGURE),
}
BENCHMARK: dict[str, Kind] = {
    "environment": MEASURED,
    "rounds": int,
    "ceilings": {"gb_s": float, "*": float},
    "rows": [({**ROW, "psnr_drift_db": FIGURE}, {**ROW, "against": re.compile(".+")}), ...],
    "refused?": {"*": str},
    "big?": {
        "backend": str,
        "tile": int,
        **dict.fromkeys(("megapixels", "bound_mib", "seconds", "peak_mib"), float),
        **DIFFERENCE,
    },
}
LARGE: dict[str, Kind] = {
    "environment": MEASURED,
    **dict.fromkeys(("megapixels", "seconds", "import_mib", "peak_mib"), float),
    **DIFFERENCE,
}


def is_whole(content: Any) -> bool:
    """Whether the content of a JSON file is a run of deploy.bench that went to its end."""
    return misfit(content, BENCHMARK) is None


def read(file: Path) -> dict[str, Any] | None:
    """A run of deploy.bench that went to its end; None where the file holds anything else."""
    try:
        result: dict[str, Any] = read_json(file)
    except (OSError, ValueError):
        return None
    return result if is_whole(result) else None


def large(results: Sequence[dict[str, Any]]) -> str:
    """A sentence a run of deploy.bench.large."""
    sentences = [
        f"{machine(result['environment'])}: "
        f"{result['megapixels']:.0f} megapixels in {result['seconds']:.1f} s, the file's reading "
        f"and writing included, and {result['peak_mib']:.0f} MiB beyond the "
        f"{result['import_mib']:.0f} of Python and its libraries; {result['differing']} of "
        f"{result['compared']} sampled values differ from the plain network's, by "
        f"{result['largest_difference_levels']} of 255 at most."
        for result in results
    ]
    return "\n\n".join(sentences) or "not measured"


def text(result: dict[str, Any]) -> str:
    """What `python -m deploy.bench` prints."""
    result = in_terminal(result)
    return "\n".join(["", conditions(result), aligned(rows(result)), *remarks(result)])


def conditions(result: dict[str, Any]) -> str:
    """What was measured on, and what that machine can do."""
    environment, ceilings = result["environment"], result["ceilings"]
    able = ", ".join(
        f"{ceilings[key]:.3g} TFLOP/s in {key.removeprefix('tflop_s_')}"
        for key in ceilings
        if key.startswith("tflop_s_")
    )
    return (
        f"{machine(environment)}, torch {environment['torch']}, "
        f"{result['rounds']} rounds, {environment['date'][:10]}, commit "
        f"{revision(environment)}. Measured ceilings: {able}, {ceilings['gb_s']:.0f} GB/s."
    )


def rows(result: dict[str, Any]) -> list[Sequence[str]]:
    """A header and a row for each backend, precision and size."""
    table: list[Sequence[str]] = [HEADER]
    for row in result["rows"]:
        table.append(
            [
                f"{row['height']}x{row['width']}, {_name(row)}",
                *(number(row[key], 2) for key in ("p50_ms", "p20_ms", "p80_ms", "ratio_to_eager")),
                number(row["memory_mib"], 0),
                number(row.get("tflop_s"), 3, ""),
                number(row.get("gb_s"), 1, ""),
                _drift(row, ""),
            ]
        )
    return table


def _drift(row: dict[str, Any], missing: str = "not measured") -> str:
    drift = row.get("psnr_drift_db")
    return number(None if drift is None else round(drift, 4) + 0.0, 4, missing)  # no -0.0000


def _name(row: dict[str, Any]) -> str:
    return f"{row['label']}: {row['ran']}" if row["backend"] == "auto" else row["label"]


def remarks(result: dict[str, Any]) -> list[str]:
    """What could not run, and the large image."""
    lines = [f"{label}: {reason}" for label, reason in result.get("refused", {}).items()]
    if big := result.get("big"):
        lines.append(
            f"{big['megapixels']:.0f} megapixels out, {big['backend']} in tiles of {big['tile']}, "
            f"bound of {big['bound_mib']:.0f} MiB: {big['seconds']:.1f} s, "
            f"{big['peak_mib']:.0f} MiB at most; {big['differing']} of {big['compared']} sampled "
            f"values differ from the plain network's, by {big['largest_difference_levels']} of "
            "255 at most"
        )
    return lines


def of_devices(
    results: Mapping[str, dict[str, Any]], describe: Callable[[dict[str, Any]], str]
) -> str:
    """The words on each type of device; of one that is not there, that."""
    return "\n\n".join(
        describe(results[device])
        if device in results
        else f"{name}: not measured by `python -m deploy.bench`."
        for device, name in DEVICES.items()
    )


def table(result: dict[str, Any]) -> str:
    """Every row, in Markdown."""
    notes = "\n".join(f"- {remark}" for remark in remarks(result))
    return "\n\n".join(filter(None, (conditions(result), markdown(rows(result)), notes)))


def sentence(result: dict[str, Any]) -> str:
    """What auto brings, against torch as it comes."""
    shown = _one_size(result)
    fast = next((row for row in shown if row["backend"] == "auto"), None)
    if fast is None:
        return f"{machine(result['environment'])}: --backend auto was not measured."
    slow = shown[0]
    return (
        f"{machine(result['environment'])}: an image of {fast['width']}x{fast['height']} pixels "
        f"takes {fast['p50_ms']:.4g} ms with `--backend auto` ({fast['ran']}). With "
        f"{slow['label']}, it takes {slow['p50_ms']:.4g} ms, {fast['ratio_to_eager']:.1f} times as "
        f"long. Memory is {number(fast['memory_mib'], 0)} MiB instead of "
        f"{number(slow['memory_mib'], 0)}. PSNR changes by {_drift(fast)} dB."
    )


def _one_size(result: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of PICTURED, or of the last size if that was not measured."""
    sizes = [(row["height"], row["width"]) for row in result["rows"]]
    size = PICTURED if PICTURED in sizes else sizes[-1]
    return [row for row in result["rows"] if (row["height"], row["width"]) == size]


def picture(result: dict[str, Any]) -> bytes:
    """The times of one size as bars, a PNG."""
    from matplotlib.figure import Figure  # half a second: only for the picture

    result = in_terminal(result)
    every = _one_size(result)
    shown = [row for row in every if row["backend"] != "auto"] or every  # it is one of them
    shown.sort(key=lambda row: -row["p50_ms"])
    figure = Figure(figsize=(9, 0.9 + 0.32 * len(shown)), layout="constrained")
    axes = figure.add_subplot()
    bars = axes.barh(
        [_as_drawn(_name(row)) for row in shown],
        [row["p50_ms"] for row in shown],
        color=[COLOURS[row["precision"]] for row in shown],
        xerr=[
            [max(0, row["p50_ms"] - row["p20_ms"]) for row in shown],
            [max(0, row["p80_ms"] - row["p50_ms"]) for row in shown],
        ],
        error_kw={"ecolor": "#888888", "elinewidth": 1},
    )
    labels = [f"  {row['p50_ms']:.3g} ms, {row['ratio_to_eager']:.1f} x" for row in shown]
    axes.bar_label(bars, labels, fontsize=8)
    axes.set_xlim(0, 1.2 * max(row["p80_ms"] for row in shown))
    axes.set_xlabel("ms an image (median, 20th to 80th percentile), and how many times as fast")
    size = f"{shown[0]['width']}x{shown[0]['height']}"
    on = _as_drawn(machine(result["environment"]))
    axes.set_title(f"x4 of {size} pixels: {on}", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def _as_drawn(text: str) -> str:
    """A text that Matplotlib draws as it stands; between two dollars it would read mathematics."""
    return text.replace("$", r"\$")
