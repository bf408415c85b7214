"""The challenge's score of later years: runtime, FLOPs and parameters against a baseline's."""

import math
from dataclasses import dataclass

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
    """The score's parts, less is better; `runtime` None where the time is no GPU's."""

    flops: float
    parameters: float
    runtime: float | None

    @property
    def total(self) -> float | None:
        return None if self.runtime is None else self.flops + self.parameters + self.runtime


def terms(year: Year, flops: int, parameters: int, runtime_ms: float | None) -> Terms:
    """weight * e^(2 * cost / the baseline's cost), of each cost.

    Args:
        flops: multiply-adds at 3x256x256.
        parameters: how many.
        runtime_ms: mean of a CUDA run; None for another device, whose time means nothing here and
            would overflow.
    """
    return Terms(
        year.cost_weight * math.exp(2 * flops / 1e9 / year.flops_g),
        year.cost_weight * math.exp(2 * parameters / 1e6 / year.params_m),
        None
        if runtime_ms is None
        else year.runtime_weight * math.exp(2 * runtime_ms / year.runtime_ms),
    )
