"""The state that a stage of training starts from."""

import argparse
import logging
from pathlib import Path
from typing import Any

import torch

from kernels.native_library import CompileError
from kernels.native_training import NativeOrthogonaliser
from models.team23_LKDN import LKDB, LKDN
from train import checkpoint
from train.optim import make_optimizers
from train.recipes import Engine, Stage
from train.records import training_records, warn_of_unfinished
from train.reparam import fuse, has_branches, training_form
from train.state_check import MOST_RECORDS, all_records
from train.teacher import Teacher
from utils.command import UserError
from utils.files import sha256
from utils.weights import CheckpointError, load_state, read_checkpoint

logger = logging.getLogger(__name__)


def initial_state(
    args: argparse.Namespace,
    number: int,
    stage: Stage,
    engine: Engine,
    device: torch.device,
    teacher: Teacher | None,
) -> checkpoint.State:
    """Seeded first weights, or those of --init; stage 2 starts from stage 1's average. A run that
    resumes brings its own weights."""
    torch.manual_seed(args.seed)
    net = LKDN(stage.channels, stage.blocks)
    for block in net.modules():
        if isinstance(block, LKDB):
            torch.nn.init.constant_(block.pixel_norm.weight, stage.norm_start)
    if stage.form == "training":
        net = training_form(net)
    before: list[dict[str, Any]] = []
    unknown = None
    init = start_of(args, number)
    if init and not (args.out / f"{stage.name}.pt").exists():
        if not init.exists():
            raise UserError(
                f"expected weights to start from in {init}, found no such file: "
                "train stage 1 with the same --out first, or give --init FILE"
            )
        saved = read_checkpoint(init)
        weights = checkpoint.weights_of(saved, init)
        if stage.form == "inference" and has_branches(weights):
            branches = training_form(net)
            load_state(branches, weights, init)
            weights = fuse(branches).state_dict()
        if stage.form == "training" and not has_branches(weights):
            raise UserError(
                f"expected weights with the training form's branches in {init}, got the inference "
                "form's: give --form inference"
            )
        load_state(net, weights, init)
        before = training_records(saved, init.parent)
        if before:
            warn_of_unfinished(before[-1], init)
        else:
            unknown = {"name": init.name, "sha256": sha256(init)}
    net = net.to(device, torch.float64 if stage.precision == "fp64" else torch.float32)
    ema = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizers = make_optimizers(net, stage, _orthogonaliser(stage, engine))
    of_teacher = {"sha256": teacher.sha256, "records": teacher.records} if teacher else None
    if all_records({"before": before, "teacher": of_teacher}) is None:
        # Now: what the stage saved would be refused when it goes on.
        raise UserError(
            f"expected at most {MOST_RECORDS} records of training with a stage, the teacher's "
            "counted, got more: begin with weights that train/export.py -o FILE wrote, which have "
            "none, and cannot be shipped then"
        )
    return checkpoint.State(net, ema, optimizers, before=before, init=unknown, teacher=of_teacher)


def start_of(args: argparse.Namespace, number: int) -> Path | None:
    """The file whose weights a stage starts from; None where they are random."""
    if args.init and number == (args.stage or 1):
        return args.init
    return args.out / "stage1.pt" if number == 2 else None


def warn_of_other_start(args: argparse.Namespace, file: Path, state: checkpoint.State) -> None:
    """Say that what the stage in `file`, which goes on, would start from today is not what it
    started from: another --init, or a first stage that went on since."""
    start = start_of(args, int(file.stem.removeprefix("stage")))
    if not start or not start.exists():
        return
    try:
        saved = read_checkpoint(start)
    except CheckpointError as error:  # it is not needed any more
        logger.info("%s", error)
        return
    began = state.before[-1] if state.before else None
    given = start == args.init
    if began:
        stage = saved["stage"] if isinstance(saved.get("stage"), dict) else {}
        same_run = began["stage"]["name"] == stage.get("name") and all(
            began[key] == saved.get(key) for key in ("seed", "data")
        )
        same_run &= _beginning(began) == _beginning(saved)
        same_step = began["step"] == saved.get("step")
        # Without --init the first stage here need not be the one that this one began with.
        other = not (same_run and same_step) if given else same_run and not same_step
    else:
        other = given and (not state.init or state.init["sha256"] != sha256(start))
    if other:
        logger.warning(
            "%s goes on from what it began with, which is not what %s is now: give another --out, "
            "with --stage and --init, to begin with that",
            file,
            start,
        )


def _beginning(record: dict[str, Any]) -> object:
    """When and how a run began, of its record or its checkpoint, as far as that says so."""
    try:
        numbers = {key: number for key, number in record["stage"].items() if key != "steps"}
        return record["history"][0]["environment"], numbers
    except (AttributeError, KeyError, IndexError, TypeError):
        return None


def _orthogonaliser(stage: Stage, engine: Engine) -> NativeOrthogonaliser | None:
    """Muon's compiled kernels, where they are to be had and of use; torch computes without."""
    if stage.optimizer != "muon" or engine.kernels != "native":
        return None
    if stage.channels > NativeOrthogonaliser.LARGEST:
        return None
    try:
        return NativeOrthogonaliser()
    except CompileError as error:
        logger.warning("Muon runs in torch, not on compiled kernels: %s", error)
        return None
