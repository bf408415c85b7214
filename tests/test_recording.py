"""A step's update as one recorded piece, and recordings by a fake of torch's graphs."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train import recording, updates
from train.forward import make_gradients
from train.optim import learning_rate, make_optimizers
from train.recipes import LONG, STAGES, TRIED, Engine, Stage
from train.reparam import training_form
from train.soap import EARLY, EVERY

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STAGES_OF = {
    "adam": replace(STAGES[1], form="inference"),
    "muon": replace(TRIED, weight_decay=0.02),
    "soap": LONG,
}


class FakeGraph:
    """Does again what was asked for while it was captured."""

    made: list["FakeGraph"] = []

    def __init__(self) -> None:
        self.again: Callable[[], Any] = lambda: None
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1
        self.again()


@pytest.fixture()
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Stand-ins for CUDA's graphs, as they are made."""

    @contextlib.contextmanager
    def capture(graph: FakeGraph, **options: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(FakeGraph, "made", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "a stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: None)
    return FakeGraph.made


def test_work_is_recorded_after_it_ran_three_times(graphs: list[FakeGraph]) -> None:
    calls: list[int] = []
    run = recording.recorded(lambda: calls.append(1) or torch.tensor(len(calls)))
    assert [int(run()) for _ in range(3)] == [1, 2, 3] and not graphs
    assert int(run()) == 4 and int(run()) == 4  # the tensor of the recording, which was replayed
    assert len(calls) == 4 and [graph.replays for graph in graphs] == [2]


def test_what_cannot_be_recorded_runs_on_with_one_line(
    graphs: list[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def capture(graph: FakeGraph, **options: object) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    calls: list[int] = []
    run = recording.recorded(lambda: calls.append(1))
    for _ in range(6):
        run()
    assert len(calls) == 7  # and one within the recording, of which nothing runs on a GPU
    (line,) = caplog.messages
    assert "without CUDA graphs" in line and line.endswith("when stream is capturing")


def train(stage: Stage, graphs: bool, steps: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and average after some steps of made-up gradients."""
    torch.manual_seed(0)
    net = LKDN(channels=6, blocks=1)
    net = training_form(net) if stage.form == "training" else net
    weights = dict(net.named_parameters())
    average = {name: p.detach().clone() for name, p in weights.items()}
    optimizers = make_optimizers(net, stage)
    update = updates.make_update(optimizers, average, weights, stage.ema, graphs)
    for step in range(steps):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        update(step, learning_rate(stage, step))
    for optimizer in optimizers:  # what a checkpoint says of them holds no tensors of a device
        assert all(isinstance(group["lr"], float) for group in optimizer.param_groups)
    return {name: p.detach() for name, p in weights.items()}, average


@pytest.mark.parametrize("optimizer", STAGES_OF)
def test_numbers_on_the_device_make_the_same_update(
    optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updates, "recorded", lambda launch: launch)
    stage = replace(STAGES_OF[optimizer], steps=EVERY + 5)  # past all early and one later basis
    assert stage.steps > EARLY
    for got, expected in zip(train(stage, True, 45), train(stage, False, 45), strict=True):
        for name, value in expected.items():
            # The numbers are float32 there.
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


@CUDA
@pytest.mark.parametrize("optimizer", STAGES_OF)
def test_recorded_steps_train_as_kernels_do_on_cuda(optimizer: str) -> None:
    device = torch.device("cuda")
    stage = replace(STAGES_OF[optimizer], batch=2, steps=EVERY + 5, lr=1e-3)
    torch.manual_seed(0)
    net = LKDN(channels=6, blocks=1)
    net = (training_form(net) if stage.form == "training" else net).to(device)
    lr, hr = (torch.randint(0, 256, (2, 3, n, n), dtype=torch.uint8).to(device) for n in (8, 32))
    found = []
    for graphs in (False, True):
        own = copy.deepcopy(net)
        weights = dict(own.named_parameters())
        average = {name: p.detach().clone() for name, p in weights.items()}
        with recording.own_stream(device):
            gradients = make_gradients(own, stage, device, Engine(graphs=graphs))
            optimizers = make_optimizers(own, stage)
            update = updates.make_update(optimizers, average, weights, stage.ema, graphs)
            losses = []
            for step in range(stage.steps):
                losses.append(float(gradients(lr, hr)))
                update(step, learning_rate(stage, step))
        found.append(losses)
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-2, atol=1e-2)
