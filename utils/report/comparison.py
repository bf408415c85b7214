"""Runs beside each other and beside what was published: Table 1, and the challenge's scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from utils.datasets import BENCHMARKS
from utils.report.summary import is_complete
from utils.text import aligned, in_terminal, number

# Y-PSNR [dB] and SSIM, x4, of the LKDN factsheet (NTIRE 2023), Table 1.
FACTSHEET = {
    "Set5": (32.10, 0.8938),
    "Set14": (28.62, 0.7820),
    "B100": (27.59, 0.7371),
    "Urban100": (26.07, 0.7845),
    "Manga109": (30.50, 0.9077),
}
BASELINE_2023 = "00_RFDN"
RUNTIME_2023_MS = {"00_RFDN": 35.54, "23_LKDN": 99.79}  # the organisers' means, NTIRE 2023 report


@dataclass(frozen=True)
class Year:
    """A year's rule: weights of the three terms, and what the baseline of that year costs."""

    year: int
    baseline: str
    runtime_weight: float
    cost_weight: float  # of FLOPs and of parameters, each
    runtime_ms: float  # the organisers', on their GPU
    flops_g: float
    params_m: float


# The organisers' repositories and reports, NTIRE efficient super-resolution. For 2024 they give
# the baseline's time as 11.77 to 13.54 ms.
YEARS = (
    Year(2024, "RLFN", 0.7, 0.15, 13.54, 19.67, 0.317),
    Year(2025, "EFDN", 0.7, 0.15, 16.69, 16.70, 0.276),
    Year(2026, "SPAN", 0.8, 0.10, 7.74, 9.83, 0.151),
)


@dataclass(frozen=True)
class Terms:
    """The score's parts, less is better; `flops` None where they were not counted, `runtime` where
    the time is no GPU's."""

    flops: float | None
    parameters: float
    runtime: float | None

    @property
    def costs(self) -> float | None:
        """The score without runtime."""
        return None if self.flops is None else self.flops + self.parameters

    @property
    def total(self) -> float | None:
        """The score; None where a part is missing."""
        if self.costs is None or self.runtime is None:
            return None
        return self.costs + self.runtime


def text(runs: Sequence[dict[str, Any]]) -> str:
    """What is printed after all runs; nothing where there is nothing to compare."""
    runs, parts = [in_terminal(run) for run in runs], []
    if any(is_scored(run) for run in runs):
        parts.append(
            "Table 1, Y-PSNR [dB] / SSIM, and the difference to the factsheet:\n"
            + aligned(table1(runs))
        )
    if len({run["num_parameters"] for run in runs}) > 1:
        parts.append(scores(runs))
    return "".join(f"\n{part}\n" for part in parts)


def is_scored(run: dict[str, Any]) -> bool:
    """Whether a run belongs into Table 1: a whole benchmark set, with PSNR and SSIM on luma."""
    scored = run["ave_psnr_y"] and run["ave_ssim_y"]
    return bool(run["dataset"] in BENCHMARKS and is_complete(run) and scored)


def published_scores() -> dict[str, str]:
    """The factsheet's row of Table 1 by set."""
    return {name: f"{psnr:.2f} / {ssim:.4f}" for name, (psnr, ssim) in FACTSHEET.items()}


def scores_of(run: dict[str, Any], digits: int = 3) -> str:
    """A run's cell of Table 1."""
    return f"{run['ave_psnr_y']:.{digits}f} / {run['ave_ssim_y']:.4f}"


def by_set(
    cells: Mapping[str, Mapping[str, str]], title: str = "", sets: Sequence[str] = BENCHMARKS
) -> list[list[str]]:
    """Table 1 of rows by name, whose cells are by set; what has no cell was not measured."""
    rows = [[name, *(row.get(s, "not measured") for s in sets)] for name, row in cells.items()]
    return [[title, *sets], *rows]


def table1(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Table 1 of the sets that ran: the factsheet, then each network, with the difference."""
    scored = {(run["dataset"], run["model"]): run for run in reversed(runs) if is_scored(run)}
    rows = [["", "factsheet", *dict.fromkeys(run["model"] for run in runs)]]
    for name in (name for name in BENCHMARKS if any(s == name for s, _ in scored)):
        psnr, ssim = FACTSHEET[name]
        scores, differences = [name, published_scores()[name]], ["difference", ""]
        for model in rows[0][2:]:
            if run := scored.get((name, model)):
                scores.append(scores_of(run))
                apart = f"{run['ave_psnr_y'] - psnr:+.3f} / {run['ave_ssim_y'] - ssim:+.4f}"
                differences.append(apart)
            else:
                scores.append("not measured")
                differences.append("")
        rows += [scores, differences]
    return [list(row) for row in zip(*rows, strict=True)]


def costs(runs: Sequence[dict[str, Any]]) -> list[list[str]]:
    """What each network costs by the challenge's counters, and its terms of the score."""
    rows = [
        [
            "",
            "parameters",
            "2023's FLOPs [G]",
            "2024's to 2026's FLOPs [G]",
            "activations [M]",
            "convs",
            *(f"{y.year}'s score without runtime" for y in YEARS),
            "2023's runtime [ms]",
        ]
    ]
    counted_last = sorted(runs, key=lambda run: run.get("flops_fvcore") is not None)
    by_network = {run["model"].split("@")[0]: run for run in counted_last}
    for name, run in sorted(by_network.items()):
        flops, parameters = run.get("flops_fvcore"), run["num_parameters"]
        without_runtime = [terms(year, flops, parameters, None).costs for year in YEARS]
        rows.append(
            [
                name,
                f"{parameters:,}",
                f"{run['flops'] / 1e9:.2f}",
                number(flops and flops / 1e9, 2),
                f"{run['activations'] / 1e6:.2f}",
                str(run["num_conv"]),
                *(number(score, 3) for score in without_runtime),
                number(RUNTIME_2023_MS.get(name), 2, ""),
            ]
        )
    return rows


def scores(runs: Sequence[dict[str, Any]]) -> str:
    """The terms of the later years' score for each network of the first set, and what the time
    beside the baseline's would be on the organisers' machine."""
    first = [run for run in runs if run["dataset"] == runs[0]["dataset"]]
    environment = first[0]["environment"]
    cuda = environment["device_type"] == "cuda"
    lines = ["Scores of later years, the less the better: weight * e^(2 * cost / baseline's cost)"]
    rows = [["", "FLOPs", "parameters", "both", "runtime", "sum"]]
    for year in YEARS:
        for run in first:
            runtime_ms = run["ave_runtime_ms"] if cuda else None
            got = terms(year, run.get("flops_fvcore"), run["num_parameters"], runtime_ms)
            rows.append(
                [
                    f"{year.year}, against {year.baseline}: {run['model']}",
                    number(got.flops, 4),
                    f"{got.parameters:.4f}",
                    number(got.costs, 4),
                    number(got.runtime, 4, "no CUDA"),
                    number(got.total, 4, "not measured" if cuda else "no CUDA"),
                ]
            )
    lines.append(aligned(rows))
    lines.append(
        f"The runtime term is of this {environment['device']}, while the baselines' times are of "
        "the organisers' GPUs."
        if cuda
        else f"A time on {environment['device']} makes no runtime term: the baselines' are of GPUs."
    )
    return "\n".join([*lines, *_estimates(first)])


def _estimates(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Each network's time in 2023's table if it took as many times the baseline's as it does here;
    by warm medians, for a cold first image would decide."""

    def time(run: dict[str, Any]) -> float | None:
        return run["median_runtime_ms"] or run["ave_runtime_ms"]

    baseline = next((run for run in runs if run["model"].startswith(BASELINE_2023)), None)
    unit = baseline and time(baseline)
    if baseline is None or not unit:
        return []
    lines = []
    for run in runs:
        if run is baseline or not (own := time(run)):
            continue
        times = own / unit
        known = RUNTIME_2023_MS.get(run["model"].split("@")[0])
        lines.append(
            f"{run['model']} takes {times:.2f} times as long as {baseline['model']} here; times "
            f"its {RUNTIME_2023_MS[BASELINE_2023]} ms of 2023's table that is "
            f"{times * RUNTIME_2023_MS[BASELINE_2023]:.1f} ms"
            + (f", where the organisers measured {known} ms." if known else ".")
        )
    return lines


def terms(year: Year, flops: int | None, parameters: int, runtime_ms: float | None) -> Terms:
    """weight * e^(2 * cost / the baseline's cost), of each cost.

    Args:
        flops: at 3x256x256 by fvcore, with which these years count; None if not counted.
        parameters: how many.
        runtime_ms: mean of a CUDA run; None for another device, whose time means nothing here.
    """
    return Terms(
        None if flops is None else _term(year.cost_weight, flops / 1e9, year.flops_g),
        _term(year.cost_weight, parameters / 1e6, year.params_m),
        None if runtime_ms is None else _term(year.runtime_weight, runtime_ms, year.runtime_ms),
    )


def _term(weight: float, cost: float, baseline: float) -> float:
    """Infinity where the power is more than a float can hold."""
    try:
        return weight * math.exp(2 * cost / baseline)
    except OverflowError:
        return math.inf
