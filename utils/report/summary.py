"""A run in words: the lines of the challenge's template and a row of the factsheet's table."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.datasets import IMAGES
from utils.text import aligned, in_terminal, machine, number

# The efficiency table of the LKDN factsheet, NTIRE 2023.
FACTSHEET_ROW = (
    "factsheet, DIV2K_valid, the team's GPU",
    "29.01",
    "78.49",
    "0.129",
    "8.29",
    "202.70",
    "652.41",
    "86",
)
FACTSHEET_SET = "DIV2K_valid"
COLUMNS = ("", "PSNR [dB]", "Time [ms]", "Params [M]", "FLOPs [G]", "Acts [M]", "Mem [MiB]", "Conv")


def text(run: dict[str, Any], path: Path | str) -> str:
    """What the judge reads: the template's figures, then a row of the factsheet's Table 2."""
    run = in_terminal(run)
    environment = run["environment"]
    n = len(run["images"])
    total = run.get("images_in_set", n + len(run.get("failed", [])))
    total = IMAGES.get(run["dataset"], total)
    count = str(n) if n == total else f"{n} of {total}"
    cuda = environment["device_type"] == "cuda"
    lines = [
        "",
        f"{run['model']} on {run['dataset']} ({count} images), "
        f"{run['backend']} {run['precision']}, {machine(environment)}",
        f"LR images            {run['lr_source']}",
    ]
    if not is_complete(run):
        lines.append(f"Published figures    left out: they are of all {total} images")
    ours, bicubic = run["ave_psnr"], run["ave_psnr_bicubic"]
    if ours is None:
        missing = (
            "no HR images"
            if run["checkpoint"]["name"]
            else ("no weights of this network are shipped, give --checkpoint ID=FILE")
        )
        lines.append(f"PSNR                 not measured: {missing}")
    else:
        gain = f", gain {ours - bicubic:+.2f} dB" if _is_finite(ours, bicubic) else ""
        lines.append(f"PSNR (RGB)           {_db(ours)}, bicubic {_db(bicubic)}{gain}")
    if run["ave_ssim_y"] is not None:
        lines.append(
            f"PSNR, SSIM (Y)       {_db(run['ave_psnr_y'], 3)}, {run['ave_ssim_y']:.4f}; "
            f"bicubic {_db(run['ave_psnr_y_bicubic'], 3)}"
        )
    if run["ave_ssim"] is not None:
        lines.append(f"SSIM (RGB)           {run['ave_ssim']:.4f}")
    process = run.get("memory_of", "the whole process")
    warm = "not measured (give --repeat 2)"
    if run["median_runtime_ms"] is not None:
        warm = (
            f"{run['median_runtime_ms']:.2f} ms (20th percentile "
            f"{number(run['p20_runtime_ms'], 2)}, 80th {number(run['p80_runtime_ms'], 2)})"
        )
    lines += [
        f"Runtime, challenge   {number(run['ave_runtime_ms'], 2)} ms, mean of {n} images, the "
        "first, cold one included",
        f"Runtime, warm median {warm}",
        *_plain(run),
        f"Memory               {number(run['memory_mib'], 2)} MiB, "
        + ("allocated on the GPU at most" if cuda else f"resident at most, {process}"),
        f"#Params              {run['num_parameters'] / 1e6:.4f} M ({run['num_parameters']})",
        f"FLOPs, 2023          {run['flops'] / 1e9:.4f} G at 3x256x256 ({run['flops_counter']})",
        f"FLOPs, 2024 to 2026  {_fvcore_g(run)} at 3x256x256 (fvcore's total)",
        f"#Activations         {run['activations'] / 1e6:.4f} M at 3x256x256",
        f"#Conv2d              {run['num_conv']}",
        "",
        f"Measured on {run['dataset']}:",
        aligned(table([run])),
        f"Recorded in {in_terminal(str(path))}",
    ]
    return "\n".join(lines)


def table(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The factsheet's efficiency table, its own row and the runs."""
    return [COLUMNS, *factsheet_rows(runs), *map(row, runs)]


def factsheet_rows(runs: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The factsheet's row, where its set was measured: beside other images it says nothing."""
    measured = {run["dataset"] for run in runs if is_complete(run)}
    return [FACTSHEET_ROW] if FACTSHEET_SET in measured else []


def is_complete(run: dict[str, Any]) -> bool:
    """Whether a run is of all images of a set with published figures, or of another set."""
    n = len(run["images"])
    return IMAGES.get(run["dataset"], n) == n


def is_plain(run: dict[str, Any]) -> bool:
    """Whether the plain float32 network ran, as in the challenge."""
    return (run["backend"], run["precision"]) == ("eager", "fp32")


def _plain(run: dict[str, Any]) -> list[str]:
    """On another backend: the plain network's time in the same run."""
    if "plain" not in run:
        return []
    plain, fast = run["plain"], run["median_runtime_ms"]
    ratio = f", {plain['median'] / fast:.2f} times as long" if fast and plain["median"] else ""
    return [
        f"Plain network        {number(plain['average'], 2)} ms, warm median "
        f"{number(plain['median'], 2)} ms{ratio}; the counts below are its"
    ]


def row(run: dict[str, Any]) -> tuple[str, ...]:
    """A run as a row of the factsheet's efficiency table (COLUMNS)."""
    variant = "" if is_plain(run) else f", {run['backend']} {run['precision']}"
    if not is_complete(run):
        variant += f", {len(run['images'])} of {IMAGES[run['dataset']]} images"
    return (
        f"{run['model']}, {run['dataset']}, {run['environment']['device_type']}{variant}",
        average_psnr(run),
        number(run["ave_runtime_ms"], 2),
        f"{run['num_parameters'] / 1e6:.3f}",
        f"{run['flops'] / 1e9:.2f}",
        f"{run['activations'] / 1e6:.2f}",
        _memory(run),
        str(run["num_conv"]),
    )


def average_psnr(run: dict[str, Any]) -> str:
    """A set's PSNR in words; JSON has null for the infinite one of equal images."""
    scored = any(image["psnr"] is not None for image in run["images"])
    return number(run["ave_psnr"], 2, "infinite" if scored else "not measured")


def _memory(run: dict[str, Any]) -> str:
    """What runs of before measured on a CPU was all that the process had done: another figure."""
    is_alone = run["environment"]["device_type"] == "cuda" or "memory_of" in run
    return number(run["memory_mib"] if is_alone else None, 2)


def _fvcore_g(run: dict[str, Any]) -> str:
    """FLOPs by the counter of 2024 to 2026, which runs of before have not."""
    flops = run.get("flops_fvcore")
    return "not measured" if flops is None else f"{flops / 1e9:.4f} G"


def _db(value: float | None, digits: int = 2) -> str:
    return f"{value:.{digits}f} dB" if _is_finite(value) else "infinite (equal images)"


def _is_finite(*values: float | None) -> bool:
    """Whether all are numbers; JSON has null for the infinite PSNR of equal images."""
    return all(value is not None and math.isfinite(value) for value in values)
