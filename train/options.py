"""The command line of train.py, and the stages and the engine that it asks for."""

import argparse
import importlib.util
import logging
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from kernels.native_library import CompileError, cpu_features
from kernels.native_training import NativeGradients
from models.team23_LKDN import LKDN
from train.checkpoint import DEEPEST, WIDEST
from train.forward import arithmetic_of
from train.recipes import RECIPES, Engine, Stage, idle_numbers
from train.state_check import MOST
from utils import command, devices
from utils.command import UserError
from utils.datasets import SCALE
from utils.files import ROOT

logger = logging.getLogger(__name__)

# What the fields of Stage and Engine are, in the words of --help.
HELP = {
    "steps": "optimiser steps",
    "batch": "patches a step",
    "patch": "HR pixels a side of a patch",
    "loss": "of pixels in 0..1; psnr is minus the mean PSNR of the patches",
    "lr": "learning rate of Adam, or of Muon's or SOAP's matrices",
    "optimizer": "the factsheet's Adam, Muon for what mixes channels, or SOAP for all kernels",
    "schedule": "how the learning rate goes on after its rise",
    "warmup": "steps of linear rise",
    "ema": "decay of the averaged weights",
    "norm_start": "first value of the PixelNorm weights",
    "precision": "of what is multiplied; weights and sums are float32",
    "momentum": "Muon's or SOAP's",
    "adam_share": "share of the learning rate for what they leave to Adam",
    "weight_decay": "part of the learning rate that their kernels lose at each step",
    "form": "with the extra branches or without",
    "truth": "share of the HR image in what is learned; the rest is the teacher's SR",
    "channels": "of the network; others than 42 are for teachers",
    "blocks": "of the network; others than 5 are for teachers",
    "draw": "patches from everywhere alike, or more where there is detail",
    "shrink": "largest factor that images are shrunk by for new pairs; 1: pairs as packed",
    "zoom": "share of LR patches from HR images shrunk by less than 4, for the teacher's SR alone",
    "mixup": "share of patches that are blended with others",
    "rotate": "share of what is shrunk by 1.4 or more that is turned by any angle before",
    "kernels": "torch's, or ours compiled for this CPU",
    "fold": "fold the branches at each step",
    "dense": "fold each 1x1 and the depthwise 3x3 after it, too",
    "aligned": "channels of zeros up to widths that matrix units take",
    "channels_last": "memory layout",
    "depthwise": "whose kernels for depthwise convolutions",
    "compile": "torch.compile",
    "graphs": "replay each step as CUDA graphs",
    "crops": "where patches are cut",
    "arithmetic": "how the native kernels multiply in bf16",
    "tuned_cpu": "flush denormals, keep freed memory",
}

# Choices that only torch's kernels have: with any of them the native kernels are not used.
TORCH_ONLY = {"fold": False, "channels_last": False, "compile": "on"}
TORCH_ONLY |= dict.fromkeys(("dense", "aligned", "graphs"), True)

# The least and the most that a number may be; a checkpoint's are read up to the same.
LIMITS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("steps", "batch", "first", "log_every", "val_every", "save_every"), (1, MOST)),
    **dict.fromkeys(("lr", "warmup", "norm_start", "adam_share", "weight_decay"), (0, MOST)),
    **dict.fromkeys(("ema", "truth", "mixup", "rotate"), (0, 1)),
    "momentum": (0, 0.999999),  # with 1 no gradient would count
    "patch": (SCALE, MOST),
    "shrink": (1, 4),
    "zoom": (0, 0.9),
    "channels": (2, WIDEST),
    "blocks": (1, DEEPEST),
    "seed": (0, 2**63 - 1),
    "threads": (1, 1024),
    "max_minutes": (0, math.inf),
}


def add_packed(parser: argparse.ArgumentParser) -> None:
    """The option of all commands that read training images."""
    default = ROOT / "data" / "packed"
    where = "where decoded images are kept"
    parser.add_argument("--packed", type=command.path, default=default, metavar="DIR", help=where)


def parse(argv: list[str] | None, about: str | None = None) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = command.parser(about)
    add = parser.add_argument
    add(
        "--recipe",
        choices=sorted(RECIPES),
        default="factsheet",
        help="whose numbers: the factsheet's, or ours for one large GPU or two CPU cores",
    )
    add("--stage", type=int, choices=(1, 2), help="only this stage; else all, one after another")
    add(
        "--data",
        type=command.path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="trees of HR images, with DIV2K's LR images or without",
    )
    add("--first", type=int, metavar="N", help="only the first N images of each DIR")
    add(
        "--val",
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of images to score while training; choices are made on the first",
    )
    add("--out", type=command.path, required=True, metavar="RUN", help="folder of the run")
    add(
        "--init",
        type=command.path,
        metavar="FILE",
        help="start from the average of this run's weights; stage 2: stage 1's in RUN",
    )
    add(
        "--teacher",
        type=command.path,
        metavar="FILE",
        help="checkpoint of train.py whose SR takes part in the targets, see --truth",
    )
    add("--resume", action="store_true", help="continue the run in RUN, if it has begun")
    add("--seed", type=int, default=0, help="decides first weights and patches")
    add("--device", choices=devices.NAMES, default="auto", help="where to train")
    add("--threads", type=int, metavar="N", help="CPU threads")
    add(
        "--max_minutes",
        type=float,
        default=math.inf,
        metavar="M",
        help="save and stop after M minutes; --resume goes on with the same schedule",
    )
    add("--log_every", type=int, default=50, metavar="N", help="steps between log lines")
    add("--val_every", type=int, default=5000, metavar="N", help="steps between scores")
    add("--save_every", type=int, default=1000, metavar="N", help="steps between checkpoints")
    add_packed(parser)
    _add_fields(parser, "numbers of the stage", Stage)
    _add_fields(parser, "how they are computed", Engine)
    args = parser.parse_args(argv)
    for name, (least, most) in LIMITS.items():
        value = getattr(args, name, None)
        if value is not None and not least <= value <= most:
            parser.error(f"expected --{name} of {least:g} to {most:g}, got {value}")
    for name, divisor in (("patch", SCALE), ("channels", 2)):
        if (value := getattr(args, name, 0)) % divisor:
            parser.error(f"expected --{name} of a multiple of {divisor}, got {value}")
    return args


def _add_fields(parser: argparse.ArgumentParser, title: str, kind: type[Stage | Engine]) -> None:
    """An option for each field of a stage or an engine, its type and choices as there."""
    group = parser.add_argument_group(title, "default: the recipe's")
    for name, field_type in get_type_hints(kind).items():
        how: dict[str, Any] = {"type": field_type}
        if get_origin(field_type) is Literal:
            how = {"choices": get_args(field_type)}
        elif field_type is bool:
            how = {"action": argparse.BooleanOptionalAction}
        if name in HELP:  # all but the name of a stage
            group.add_argument(f"--{name}", default=argparse.SUPPRESS, help=HELP[name], **how)


def stages_of(args: argparse.Namespace) -> dict[int, Stage]:
    """The stages to train, by number, with the numbers that were given.

    Raises:
        UserError: the recipe has no such stage, or numbers were given for several stages, or one
            that its optimiser does not take.
    """
    stages = RECIPES[args.recipe].stages
    given = {f.name: getattr(args, f.name) for f in fields(Stage) if f.name in args}
    if args.stage is not None and args.stage not in stages:
        raise UserError(
            f"expected a stage of the recipe {args.recipe}, which has "
            f"{', '.join(map(str, stages))}, got --stage {args.stage}"
        )
    numbers = [args.stage] if args.stage else list(stages)
    if given and len(numbers) > 1:
        raise UserError(
            f"expected --stage with --{next(iter(given))}: the recipe {args.recipe} "
            f"has the stages {', '.join(map(str, stages))}"
        )
    chosen = {number: replace(stages[number], **given) for number in numbers}
    for name in idle_numbers(chosen[numbers[0]].optimizer):
        if name in given:
            raise UserError(
                f"expected --optimizer muon or soap with --{name}, got adam, which has no use for "
                "it: leave one out"
            )
    return chosen


def engine_of(
    args: argparse.Namespace, device: torch.device, stages: Mapping[int, Stage]
) -> Engine:
    """How to compute on `device`: the recipe's way, as far as it goes there, and what was given.

    Raises:
        UserError: something was asked for that the device cannot do.
    """
    given = {f.name: getattr(args, f.name) for f in fields(Engine) if f.name in args}
    engine = replace(RECIPES[args.recipe].engine, **given)
    if engine.graphs and device.type != "cuda":
        if given.get("graphs"):
            raise UserError(f"expected CUDA for --graphs, got {device}: leave it out")
        engine = replace(engine, graphs=False)
    if not engine.fold:
        if folded := [name for name in ("dense", "aligned") if given.get(name)]:
            raise UserError(
                f"expected --fold with --{folded[0]}, got --no-fold: leave one of them out"
            )
        engine = replace(engine, dense=False, aligned=False)
    if torch_only := [name for name, way in TORCH_ONLY.items() if given.get(name) == way]:
        if given.get("kernels") == "native":
            name, way = torch_only[0], TORCH_ONLY[torch_only[0]]
            choice = (
                f"--{name} {way}" if isinstance(way, str) else f"--{'' if way else 'no-'}{name}"
            )
            raise UserError(f"expected --kernels torch for {choice}, got native: leave one out")
        engine = replace(engine, kernels="torch")
    if engine.kernels == "native" and (reason := _without_native(engine, device, stages)):
        if asked := [name for name in ("kernels", "arithmetic") if name in given]:
            raise UserError(f"expected {reason} for --{asked[0]} {given[asked[0]]}: leave it out")
        logger.warning("training by torch: the faster kernels need %s", reason)
        engine = replace(engine, kernels="torch")
    if "arithmetic" in given:
        in_bf16 = any(stage.precision == "bf16" for stage in stages.values())
        if engine.kernels == "torch" or not in_bf16:
            got = "torch" if engine.kernels == "torch" else "other precisions"
            raise UserError(
                "expected --kernels native and --precision bf16 with --arithmetic "
                f"{engine.arithmetic}, got {got}: leave it out"
            )
    if engine.compile == "on" and not devices.can_compile(device):
        if "compile" in given:
            raise UserError("expected a C++ compiler for --compile on, got none: leave it out")
        logger.warning("training without torch.compile: it needs a C++ compiler on a CPU")
        engine = replace(engine, compile="off")
    if engine.depthwise == "triton" and (reason := _without_triton(device, stages)):
        if "depthwise" in given:
            raise UserError(f"expected {reason} for --depthwise triton: leave it out")
        logger.warning("depthwise convolutions by torch: Triton's need %s", reason)
        engine = replace(engine, depthwise="torch")
    return engine


def _without_native(
    engine: Engine, device: torch.device, stages: Mapping[int, Stage]
) -> str | None:
    """What is missing for the compiled kernels, if anything."""
    if device.type != "cpu":
        return f"a CPU, not {device}"
    if any(stage.precision == "fp64" for stage in stages.values()):
        return "a precision other than fp64"
    try:
        for stage in stages.values():
            arithmetic = arithmetic_of(engine, stage)
            if missing := set(arithmetic.split()) - {"float32"} - cpu_features():
                return f"a CPU with {missing.pop()}"
            NativeGradients(LKDN(stage.channels, stage.blocks), arithmetic)
    except CompileError as error:
        return f"to be compiled here: {error}"
    return None


def _without_triton(device: torch.device, stages: Mapping[int, Stage]) -> str | None:
    """What is missing for Triton's kernels, if anything."""
    if device.type != "cuda" and not devices.is_interpreted():
        return f"CUDA, not {device},"
    if any(stage.precision == "fp64" for stage in stages.values()):
        return "a precision other than fp64"
    return None if importlib.util.find_spec("triton") else "the package triton"
