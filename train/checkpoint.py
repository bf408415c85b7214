"""The state of a training run: one file that a run continues from, bit for bit."""

import io
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train.optim import Muon
from train.packs import Pack
from train.recipes import ENDLESS, STAGES, Stage
from train.reparam import training_form
from train.soap import Soap
from utils.datasets import SCALE
from utils.files import read_json, write_bytes, write_json
from utils.text import printable
from utils.weights import DTYPES, CheckpointError, load_state, read_checkpoint, state_dict_of

# The kind of each field of a training state, those that older ones lack left out.
FIELDS: dict[str, type] = {
    "params": dict,
    "params_ema": dict,
    "optimizers": list,
    "step": int,
    "stage": dict,
    "seed": int,
    "data": str,
    "history": list,
}
LATER_FIELDS: dict[str, type] = {"before": list, "init": dict, "teacher": dict}


def _of_adam(p: Tensor) -> dict[str, tuple[int, ...]]:
    return {"step": (), "exp_avg": tuple(p.shape), "exp_avg_sq": tuple(p.shape)}


def _of_muon(p: Tensor) -> dict[str, tuple[int, ...]]:
    return {"momentum_buffer": tuple(p.shape)}


# What each optimiser gathers of a parameter, and in what shapes.
GATHERED: dict[type, Callable[[Tensor], dict[str, tuple[int, ...]]]] = {
    torch.optim.Adam: _of_adam,
    Muon: _of_muon,
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
            "before": state.before,
            "init": state.init,
            "teacher": state.teacher,
        },
        buffer,
    )
    write_bytes(path, buffer.getvalue())


def training_records(saved: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    """How the weights of a checkpoint in folder `run` came about, a record a stage; empty for
    foreign files."""
    if not set(FIELDS) <= set(saved):
        return []
    _check_state(saved, run)
    own: dict[str, Any] = {key: saved[key] for key in ("stage", "step", "seed", "data", "history")}
    own |= {key: saved.get(key) for key in ("init", "teacher")}
    records = [*saved.get("before", []), own]
    notes = _data_notes(run)
    for record in records:
        record["stage"] = _complete(record["stage"])
        record.setdefault("init", None)
        record.setdefault("teacher", None)
        # Digests may be in any note about the same data.
        summary = record.get("data_summary") or {}
        record["data_summary"] = summary if "sha256" in summary else notes.get(record["data"])
    return records


def _complete(stage: dict[str, Any]) -> dict[str, Any]:
    """A saved stage with the numbers it did not have yet, which were the defaults."""
    return {f.name: stage.get(f.name, f.default) for f in fields(Stage)}


def without_digests(record: dict[str, Any]) -> dict[str, Any]:
    """A training record without the digest of every image, to be read by people."""
    summary = record["data_summary"] or {}
    teacher = record["teacher"]
    if teacher:
        teacher = {**teacher, "records": [without_digests(own) for own in teacher["records"]]}
    summary = {k: v for k, v in summary.items() if k != "sha256"}
    return {**record, "data_summary": summary, "teacher": teacher}


def note_data(run: Path, stage: Stage, folders: list[Path], first: int | None, data: Pack) -> None:
    """Write what a stage was trained on beside its checkpoint, with the digest of each image."""
    write_json(
        run / f"{stage.name}_data.json",
        {
            "folders": [folder.resolve().name for folder in folders],
            "first": first,
            "images": len(data.images),
            "skipped": list(data.skipped),
            "fingerprint": data.fingerprint,
            "megapixels": SCALE**2 * sum(i.height * i.width for i in data.images) / 1e6,
            "sha256": [image.sha256 for image in data.images],
        },
    )


def _data_notes(run: Path) -> dict[str, dict[str, Any]]:
    """What `note_data` wrote in a folder, by the data's fingerprint; only notes with digests."""
    notes = {}
    for file in sorted(run.glob("stage*_data.json")):
        try:
            note = read_json(file)
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(note, dict) and "sha256" in note and _is_of(note.get("fingerprint"), str):
            notes[note["fingerprint"]] = note
    return notes


def load_form(state: Mapping[str, Tensor], file: Path, form_name: str = "training") -> LKDN:
    """The network that a state dict belongs to, of whatever size, in the form that was trained.

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
    if not (0 < channels <= 256 and 0 < blocks <= 64 and 0 < scale <= 8):
        sizes = f"{channels} channels, {blocks} blocks and scale {scale}"
        raise CheckpointError(f"expected at most 256, 64 and 8, got {sizes}: {file}")
    form = LKDN(channels, blocks, scale)
    if form_name == "training":
        form = training_form(form)
    load_state(form, state, file)
    return form


def resume(path: Path, state: State, stage: Stage, seed: int, fingerprint: str) -> None:
    """Bring `state` to where a checkpoint left off.

    Where no step's rate depends on how many follow, a run may get another end.

    Raises:
        CheckpointError: unreadable, or of a run with another stage, seed or data.
    """
    saved = read_checkpoint(path)
    _check_state(saved, path)
    now = {**asdict(stage), "seed": seed, "data": fingerprint, "teacher": _name(state.teacher)}
    then = {**_complete(saved["stage"]), "seed": saved["seed"], "data": saved["data"]}
    then["teacher"] = _name(saved.get("teacher"))
    if stage.schedule in ENDLESS and stage.steps >= saved["step"]:
        then["steps"] = stage.steps
    differing = [
        f"{k} {printable(then.get(k))}, now {v}" for k, v in now.items() if then.get(k) != v
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
        _load_optimizer(optimizer, content, path)
    state.step, state.history = saved["step"], saved["history"]
    state.before, state.init = saved.get("before", []), saved.get("init")


def _name(teacher: dict[str, Any] | None) -> str | None:
    return str(teacher["sha256"]) if teacher else None


def _check_state(saved: dict[str, Any], path: Path) -> None:
    """A training state must have each field, of its kind; `path` names it. Raises
    CheckpointError."""
    if missing := [key for key in FIELDS if key not in saved]:
        raise CheckpointError(f"expected a training state, found no {', '.join(missing)} in {path}")
    later = {k: v for k, v in LATER_FIELDS.items() if saved.get(k) is not None}
    for key, kind in (FIELDS | later).items():
        if not isinstance(saved[key], kind) or isinstance(saved[key], bool):
            got = type(saved[key]).__name__
            raise CheckpointError(f"expected {key} of type {kind.__name__} in {path}, got {got}")
    for record in (*(saved.get("before") or []), saved):
        if misfit := _misfit(record):
            raise CheckpointError(
                f"expected a record of training in {path}, got one with another {misfit}: it is "
                "damaged"
            )


def _misfit(record: Any) -> str:
    """What in a stage's record is not as `save` writes it; nothing if all is."""
    if not isinstance(record, dict) or not isinstance(record.get("stage"), dict):
        return "stage"
    stage = _complete(record["stage"])
    for name, kind in get_type_hints(Stage).items():
        if not _is_of(stage[name], kind):
            return f"stage ({name})"
    step, init, history = record.get("step"), record.get("init"), record.get("history")
    fits = {
        "name": stage["name"] in {known.name for known in STAGES.values()},
        "step": type(step) is int and 0 <= step <= stage["steps"],
        "seed": _is_of(record.get("seed"), int),
        "data": _is_of(record.get("data"), str),
        "history": isinstance(history, list)
        and _is_plain(history)
        and all(isinstance(work, dict) and _is_of(work.get("minutes"), float) for work in history),
        "init": init is None
        or isinstance(init, dict)
        and all(_is_of(init.get(key), str) for key in ("name", "sha256")),
        "teacher": record.get("teacher") is None
        or isinstance(record["teacher"], dict)
        and _is_of(record["teacher"].get("sha256"), str)
        and isinstance(record["teacher"].get("records"), list)
        and not any(map(_misfit, record["teacher"]["records"])),
        "data_summary": record.get("data_summary") is None
        or isinstance(record["data_summary"], dict)
        and _is_plain(record["data_summary"]),
    }
    return next((name for name, fit in fits.items() if not fit), "")


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is one that a field of this kind may have: a number, a text, a literal."""
    if kind is float:
        return isinstance(value, int | float) and type(value) is not bool and abs(value) < 1e15
    if kind is int:
        return type(value) is int and abs(value) < 1 << 63
    return type(value) is str and (kind is str or value in get_args(kind))


def _is_plain(value: object, depth: int = 6) -> bool:
    """Whether JSON can hold a value, which is nested at most so deep."""
    if isinstance(value, dict | list):
        keys, items = (value, value.values()) if isinstance(value, dict) else ((), value)
        return (
            depth > 0
            and all(type(key) is str for key in keys)
            and all(_is_plain(item, depth - 1) for item in items)
        )
    return value is None or type(value) in (bool, int, float, str)


def _load_optimizer(optimizer: torch.optim.Optimizer, content: Any, path: Path) -> None:
    """Load what an optimiser has gathered of each parameter, which must fit it; rates and the like
    follow from the stage. Raises CheckpointError."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    shapes = [GATHERED[type(optimizer)](p) for p in parameters]
    gathered = content.get("state") if isinstance(content, dict) else None
    if not isinstance(gathered, dict) or not all(
        _is_of(at, int)
        and 0 <= at < len(parameters)
        and isinstance(values, dict)
        and set(values) == set(shapes[at])
        and all(_fits(value, shapes[at][name]) for name, value in values.items())
        for at, values in gathered.items()
    ):
        raise CheckpointError(
            f"{path} does not fit {type(optimizer).__name__}: expected {len(parameters)} "
            f"parameters with {', '.join(sorted(shapes[0]))}, got something else"
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": gathered, "param_groups": groups})


def _fits(value: object, shape: tuple[int, ...]) -> bool:
    """Whether this was gathered of a parameter: finite numbers in this shape."""
    return (
        isinstance(value, Tensor)
        and value.shape == shape
        and value.dtype in DTYPES
        and bool(torch.isfinite(value).all())
    )
