"""What a checkpoint and a run's folder say of how its weights came about."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from train.packs import Pack
from train.recipes import STAGES, Stage
from utils.datasets import SCALE
from utils.files import read_json, write_json
from utils.weights import CheckpointError

logger = logging.getLogger(__name__)

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
STATES = ("stage2.pt", "stage1.pt")  # training states in the folder of a run, the last first
DIGEST = re.compile("[0-9a-f]{64}")  # of an image
MOST = 10**15  # of a stage's numbers
MOST_RECORDS = 200  # of stages, those of teachers counted, each teacher once,
MOST_PATHS = 5000  # .. or as often as it taught


def last_stage(run: Path) -> Path:
    """The checkpoint of the last stage in the folder of a run, or CheckpointError."""
    files = [run / name for name in STATES]
    if file := next((file for file in files if file.exists()), None):
        return file
    raise CheckpointError(f"expected {' or '.join(map(str, files))}, found neither")


def training_records(saved: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    """How the weights of a checkpoint in folder `run` came about, a record a stage with all that is
    known today, teachers' included; empty for foreign files."""
    if not set(FIELDS) <= set(saved):
        return []
    check_state(saved, run)
    own = {key: saved[key] for key in ("stage", "step", "seed", "data", "history")}
    own |= {key: saved.get(key) for key in ("init", "teacher")}
    notes = _data_notes(run)

    def complete(record: dict[str, Any]) -> dict[str, Any]:
        # Digests may be in any note about the same data.
        summary = record.get("data_summary")
        return {
            "stage": complete_stage(record["stage"]),
            "init": record.get("init"),
            "teacher": record.get("teacher"),
            "data_summary": summary if _has_digests(summary) else notes.get(record["data"]),
        }

    records = with_texts([*(saved.get("before") or []), own])
    return [_changed(record, complete) for record in records]


def _changed(
    record: dict[str, Any], change: Callable[[dict[str, Any]], dict[str, Any]]
) -> dict[str, Any]:
    """A record with other fields, and so the records of its teacher."""
    teacher = record.get("teacher")
    if teacher:
        teacher = {**teacher, "records": [_changed(own, change) for own in teacher["records"]]}
    changed = {**record, **change(record)}
    return {**changed, "teacher": teacher} if teacher else changed


def complete_stage(stage: dict[str, Any]) -> dict[str, Any]:
    """A saved stage with the numbers it did not have yet, which were the defaults."""
    return {f.name: stage.get(f.name, f.default) for f in fields(Stage)}


def warn_of_unfinished(record: dict[str, Any], file: Path) -> None:
    """Say that the stage that made a checkpoint did not come to its end, if it is so."""
    if record["step"] < (steps := record["stage"]["steps"]):
        logger.warning("%s is not finished: step %d of %d", file, record["step"], steps)


def with_teachers(
    records: list[dict[str, Any]], whose: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records and those of the teachers' training, each with what it is of: a stage of
    `whose` run."""
    for record in records:
        of = f"{record['stage']['name']} of {whose}"
        yield of, record
        if record["teacher"]:
            yield from with_teachers(record["teacher"]["records"], f"the teacher of {of}")


def share_summaries(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records as a checkpoint holds them. Equal summaries of data, and equal teachers, are
    one object: the digests of a thousand images are in it once then, however often they were
    trained on, and a teacher's history once, whatever it taught. Digests are a tensor (images, 32)
    of bytes: of text a checkpoint may hold little, see utils.declared."""
    data: dict[str, Any] = {}
    teachers: dict[str, Any] = {}

    def share(record: dict[str, Any]) -> dict[str, Any]:
        summary, teacher = record.get("data_summary"), record.get("teacher")
        if teacher:
            own = {**teacher, "records": [share(behind) for behind in teacher["records"]]}
            known = teachers.setdefault(teacher["sha256"], own)
            teacher = known if known == own else own
        if summary and record["data"] not in data:
            data[record["data"]] = _with_tensor(summary)
        summary = summary and data[record["data"]]
        return {**record, "data_summary": summary, "teacher": teacher}

    return [share(record) for record in records]


def with_texts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A checkpoint's records with digests as text, a list for each data."""
    lists: dict[int, list[str]] = {}

    def expand(record: dict[str, Any]) -> dict[str, Any]:
        summary = record.get("data_summary")
        if not summary or not isinstance(table := summary.get("sha256"), Tensor):
            return {}
        if id(table) not in lists:
            text = table.numpy().tobytes().hex()
            lists[id(table)] = [text[i : i + 64] for i in range(0, len(text), 64)]
        return {"data_summary": {**summary, "sha256": lists[id(table)]}}

    return [_changed(record, expand) for record in records]


def _with_tensor(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary with its digests as a tensor, if they are digests."""
    digests = summary.get("sha256")
    if not digests or not _has_digests(summary):
        return summary
    if not all(is_of(digest, str) and DIGEST.fullmatch(digest) for digest in digests):
        return summary
    values = bytearray.fromhex("".join(digests))
    return {**summary, "sha256": torch.frombuffer(values, dtype=torch.uint8).view(-1, 32)}


def without_digests(record: dict[str, Any]) -> dict[str, Any]:
    """A training record without the digest of every image, to be read by people."""

    def shorten(own: dict[str, Any]) -> dict[str, Any]:
        summary = own["data_summary"] or {}
        return {"data_summary": {k: v for k, v in summary.items() if k != "sha256"}}

    return _changed(record, shorten)


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
        except (OSError, ValueError):
            continue
        if _has_digests(note) and is_of(note.get("fingerprint"), str):
            notes[note["fingerprint"]] = note
    return notes


def _has_digests(summary: Any) -> bool:
    return isinstance(summary, dict) and isinstance(summary.get("sha256"), list)


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
