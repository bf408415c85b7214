"""Training states, damaged or of the wrong kinds, and the commands that read them."""

import functools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from models.team23_LKDN import LKDN
from tests.fuzz.checkpoints import make_file
from tests.fuzz.damage import Rng
from tests.fuzz.kinds import Kind
from train import checkpoint, export
from train.optim import learning_rate, make_optimizers, set_learning_rate
from train.recipes import STAGES
from train.records import training_records
from train.reparam import training_form
from utils.files import write_json
from utils.weights import CheckpointError, load_state, read_checkpoint, state_dict_of

STAGE = replace(STAGES[1], optimizer="muon", steps=5)
SEED, DATA = 4, "a fingerprint"
WORK = {"steps": 2, "minutes": 0.5, "environment": {"torch": "2.13", "device": "a chip"}}


def new_state() -> checkpoint.State:
    """A run before its first step, of a small network."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    form = training_form(LKDN(channels=4, blocks=1))
    ema = {name: p.detach().clone() for name, p in form.named_parameters()}
    return checkpoint.State(form, ema, make_optimizers(form, STAGE))


def step(state: checkpoint.State) -> None:
    """What training does with the state in one step."""
    set_learning_rate(state.optimizers, learning_rate(STAGE, 0))
    for parameter in state.net.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in state.optimizers:
        optimizer.step()


@functools.cache
def seeds() -> list[Any]:
    """The content of a state after two steps, alone and after a stage before."""
    state = new_state()
    step(state)
    step(state)
    state.step, state.history = 2, [WORK]
    contents = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            path = Path(folder, "stage1.pt")
            checkpoint.save(path, state, STAGE, SEED, DATA)
            saved = read_checkpoint(path)
            contents.append(saved)
            state.before = training_records(saved, path.parent)
            state.init = {"name": "w.pth", "sha256": "0" * 64}
    return contents


def make(rng: Rng, folder: Path) -> Path:
    """A damaged state."""
    return make_file(rng, folder, seeds(), "stage1.pt")


def resumed(path: Path) -> None:
    """train.py --resume, and the next step and the next state."""
    state = new_state()
    checkpoint.resume(path, state, STAGE, SEED, DATA)
    step(state)
    checkpoint.save(path.with_name("next.pt"), state, STAGE, SEED, DATA)
    read_checkpoint(path.with_name("next.pt"))


def started_from(path: Path) -> None:
    """train.py --init."""
    saved = read_checkpoint(path)
    load_state(new_state().net, state_dict_of(saved, path), path)
    if records := training_records(saved, path.parent):
        assert isinstance(records[-1]["step"] < records[-1]["stage"]["steps"], bool)


def exported(path: Path) -> None:
    """train/export.py, and what it writes of the training where weights are shipped."""
    export.export(path, path.with_name("fused.pth"))
    records = training_records(read_checkpoint(path), path.parent)
    if records and not any(record["init"] for record in records):
        export.commands(records)
        write_json(path.with_name("record.json"), records)


def attack(path: Path) -> None:
    """All that commands do with a state, each from the file."""
    refused = None
    for use in (resumed, started_from, exported):
        try:
            use(path)
        except (CheckpointError, ArithmeticError) as error:
            refused = error
    if refused:
        raise refused


KIND = Kind("states", make, attack, (CheckpointError, ArithmeticError))
