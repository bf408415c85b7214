"""The two stages of the LKDN factsheet (NTIRE 2023), as records of numbers."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Stage:
    """Everything that decides the weights, data and seed excepted.

    steps: optimiser steps. batch: patches a step, over all processes. patch: HR pixels a side.
    lr: learning rate of Adam, or of Muon's matrices. warmup: steps of linear rise.
    schedule: constant, or a half cosine to zero over all steps. ema: decay of the averaged
    weights, which are what is exported. norm_start: first value of the PixelNorm weights.
    Precisions other than fp64 keep weights, loss, EMA and optimiser in float32.
    """

    name: str
    steps: int
    batch: int
    patch: int
    loss: Literal["l1", "l2"]
    lr: float
    optimizer: Literal["adam", "muon"] = "adam"
    schedule: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    ema: float = 0.999
    norm_start: float = 1.0
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"


STAGES = {
    1: Stage("stage1", steps=950_000, batch=128, patch=256, loss="l1", lr=1e-3),
    2: Stage("stage2", steps=50_000, batch=64, patch=480, loss="l2", lr=2e-5),
}
