"""The state that a stage of training starts from."""

import argparse
import logging
from typing import Any

import torch

from kernels.native_library import CompileError
from kernels.native_training import NativeOrthogonaliser
from models.team23_LKDN import LKDB, LKDN
from train import checkpoint
from train.optim import make_optimizers
from train.recipes import Engine, Stage
from train.records import MOST_RECORDS, all_records, training_records, warn_of_unfinished
from train.reparam import fuse, has_branches, training_form
from train.teacher import Teacher
from utils.command import UserError
from utils.files import sha256
from utils.weights import load_state, read_checkpoint

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
    init = args.init if number == (args.stage or 1) else None
    if init is None and number == 2:
        init = args.out / "stage1.pt"
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
