"""Whether a training state, maybe a damaged or a stranger's, is as `train.checkpoint` saves it."""

from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from train.recipes import STAGES, Stage
from utils.weights import CheckpointError

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
MOST = 10**15  # of a stage's numbers
MOST_RECORDS = 200  # of stages, those of teachers counted, each teacher once,
MOST_PATHS = 5000  # .. or as often as it taught


def complete_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """A saved stage with the numbers it did not have yet, which were the defaults."""
    return {f.name: stage.get(f.name, f.default) for f in fields(Stage)}


def check_state(saved: dict[str, Any], path: Path) -> None:
    """A training state must have each field, of its kind; `path` names it. Raises
    CheckpointError."""
    if missing := [key for key in FIELDS if key not in saved]:
        raise CheckpointError(f"expected a training state, found no {', '.join(missing)} in {path}")
    later = {k: v for k, v in LATER_FIELDS.items() if saved.get(k) is not None}
    for key, kind in (FIELDS | later).items():
        if not isinstance(saved[key], kind) or isinstance(saved[key], bool):
            got = type(saved[key]).__name__
            raise CheckpointError(f"expected {key} of type {kind.__name__} in {path}, got {got}")
    records = all_records(saved)
    if records is None:
        raise CheckpointError(
            f"expected at most {MOST_RECORDS} records of training in {path}, got more: it is "
            "damaged"
        )
    for record in records:
        if misfit := _misfit(record):
            raise CheckpointError(
                f"expected a record of training in {path}, got one with another {misfit}: it is "
                "damaged"
            )


def all_records(saved: dict[str, Any]) -> list[Any] | None:
    """The records of all stages behind a state, its own and each teacher's once, whatever they
    hold; None where there are more than a state may have."""
    found: list[Any] = []
    known: dict[int, int] = {}  # the records behind a teacher, those of its own teachers counted

    def is_over(count: int) -> bool:
        return len(found) > MOST_RECORDS or count > MOST_PATHS

    def gather(records: list[Any]) -> int:
        count = 0
        for record in records:
            found.append(record)
            teacher = record.get("teacher") if isinstance(record, dict) else None
            behind = teacher.get("records") if isinstance(teacher, dict) else None
            # A teacher that is its own is not known yet when it is met again.
            if len(found) <= MOST_RECORDS and isinstance(behind, list) and id(teacher) not in known:
                known[id(teacher)] = gather(behind)
            count += 1 + known.get(id(teacher), 0)
            if is_over(count):
                break
        return count

    return None if is_over(gather([*(saved.get("before") or []), saved])) else found


def _misfit(record: Any) -> str:
    """What in a stage's record is not as `save` writes it; nothing if all is."""
    if not isinstance(record, dict) or not isinstance(record.get("stage"), dict):
        return "stage"
    stage = complete_stage(record["stage"])
    for name, kind in get_type_hints(Stage).items():
        if not is_of(stage[name], kind):
            return f"stage ({name})"
    step, init, history = record.get("step"), record.get("init"), record.get("history")
    fits = {
        "name": stage["name"] in {known.name for known in STAGES.values()},
        "step": type(step) is int and 0 <= step <= stage["steps"],
        "seed": is_of(record.get("seed"), int),
        "data": is_of(record.get("data"), str),
        "history": isinstance(history, list)
        and _is_plain(history)
        and all(isinstance(work, dict) and is_of(work.get("minutes"), float) for work in history),
        "init": init is None
        or isinstance(init, dict)
        and all(is_of(init.get(key), str) for key in ("name", "sha256")),
        "teacher": record.get("teacher") is None
        or isinstance(record["teacher"], dict)
        and is_of(record["teacher"].get("sha256"), str)
        and isinstance(record["teacher"].get("records"), list),
        "data_summary": record.get("data_summary") is None
        or isinstance(record["data_summary"], dict)
        and _is_summary(record["data_summary"]),
    }
    return next((name for name, fit in fits.items() if not fit), "")


def is_of(value: object, kind: Any) -> bool:
    """Whether a value is one that a field of this kind may have: a number, a text, a literal."""
    if kind is float:
        return isinstance(value, int | float) and type(value) is not bool and abs(value) <= MOST
    if kind is int:
        return type(value) is int and abs(value) < 1 << 63
    return type(value) is str and (kind is str or value in get_args(kind))


def _is_summary(value: dict[str, Any]) -> bool:
    digests = value.get("sha256")
    if not isinstance(digests, Tensor):
        return _is_plain(value)
    others = {key: item for key, item in value.items() if key != "sha256"}
    is_table = digests.dtype == torch.uint8 and digests.shape[1:] == (32,)
    return is_table and digests.is_contiguous() and _is_plain(others)


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
