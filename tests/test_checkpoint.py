"""A training state that does not fit, or was damaged, is an error in words and nothing else."""

import copy
import math
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from models.team23_LKDN import LKDN
from train import checkpoint
from train.optim import make_optimizers
from train.recipes import STAGES, Stage
from train.reparam import training_form
from utils.weights import CheckpointError, read_checkpoint

STAGE = replace(STAGES[1], optimizer="muon", steps=3)
SOAP = replace(STAGE, optimizer="soap")


def new_state(stage: Stage) -> checkpoint.State:
    torch.manual_seed(0)
    form = training_form(LKDN(channels=4, blocks=1))
    return checkpoint.State(form, copy.deepcopy(form.state_dict()), make_optimizers(form, stage))


@pytest.fixture(scope="module", params=[STAGE, SOAP], ids=lambda stage: stage.optimizer)
def stage(request: pytest.FixtureRequest) -> Stage:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, stage: Stage) -> dict[str, Any]:
    """A state after one step."""
    state, path = new_state(stage), tmp_path_factory.mktemp("run") / "stage1.pt"
    for parameter in state.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()
    state.step = 1
    checkpoint.save(path, state, stage, 4, "data")
    return read_checkpoint(path)


def record_of(saved: dict[str, Any]) -> dict[str, Any]:
    """A state's own record, as later stages have it."""
    return {key: saved[key] for key in ("stage", "step", "seed", "data", "history")}


def places(content: Any, depth: int) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to every value of a nested record, down to a depth."""
    items: Any = ()
    if isinstance(content, dict):
        items = content.items()
    elif isinstance(content, list):
        items = enumerate(content)
    for key, value in items if depth else ():
        yield (key,)
        yield from ((key, *rest) for rest in places(value, depth - 1))


def test_a_whole_state_is_resumed(saved: dict[str, Any], tmp_path: Path, stage: Stage) -> None:
    torch.save(saved, tmp_path / "stage1.pt")
    state = new_state(stage)
    checkpoint.resume(tmp_path / "stage1.pt", state, stage, 4, "data")
    assert state.step == 1
    assert torch.equal(state.net.c1.weight, saved["params"]["c1.weight"])


def test_damaged_records_of_teachers_and_counts_of_steps(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    def resumed(**changes: Any) -> checkpoint.State:
        usual = sys.getrecursionlimit()
        sys.setrecursionlimit(20_000)  # for whoever writes what is nested deeply
        torch.save({**copy.deepcopy(saved), **changes}, tmp_path / "stage1.pt")
        sys.setrecursionlimit(usual)
        state = new_state(stage)
        state.teacher = {"sha256": "1" * 64, "records": []}
        checkpoint.resume(tmp_path / "stage1.pt", state, stage, 4, "data")
        return state

    own = record_of(saved)
    teacher: dict[str, Any] = {"sha256": "1" * 64, "records": [own]}
    assert resumed(teacher=teacher, before=None).teacher == teacher
    itself: dict[str, Any] = {"sha256": "1" * 64, "records": []}
    itself["records"].append({**own, "teacher": itself})
    deep = teacher
    for _ in range(210):
        deep = {"sha256": "1" * 64, "records": [{**own, "teacher": deep}]}
    wrong: Any
    for wrong in (
        itself,
        deep,
        {"sha256": "1" * 64, "records": [own] * 10**5},
        {"sha256": "1" * 64},
    ):
        with pytest.raises(CheckpointError, match="damaged"):
            resumed(teacher=wrong)
    for wrong in (-1, 0, 0.5, math.inf):
        optimizers = copy.deepcopy(saved["optimizers"])
        optimizers[1]["state"][0]["step"] = torch.tensor(float(wrong))
        with pytest.raises(CheckpointError, match="does not fit Adam"):
            resumed(teacher=teacher, optimizers=optimizers)


def test_a_teachers_history_is_kept_once_whatever_it_taught(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    """100 stages of one teacher of 20 stages are 120 records, not 2120."""
    own = record_of(saved)

    def teacher() -> dict[str, Any]:
        return {"sha256": "1" * 64, "records": [copy.deepcopy(own) for _ in range(20)]}

    state = new_state(stage)
    state.step, state.teacher = 0, teacher()
    state.before = [{**own, "teacher": teacher()} for _ in range(100)]
    checkpoint.save(tmp_path / "stage1.pt", state, stage, 4, "data")
    again = new_state(stage)
    again.teacher = teacher()
    checkpoint.resume(tmp_path / "stage1.pt", again, stage, 4, "data")
    assert len(again.before) == 100 and again.before[99]["teacher"]["sha256"] == "1" * 64
    assert again.before[0]["teacher"]["records"][19]["step"] == own["step"]


def test_one_teacher_of_two_histories_keeps_both(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    """As where the note of its data was lost in between."""
    own, state = record_of(saved), new_state(stage)
    histories = [[{**own, "step": step, "teacher": None}] for step in (2, 3)]
    teachers = [{"sha256": "1" * 64, "records": records} for records in histories]
    state.step, state.before = 0, [{**own, "teacher": teacher} for teacher in teachers]
    checkpoint.save(tmp_path / "stage1.pt", state, stage, 4, "data")
    again = new_state(stage)
    checkpoint.resume(tmp_path / "stage1.pt", again, stage, 4, "data")
    taught = [record["teacher"]["records"] for record in again.before]
    assert [[record["step"] for record in records] for records in taught] == [[2], [3]]


def test_a_history_that_grows_with_every_teacher_of_teachers_is_refused(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    """Few records in the file, and as many as 18^9 on the ways through them."""
    own = record_of(saved)
    teacher: dict[str, Any] = {"sha256": "1" * 64, "records": [own]}
    for _ in range(9):
        teacher = {"sha256": "1" * 64, "records": [{**own, "teacher": teacher}] * 18}
    torch.save({**saved, "teacher": teacher}, tmp_path / "stage1.pt")
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.resume(tmp_path / "stage1.pt", new_state(stage), stage, 4, "data")


def test_digests_of_images_are_kept_once_however_often_they_were_seen(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    """.. and of 300,000 images, too, which are more than a checkpoint may hold as text."""
    own = record_of(saved)

    def record() -> dict[str, Any]:
        summary = {"images": 300_000, "sha256": [f"{i:064x}" for i in range(300_000)]}
        return {**own, "data_summary": summary, "teacher": None}

    sizes, state = [], new_state(stage)
    state.step = 0
    for generations in range(2):
        state.before = [record()]
        if generations:
            teacher = {"sha256": "1", "records": [record()]}
            state.before += [{**record(), "teacher": teacher}]
            state.teacher = {"sha256": "2", "records": [record(), {**record(), "teacher": teacher}]}
        checkpoint.save(tmp_path / "stage1.pt", state, stage, 4, "data")
        sizes.append((tmp_path / "stage1.pt").stat().st_size)
        again = new_state(stage)
        again.teacher = state.teacher
        checkpoint.resume(tmp_path / "stage1.pt", again, stage, 4, "data")
        assert (again.before, again.teacher) == (state.before, state.teacher)
    assert sizes[0] < 33 * 300_000 and sizes[1] < sizes[0] + 5000


@pytest.mark.parametrize(
    "digests",
    [
        torch.zeros(3, 31, dtype=torch.uint8),
        torch.zeros(3, 32),
        torch.zeros(32, 3, dtype=torch.uint8).t(),
        torch.zeros((), dtype=torch.uint8),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_a_table_of_digests_of_another_kind_is_refused(
    saved: dict[str, Any], tmp_path: Path, stage: Stage, digests: torch.Tensor
) -> None:
    before = [{**record_of(saved), "data_summary": {"sha256": digests}, "teacher": None}]
    torch.save({**saved, "before": before}, tmp_path / "stage1.pt")
    with pytest.raises(CheckpointError, match="data_summary"):
        checkpoint.resume(tmp_path / "stage1.pt", new_state(stage), stage, 4, "data")


def test_digests_as_older_checkpoints_have_them_are_read(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    before = [
        {**record_of(saved), "data_summary": {"sha256": ["a" * 64, "no digest"]}, "teacher": None}
    ]
    torch.save({**saved, "before": before}, tmp_path / "stage1.pt")
    again = new_state(stage)
    checkpoint.resume(tmp_path / "stage1.pt", again, stage, 4, "data")
    assert again.before == before
    checkpoint.save(tmp_path / "stage1.pt", again, stage, 4, "data")
    checkpoint.resume(tmp_path / "stage1.pt", again, stage, 4, "data")
    assert again.before == before


@pytest.mark.parametrize(
    "wrong", [None, "text", -1, 1.5, True, [], {}, [3], torch.ones(2)], ids=str
)
def test_a_field_of_another_kind_is_an_error_or_does_not_matter(
    saved: dict[str, Any], tmp_path: Path, stage: Stage, wrong: Any
) -> None:
    path, refused = tmp_path / "stage1.pt", 0
    for keys in random.Random(str(wrong)).sample(list(places(saved, 3)), 24):
        damaged = copy.deepcopy(saved)
        inner: Any = damaged
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = wrong
        torch.save(damaged, path)
        state = new_state(stage)
        try:
            checkpoint.resume(path, state, stage, 4, "data")
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error)
        else:  # what was loaded can be trained on
            for parameter in state.net.parameters():
                parameter.grad = torch.ones_like(parameter)
            for optimizer in state.optimizers:
                optimizer.step()
    assert refused > 5


def test_an_optimiser_that_forgot_a_parameter_is_refused(
    saved: dict[str, Any], tmp_path: Path, stage: Stage
) -> None:
    path = tmp_path / "stage1.pt"
    for left in (0, 1):
        damaged = copy.deepcopy(saved)
        gathered = damaged["optimizers"][-1]["state"]
        for key in list(gathered)[left:]:
            del gathered[key]
        torch.save(damaged, path)
        with pytest.raises(CheckpointError, match="does not fit"):
            checkpoint.resume(path, new_state(stage), stage, 4, "data")
