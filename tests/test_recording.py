"""A step's update as one recorded piece, and recordings by a fake of torch's graphs."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from models.team23_LKDN import LKDN
from train import recording, updates
from train.forward import _replayed, make_gradients
from train.optim import learning_rate, make_optimizers
from train.recipes import LONG, STAGES, TRIED, Engine, Stage
from train.recording import Recorder, recorded
from train.reparam import training_form
from train.soap import EARLY, EVERY

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
STAGES_OF = {
    "adam": replace(STAGES[1], form="inference"),
    "muon": replace(TRIED, weight_decay=0.02),
    "soap": LONG,
}


class FakeGraph:
    """Counts its replays."""

    made: list["FakeGraph"] = []

    def __init__(self) -> None:
        self.replays = 0
        FakeGraph.made.append(self)

    def replay(self) -> None:
        self.replays += 1


@pytest.fixture()
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[FakeGraph]:
    """Stand-ins for CUDA's graphs, as they are made."""

    @contextlib.contextmanager
    def capture(graph: FakeGraph, **options: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(FakeGraph, "made", [])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    current = ["a stream"]
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    return FakeGraph.made


def test_work_is_recorded_after_it_ran_three_times(graphs: list[FakeGraph]) -> None:
    calls: list[int] = []
    run = recorded(lambda: calls.append(1) or torch.tensor(len(calls)), Recorder())
    assert [int(run()) for _ in range(3)] == [1, 2, 3] and not graphs
    assert int(run()) == 4 and int(run()) == 4  # the tensor of the recording, which was replayed
    assert len(calls) == 4 and [graph.replays for graph in graphs] == [2]


def test_what_cannot_be_recorded_runs_on_with_one_line(
    graphs: list[FakeGraph], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @contextlib.contextmanager
    def capture(graph: FakeGraph, **options: object) -> Iterator[None]:
        torch.cuda.set_stream("the recording's")  # where torch leaves it
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    monkeypatch.setattr(torch.cuda, "graph", capture)
    calls, recorder = [0, 0], Recorder()

    def count(which: int) -> None:
        calls[which] += 1

    runs = [recorded(partial(count, which), recorder) for which in (0, 1)]
    for _ in range(6):
        for run in runs:
            run()
    # One within the recording, of which nothing runs on a GPU. What would be recorded after it
    # would read what is not written in its place any more.
    assert calls == [7, 6] and len(graphs) == 1
    assert torch.cuda.current_stream() == "a stream"
    (line,) = caplog.messages
    assert "without CUDA graphs" in line and line.endswith("when stream is capturing")


def test_a_replay_finds_its_patches_where_the_recording_read_them(graphs: list[FakeGraph]) -> None:
    read: list[list[Tensor]] = []
    replay = _replayed(
        lambda *patches: read.append(patches) or torch.zeros(()), torch.device("cpu"), Recorder()
    )
    for step in range(7):
        generator = torch.Generator().manual_seed(step)
        patches = [
            torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=generator)
            for side in (4, 16)
        ]
        replay(*patches)
        assert all(map(torch.equal, read[-1], patches))
    assert len(read) == 4 and graphs[0].replays == 4


def train(
    stage: Stage, recorder: Recorder | None, steps: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and average after some steps of made-up gradients."""
    torch.manual_seed(0)
    net = LKDN(channels=6, blocks=1)
    net = training_form(net) if stage.form == "training" else net
    weights = dict(net.named_parameters())
    average = {name: p.detach().clone() for name, p in weights.items()}
    optimizers = make_optimizers(net, stage)
    update = updates.make_update(optimizers, average, weights, stage.ema, recorder)
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
    monkeypatch.setattr(updates, "recorded", lambda launch, recorder: launch)
    steps = EVERY + 5  # past all early bases and a later one
    stage = replace(STAGES_OF[optimizer], steps=steps)
    assert steps > EARLY
    alone, plain = train(stage, Recorder(), steps), train(stage, None, steps)
    for got, expected in zip(alone, plain, strict=True):
        for name, value in expected.items():
            # The numbers are float32 there.
            torch.testing.assert_close(got[name], value, rtol=1e-5, atol=1e-5)


def test_an_optimiser_that_fails_has_its_rate_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no capture")

    adam = torch.optim.Adam([torch.zeros(2, requires_grad=True)], lr=0.5)
    monkeypatch.setattr(adam, "step", fail)
    with pytest.raises(RuntimeError, match="no capture"):
        updates._launch(adam, iter([torch.tensor(0.1)]))
    assert adam.param_groups[0]["lr"] == 0.5


def losses_on_cuda(stage: Stage, engine: Engine, broken: str = "") -> list[float]:
    """The losses of all steps, each of other patches."""
    device = torch.device("cuda")
    torch.manual_seed(0)
    net = LKDN(channels=6, blocks=1)
    net = (training_form(net) if stage.form == "training" else net).to(device)
    teacher = LKDN(channels=8, blocks=2) if stage.truth < 1 else None
    weights = dict(net.named_parameters())
    average = {name: p.detach().clone() for name, p in weights.items()}
    recorder = Recorder() if engine.graphs else None
    losses = []
    with recording.own_stream(device):
        gradients = make_gradients(net, stage, device, engine, recorder, teacher)
        update = updates.make_update(
            make_optimizers(net, stage), average, weights, stage.ema, recorder
        )
        for step in range(stage.steps):
            generator = torch.Generator().manual_seed(step)
            hr = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator)
            lr = hr.repeat_interleave(2, 2).repeat_interleave(2, 3)
            losses.append(float(gradients(lr, lr.repeat_interleave(4, 2).repeat_interleave(4, 3))))
            if broken != "frozen" or step < 3:
                update(step, learning_rate(stage, step))
    return losses


@CUDA
@pytest.mark.parametrize("truth", [1.0, 0.5])
@pytest.mark.parametrize("optimizer", STAGES_OF)
def test_recorded_steps_train_as_kernels_do_on_cuda(optimizer: str, truth: float) -> None:
    stage = replace(STAGES_OF[optimizer], batch=2, steps=EVERY + 5, warmup=0, precision="fp32")
    stage = replace(stage, truth=truth)
    plain, recorded = (losses_on_cuda(stage, Engine(graphs=graphs)) for graphs in (False, True))
    frozen = losses_on_cuda(stage, Engine(), broken="frozen")
    expected = torch.tensor(plain)
    # Sums in another order, and steps that follow from them; a run that stopped learning is far.
    apart = 0.1 * (torch.tensor(frozen) - expected).abs().max()
    assert (torch.tensor(recorded) - expected).abs().max() < apart
