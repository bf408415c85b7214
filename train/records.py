"""What a checkpoint and a run's folder say of how its weights came about."""

import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from train.packs import Pack
from train.recipes import Stage
from train.state_check import FIELDS, check_state, complete_stage, is_of
from utils.datasets import SCALE, names_of
from utils.files import read_json, write_json
from utils.weights import CheckpointError

logger = logging.getLogger(__name__)

STATES = ("stage2.pt", "stage1.pt")  # training states in the folder of a run, the last first
DIGEST = re.compile("[0-9a-f]{64}")  # of an image


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
    """A training record to be read by people, and anywhere: without the digest of every image, and
    how many files were skipped in place of their paths and reasons."""

    def shorten(own: dict[str, Any]) -> dict[str, Any]:
        summary = own["data_summary"] or {}
        shown = {k: v for k, v in summary.items() if k != "sha256"}
        if isinstance(reasons := shown.get("skipped"), list):
            shown["skipped"] = len(reasons)
        return {"data_summary": shown}

    return _changed(record, shorten)


def note_data(run: Path, stage: Stage, folders: list[Path], first: int | None, data: Pack) -> None:
    """Write what a stage was trained on beside its checkpoint, with the digest of each image. Where
    they come as a pack of what was noted before, the folders are those."""
    places = [folder.resolve() for folder in folders]
    names = ["/".join(names_of(place, place)) for place in places]
    known = _data_notes(run).get(data.fingerprint)
    if known and all(folder.suffix == ".json" for folder in folders):
        names, first = known.get("folders", names), known.get("first")
    write_json(
        run / f"{stage.name}_data.json",
        {
            "folders": names,
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
