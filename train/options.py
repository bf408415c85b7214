"""The command line of train.py, and the stages and the engine that it asks for."""

import argparse
import importlib.util
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch

from kernels.native_library import CompileError, cpu_features
from kernels.native_training import NativeGradients
from models.team23_LKDN import LKDN
from train.checkpoint import DEEPEST, WIDEST
from train.forward import arithmetic_of
from train.recipes import RECIPES, Engine, Stage
from utils import command, devices
from utils.command import UserError
from utils.datasets import SCALE

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


def parse(argv: list[str] | None, about: str, packed: Path) -> argparse.Namespace:
    """Options of one run; argparse ends the process with 2 and a message if one is wrong."""
    parser = argparse.ArgumentParser(description=about, formatter_class=command.HelpFormatter)
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
        type=Path,
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
    add("--out", type=Path, required=True, metavar="RUN", help="folder of the run")
    add(
        "--init",
        type=Path,
        metavar="FILE",
        help="start from the average of this run's weights; stage 2: stage 1's in RUN",
    )
    add(
        "--teacher",
        type=Path,
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
    add("--packed", type=Path, default=packed, metavar="DIR", help="where decoded images are kept")
    _add_fields(parser, "numbers of the stage", Stage)
    _add_fields(parser, "how they are computed", Engine)
    args = parser.parse_args(argv)
    counts = ("threads", "first", "log_every", "val_every", "save_every", "steps", "batch")
    for name in (*counts, "channels", "blocks"):
        if (value := getattr(args, name, None)) is not None and value < 1:
            parser.error(f"expected --{name} of at least 1, got {value}")
    if not 0 <= args.seed < 2**63:
        parser.error(f"expected --seed from 0 to below 2**63, got {args.seed}")
    patch = getattr(args, "patch", SCALE)
    if patch < SCALE or patch % SCALE:
        parser.error(f"expected --patch in HR pixels, a multiple of {SCALE}, got {patch}")
    for name in ("ema", "momentum", "truth"):
        if getattr(args, name, 0) > 1:
            parser.error(f"expected --{name} of at most 1, got {getattr(args, name)}")
    if getattr(args, "momentum", 0) == 1:
        parser.error("expected --momentum below 1, got 1: no gradient would count")
    channels, blocks = getattr(args, "channels", 2), getattr(args, "blocks", 1)
    if channels % 2 or channels > WIDEST:
        parser.error(f"expected --channels of an even number up to {WIDEST}, got {channels}")
    if blocks > DEEPEST:
        parser.error(f"expected --blocks of at most {DEEPEST}, got {blocks}")
    shares = ("ema", "norm_start", "momentum", "adam_share", "weight_decay", "truth")
    for name in ("lr", "warmup", *shares, "max_minutes"):
        value = float(getattr(args, name, 0))
        if not value >= 0 or (value == math.inf and name != "max_minutes"):
            parser.error(f"expected --{name} of a number from 0 up, got {value}")
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
        UserError: the recipe has no such stage, or numbers were given for several stages.
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
    return {number: replace(stages[number], **given) for number in numbers}


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
    asked = [name for name in ("dense", "aligned", "graphs") if given.get(name)]
    if torch_only := [n for n in ("fold", "channels_last", "compile") if n in given] + asked:
        if given.get("kernels") == "native":
            raise UserError(f"expected --{torch_only[0]} with --kernels torch, got native")
        engine = replace(engine, kernels="torch")
    if engine.kernels == "native" and (reason := _without_native(engine, device, stages)):
        if asked := [name for name in ("kernels", "arithmetic") if name in given]:
            raise UserError(f"expected {reason} for --{asked[0]} {given[asked[0]]}: leave it out")
        logger.warning("training by torch: the faster kernels need %s", reason)
        engine = replace(engine, kernels="torch")
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
    if device.type != "cuda" and not os.environ.get("TRITON_INTERPRET"):
        return f"CUDA, not {device},"
    if any(stage.precision == "fp64" for stage in stages.values()):
        return "a precision other than fp64"
    return None if importlib.util.find_spec("triton") else "the package triton"
