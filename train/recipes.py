"""Recipes, as records of numbers: the two stages of the LKDN factsheet (NTIRE 2023), and ours."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

ENDLESS = ("constant", "inverse_sqrt")  # schedules in which no rate depends on how many follow


@dataclass(frozen=True)
class Stage:
    """Everything that decides the weights, data and seed excepted.

    steps: optimiser steps. batch: patches a step, over all processes. patch: HR pixels a side.
    lr: learning rate of Adam, or of Muon's or SOAP's matrices. warmup: steps of linear rise.
    schedule: constant; one over the square root of 1 + step / 5000, which like constant does not
    depend on the end; a half cosine to zero over all steps; or a trapezoid, constant and then
    a straight fall to zero over the last 30 % of the steps.
    ema: decay of the averaged weights, which are what is exported. norm_start: first value of the
    PixelNorm weights. momentum, adam_share: Muon's or SOAP's momentum, and the share of lr for what
    they leave to Adam. weight_decay: the part of lr that their kernels lose at each step.
    form: the network that is trained, with the extra branches or without.
    channels, blocks: its size; another than the entry's is for teachers.
    truth: share of the HR patch in what is learned; the rest is a teacher's SR, see
    train.forward.make_gradients.
    draw: patches from everywhere alike, or more where there is detail, see train.patches.sample.
    shrink: the largest factor that images are shrunk by for a part of the patches, see
    train.shrink.
    zoom: share of the LR patches that are HR patches shrunk by less than 4: they have no HR, and
    a teacher's SR is what is learned.
    mixup: share of the patches that are blended with others, see train.patches.sample.
    rotate: share of what is shrunk by 1.4 or more that is turned by any angle before.
    Precisions other than fp64 keep weights, loss, EMA and optimiser in float32.
    """

    name: str
    steps: int
    batch: int
    patch: int
    loss: Literal["l1", "l2", "psnr"]
    lr: float
    optimizer: Literal["adam", "muon", "soap"] = "adam"
    schedule: Literal["constant", "inverse_sqrt", "cosine", "trapezoid"] = "constant"
    warmup: int = 0
    ema: float = 0.999
    norm_start: float = 1.0
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    momentum: float = 0.95
    adam_share: float = 0.2
    weight_decay: float = 0.0
    form: Literal["training", "inference"] = "training"
    channels: int = 42
    blocks: int = 5
    draw: Literal["uniform", "detail"] = "uniform"
    truth: float = 1.0
    shrink: float = 1.0
    zoom: float = 0.0
    mixup: float = 0.0
    rotate: float = 0.0


@dataclass(frozen=True)
class Engine:
    """How the numbers of a stage are computed: how fast, not what, rounding excepted.

    kernels: torch's, or ours for a CPU (kernels/native_training.py), which have no use for the
    choices below but the last three.
    fold: run the plain network on kernels folded from the branches, not the branches.
    dense: with fold, run its blueprint pairs as dense 3x3 convolutions, folded from them too.
    aligned: with fold, compute with channels of zeros up to widths that matrix units take.
    channels_last: memory layout. depthwise: whose kernels for the depthwise convolutions.
    compile: torch.compile for the network. graphs: replay a step as two CUDA graphs.
    crops: where patches are cut, on the training device or on the CPU.
    arithmetic: how the native kernels multiply matrices in bf16; auto takes the fastest.
    tuned_cpu: flush denormals and keep freed memory, see utils.devices.prepare_cpu.
    """

    kernels: Literal["torch", "native"] = "torch"
    fold: bool = True
    dense: bool = False
    aligned: bool = False
    channels_last: bool = True
    depthwise: Literal["torch", "triton"] = "torch"
    compile: Literal["off", "on"] = "off"
    graphs: bool = False
    crops: Literal["device", "cpu"] = "device"
    arithmetic: Literal["auto", "float32", "avx512_bf16", "amx_bf16"] = "auto"
    tuned_cpu: bool = True


@dataclass(frozen=True)
class Recipe:
    """Stages by number, each starting from the average of the one before, and their engine."""

    stages: Mapping[int, Stage]
    engine: Engine = Engine()


STAGES = {
    1: Stage("stage1", steps=950_000, batch=128, patch=256, loss="l1", lr=1e-3),
    2: Stage("stage2", steps=50_000, batch=64, patch=480, loss="l2", lr=2e-5),
}

# Small patches where there is detail, on the metric: the best of the trials.
TRIED = Stage(
    "stage1",
    steps=12_000,
    batch=54,
    patch=64,
    loss="psnr",
    lr=2e-2,
    optimizer="muon",
    schedule="trapezoid",
    warmup=100,
    norm_start=0.1,
    precision="bf16",
    momentum=0.9,
    weight_decay=0.02,
    draw="detail",
)

# SOAP learns more from each step than Muon, on structure above all, but a rate of 2e-2 is too high
# for it where it is held for long (trial 35). So it has larger steps, or lower or falling rates.
# `shrink` makes new pairs of images that are seen many times.
LONG = replace(TRIED, optimizer="soap", form="inference", shrink=2.5)

RECIPES = {
    "factsheet": Recipe(STAGES),
    # For one large GPU in minutes: steps eight times as large, for kernels would wait for launches.
    # The steps ran on one, from weights that were trained already; from random ones not yet.
    "fast": Recipe(
        {
            1: replace(
                LONG, steps=40_000, batch=108, patch=128, schedule="inverse_sqrt", warmup=500
            ),
            2: replace(
                LONG, name="stage2", steps=20_000, batch=108, patch=128, lr=1e-2, schedule="cosine"
            ),
        },
        Engine(aligned=True, depthwise="triton", compile="on", graphs=True),
    ),
    # For two CPU cores in less than half an hour.
    "cpu": Recipe({1: TRIED}, Engine(kernels="native")),
    # For two CPU cores in nights: as long as one likes, then cooled down. Kernels that decay are
    # what a later fall of the rate brings most from, see the trials.
    "long": Recipe(
        {
            1: replace(LONG, steps=1_450_000, lr=1e-2, schedule="inverse_sqrt"),
            2: replace(
                LONG,
                name="stage2",
                steps=6_000,
                batch=12,
                patch=192,
                lr=5e-3,
                schedule="cosine",
                warmup=200,  # SOAP knows nothing yet, and a full step undoes what is there
            ),
        },
        Engine(kernels="native"),
    ),
}


def idle_numbers(optimizer: str) -> tuple[str, ...]:
    """The fields of a stage that its optimiser has no use for."""
    return ("momentum", "adam_share", "weight_decay") if optimizer == "adam" else ()
