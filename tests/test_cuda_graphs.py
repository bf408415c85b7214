"""CUDA graphs without a GPU: what is recorded when, by a fake of torch's graphs."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy import cuda_graphs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Doubled(nn.Module):
    """A network that remembers what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((x, 2 * x))
        return self.calls[-1][1]


class FakeGraph:
    """Records what the network computes while it is being captured, and computes it again."""

    replays = 0

    def replay(self) -> None:
        FakeGraph.replays += 1
        self.result.copy_(2 * self.source)


@pytest.fixture()
def captures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Stand-ins for CUDA's graphs; the list grows by the arguments of each capture."""
    made: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def capture(graph: FakeGraph, pool: object, stream: object, **options: object) -> Iterator:
        made.append({"pool": pool, "stream": stream} | options)
        yield
        graph.source, graph.result = fast.calls[-1]

    fast, current = Doubled(), ["torch's stream"]
    monkeypatch.setattr(FakeGraph, "replays", 0)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (len(made), 1))
    streams = itertools.count(1)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"{device} {next(streams)}")
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[0])
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.__setitem__(0, stream))
    capture.fast = fast  # type: ignore[attr-defined]
    yield made


def run_of(limit: int = cuda_graphs.GRAPHS) -> tuple[Callable[[Tensor], Tensor], Doubled]:
    fast = torch.cuda.graph.fast  # type: ignore[attr-defined]
    return cuda_graphs.replay_graphs(fast, limit), fast


def test_a_graph_is_recorded_once_and_replayed_in_either_mode(
    captures: list[dict[str, Any]],
) -> None:
    run, fast = run_of()
    x = torch.rand(1, 3, 5, 6)
    with torch.inference_mode():
        results = [run(x), run(x)]
    kept = run(x + 1)  # a tensor of inference_mode may not be written to here
    results.append(run(x))
    assert all(torch.equal(y, 2 * x) for y in results) and torch.equal(kept, 2 * (x + 1))
    assert len(fast.calls) == 2 and FakeGraph.replays == 3
    assert captures == [{"pool": (0, 1), "stream": "cpu 1", "capture_error_mode": "thread_local"}]


def test_graphs_share_a_pool_and_the_oldest_is_dropped(captures: list[dict[str, Any]]) -> None:
    """A pool's memory is shared by what is recorded on one stream alone."""
    run, fast = run_of(limit=2)
    for width in (5, 6, 7, 5):
        for _ in range(3):
            x = torch.rand(1, 3, 4, width)
            assert torch.equal(run(x), 2 * x)
    assert len(captures) == 4
    assert len({(capture["pool"], capture["stream"]) for capture in captures}) == 1


def test_an_image_of_another_dtype_has_a_graph_of_its_own(captures: list[dict[str, Any]]) -> None:
    """Copied into the first one's memory it would lose bits, and come back in its dtype."""
    run, fast = run_of()
    x = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    for image in (x.half(), x, x.half(), x, x.half(), x):
        y = run(image)
        assert y.dtype == image.dtype and torch.equal(y, 2 * image)
    assert len(captures) == FakeGraph.replays / 2 == 2


def test_the_graph_used_longest_ago_is_dropped(captures: list[dict[str, Any]]) -> None:
    run, fast = run_of(limit=2)
    first, second, third = (torch.rand(1, 3, 4, width) for width in (5, 6, 7))
    for x in (first, first, second, second, first, third, first):
        assert torch.equal(run(x), 2 * x)
    assert len(captures) == 2 and FakeGraph.replays == 4  # the second is what went for the third


def test_large_images_are_not_recorded(
    captures: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST_PIXELS", 20)
    run, fast = run_of()
    for shape in ((1, 3, 4, 6), (2, 3, 4, 4), (1, 3, 4, 5)):
        x = torch.rand(shape)
        assert all(torch.equal(run(x), 2 * x) for _ in range(3))
    assert len(captures) == 1


def test_want_of_memory_while_recording_costs_the_graph_alone(
    captures: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[int] = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    run, fast = run_of()
    other, x = torch.rand(1, 3, 2, 2), torch.rand(1, 3, 5, 6)
    assert all(torch.equal(run(other), 2 * other) for _ in range(2))
    capture = torch.cuda.graph
    monkeypatch.setattr(torch.cuda, "graph", fail)
    assert all(torch.equal(run(x), 2 * x) for _ in range(4))
    assert len(tries) == 1  # it would cost the other sizes their graphs each time
    assert torch.equal(run(other), 2 * other)
    assert FakeGraph.replays == 1  # the other's, before: its memory was given back
    monkeypatch.setattr(torch.cuda, "graph", capture)
    assert torch.equal(run(other), 2 * other) and FakeGraph.replays == 2  # recorded anew
    assert not caplog.records


def test_a_capture_that_fails_is_the_last_and_one_line(
    captures: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After graphs that were recorded well, too, and on the stream of before."""
    run, fast = run_of()
    other = torch.rand(1, 3, 2, 2)
    assert all(torch.equal(run(other), 2 * other) for _ in range(2))
    tries: list[int] = []

    @contextlib.contextmanager
    def fail(graph: FakeGraph, pool: object, stream: Any, **_: object) -> Iterator:
        tries.append(1)
        torch.cuda.set_stream(stream)  # as torch leaves it
        yield
        raise RuntimeError("operation not permitted when stream is capturing\nand advice")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    for shape in (
        (1, 3, 5, 6),
        (1, 3, 5, 6),
        (1, 3, 5, 6),
        (1, 3, 7, 8),
        (1, 3, 7, 8),
        (1, 3, 2, 2),
    ):
        x = torch.rand(shape)
        assert torch.equal(run(x), 2 * x)
    assert len(tries) == 1 and FakeGraph.replays == 1
    assert torch.cuda.current_stream(CPU) == "torch's stream"
    (said,) = caplog.records
    assert said.levelname == "WARNING" and said.message == (
        "running without CUDA graphs, which cannot be recorded: "
        "RuntimeError: operation not permitted when stream is capturing"
    )
