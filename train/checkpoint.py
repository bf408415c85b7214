"""The state of a training run: one file that a run continues from, bit for bit."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train.optim import Muon
from train.recipes import ENDLESS, Stage, idle_numbers
from train.records import share_summaries, with_texts
from train.reparam import training_form
from train.soap import Soap
from train.state_check import check_state, complete_stage, is_of
from utils.files import write_bytes
from utils.text import printable
from utils.weights import (
    DTYPES,
    CheckpointError,
    load_state,
    read_checkpoint,
    state_dict_of,
    without_prefix,
)

WIDEST, DEEPEST = 128, 32  # channels, blocks: a state of SOAP is read up to 1 GiB
# What each optimiser gathers of a parameter, and in what shapes.
GATHERED: dict[type, Callable[[Tensor], dict[str, tuple[int, ...]]]] = {
    torch.optim.Adam: lambda p: {"step": (), "exp_avg": p.shape, "exp_avg_sq": p.shape},
    Muon: lambda p: {"momentum_buffer": p.shape},
    Soap: Soap.shapes,
}


@dataclass
class State:
    """A run between two steps.

    net: training form. ema: its averaged weights by name. step: optimiser steps done.
    history: one record per process that worked on the run (steps, minutes, environment).
    before: one record per earlier stage whose weights this one started from.
    init: name and sha256 of the file that the first weights came from, if that has no record.
    teacher: sha256 of the numbers of the network that part of the targets came from, and the
    records of its training.
    """

    net: LKDN
    ema: dict[str, Tensor]
    optimizers: list[torch.optim.Optimizer]
    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    before: list[dict[str, Any]] = field(default_factory=list)
    init: dict[str, str] | None = None
    teacher: dict[str, Any] | None = None


def save(path: Path, state: State, stage: Stage, seed: int, fingerprint: str) -> None:
    """Write a checkpoint; the old one stays whole until the new one is."""
    shared = share_summaries([*state.before, {"teacher": state.teacher}])
    buffer = io.BytesIO()
    torch.save(
        {
            "params": state.net.state_dict(),
            "params_ema": state.ema,
            "optimizers": [optimizer.state_dict() for optimizer in state.optimizers],
            "step": state.step,
            "stage": asdict(stage),
            "seed": seed,
            "data": fingerprint,
            "history": state.history,
            "before": shared[:-1],
            "init": state.init,
            "teacher": shared[-1]["teacher"],
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def weights_of(saved: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """LKDN's state dict in a checkpoint, without a prefix of all its names that a wrapper left.
    Raises CheckpointError."""
    return dict(without_prefix(state_dict_of(saved, file), ("fea_conv.pw.weight",), file))


def load_form(state: Mapping[str, Tensor], file: Path, form_name: str = "training") -> LKDN:
    """The network that a state dict belongs to, of whatever size, in the form that was trained.

    form_name: of train.recipes.Stage.form.

    Raises:
        CheckpointError: it is none of LKDN's.
    """
    last = "upsampler.conv3" if form_name == "training" else "upsampler.0"
    needed = ("fea_conv.pw.weight", f"{last}.weight")
    if missing := [key for key in needed if key not in state]:
        raise CheckpointError(
            f"expected LKDN's {form_name} form, found no {', '.join(missing)} in "
            f"{file}; released weights in inference form need no export"
        )
    blocks = sum(name.endswith(".pixel_norm.weight") for name in state)
    channels, channels_out = (state[key].shape[:1].numel() for key in needed)
    scale = round((channels_out / 3) ** 0.5)
    if channels % 2 or not (0 < channels <= WIDEST and 0 < blocks <= DEEPEST and 0 < scale <= 8):
        sizes = f"{channels} channels, {blocks} blocks and scale {scale}"
        raise CheckpointError(
            f"expected at most {WIDEST} (an even number), {DEEPEST} and 8, got {sizes}: {file}"
        )
    form = LKDN(channels, blocks, scale)
    if form_name == "training":
        form = training_form(form)
    load_state(form, state, file)
    return form


def resume(path: Path, state: State, stage: Stage, seed: int, fingerprint: str) -> None:
    """Bring `state` to where a checkpoint left off.

    With a schedule of train.recipes.ENDLESS the number of steps may be another than the saved one.

    Raises:
        CheckpointError: unreadable, or of a run with another stage, seed or data.
    """
    saved = read_checkpoint(path)
    check_state(saved, path)
    now = {**asdict(stage), "seed": seed, "data": fingerprint, "teacher": _name(state.teacher)}
    then = {**complete_stage(saved["stage"]), "seed": saved["seed"], "data": saved["data"]}
    then["teacher"] = _name(saved.get("teacher"))
    if stage.schedule in ENDLESS and stage.steps >= saved["step"]:
        then["steps"] = stage.steps
    idle = idle_numbers(stage.optimizer)
    differing = [
        f"{k} {printable(then.get(k))}, now {v}"
        for k, v in now.items()
        if then.get(k) != v and k not in idle
    ]
    if differing:
        raise CheckpointError(
            f"expected to continue the run of {path}, got other settings ({'; '.join(differing)}): "
            "give the same options as before, or another --out"
        )
    load_state(state.net, state_dict_of(saved, path, "params_ema"), path)  # which checks it
    for name, value in state.net.state_dict().items():
        state.ema[name].copy_(value)
    load_state(state.net, state_dict_of(saved, path, "params"), path)
    if len(saved["optimizers"]) != len(state.optimizers):
        raise CheckpointError(
            f"expected {len(state.optimizers)} optimisers in {path}, got {len(saved['optimizers'])}"
        )
    for optimizer, content in zip(state.optimizers, saved["optimizers"], strict=True):
        _load_optimizer(optimizer, content, saved["step"] > 0, path)
    state.step, state.history = saved["step"], saved["history"]
    of_teacher = {"teacher": saved.get("teacher")}
    *state.before, of_teacher = with_texts([*(saved.get("before") or []), of_teacher])
    state.teacher, state.init = of_teacher["teacher"], saved.get("init")


def _name(teacher: dict[str, Any] | None) -> str | None:
    return str(teacher["sha256"]) if teacher else None


def _load_optimizer(
    optimizer: torch.optim.Optimizer, content: Any, has_stepped: bool, path: Path
) -> None:
    """Load what an optimiser has gathered of each parameter since its first step, which must fit
    it; rates and the like follow from the stage. Raises CheckpointError."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = [GATHERED[type(optimizer)](p) for p in parameters]
    gathered = content.get("state") if isinstance(content, dict) else None
    expected = len(parameters) if has_stepped else 0
    if (
        not isinstance(gathered, dict)
        or len(gathered) != expected
        or not all(
            is_of(at, int)
            and 0 <= at < len(parameters)
            and isinstance(values, dict)
            and set(values) == set(shapes[at])
            and all(_fits(value, shapes[at][name]) for name, value in values.items())
            and _is_count(values.get("step", 1))
            for at, values in gathered.items()
        )
    ):
        raise CheckpointError(
            f"{path} does not fit {type(optimizer).__name__}: expected {len(parameters)} "
            f"parameters with {', '.join(sorted(shapes[0]))}, got something else"
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": gathered, "param_groups": groups})


def _is_count(step: Tensor | int) -> bool:
    """Whether so many steps may have been made."""
    return 1 <= float(step) < 1 << 31 and float(step).is_integer()


def _fits(value: object, shape: tuple[int, ...]) -> bool:
    """Whether this was gathered of a parameter: finite numbers in this shape."""
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype in DTYPES
        and bool(torch.isfinite(value).all())
    )
