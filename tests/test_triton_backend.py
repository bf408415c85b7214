"""Triton where it cannot run, CUDA graphs, TF32: what of the GPU's path shows without a GPU."""

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deploy import backends, cuda_graphs, triton_backend
from deploy.backends import BackendError
from models.team23_LKDN import LKDN
from utils import devices

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture()
def net() -> LKDN:
    torch.manual_seed(0)
    return LKDN(4, 1).eval().requires_grad_(False)


def no_compiler() -> Exception:
    return RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")


def compile_error() -> Exception:
    from triton.compiler.errors import CompilationError

    error = CompilationError("def kernel():\n    tl.dot(a, b)\n", None, "shapes do not match")
    assert "\n" in str(error)
    return error


def out_of_resources() -> Exception:
    from triton.runtime.errors import OutOfResources

    return OutOfResources(300000, 232448, "shared memory")


def out_of_memory() -> Exception:
    return RuntimeError("Triton Error [CUDA]: out of memory")


def missing() -> Exception:
    return ImportError("libcuda.so.1: cannot open shared object file")


@pytest.fixture()
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[Exception], None]:
    """Let Triton seem possible on the CPU, and fail with an error when a network is made."""
    pytest.importorskip("triton", reason="triton is not installed")
    from kernels import triton_network

    def apply(error: Exception) -> None:
        def fail(*_: object) -> nn.Module:
            raise error

        monkeypatch.setattr(triton_backend, "refusal", lambda device: None)
        monkeypatch.setattr(triton_network, "FusedLKDN", fail)
        monkeypatch.setitem(backends.AUTO, "cpu", backends.AUTO["cuda"])

    return apply


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (no_compiler, "RuntimeError: Failed to find C compiler"),
        (compile_error, "CompilationError: shapes do not match"),
        (out_of_resources, "OutOfResources: out of resource: shared memory, Required: 300000"),
        (out_of_memory, "RuntimeError: Triton Error [CUDA]: out of memory"),
        (missing, "ImportError: libcuda.so.1"),
    ],
)
def test_auto_falls_back_with_one_line(
    error: Callable[[], Exception],
    words: str,
    net: LKDN,
    broken: Callable[[Exception], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken(error())
    fast = backends.make("auto", net)
    assert (fast.name, fast.precision) == ("channels_last", "fp32")
    (said,) = caplog.records
    assert said.levelname == "WARNING" and "\n" not in said.message
    assert said.message.startswith("running on channels_last in fp32, not on the faster triton: ")
    assert words in said.message
    with pytest.raises(BackendError) as raised:
        backends.make("triton", net)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_auto_passes_over_whatever_fails(net: LKDN, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> Callable[[Tensor], Tensor]:
        def run(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    for name in ("native", "openvino", "onnxruntime", "channels_last"):
        monkeypatch.setitem(backends._MAKERS, name, fails)
    assert backends.make("auto", net).name == "eager"
    monkeypatch.setitem(backends._MAKERS, "eager", fails)
    with pytest.raises(BackendError, match="got none: native: OutOfMemoryError: CUDA out of mem"):
        backends.make("auto", net)


def test_old_gpus_are_refused_before_triton_is_called(
    net: LKDN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLVM ends the process on them, which nobody can catch."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setitem(sys.modules, "kernels.triton_network", None)  # an import would fail
    with pytest.raises(BackendError, match=r"8\.0 or above, got 7\.5 \(Tesla T4\)$"):
        backends._MAKERS["triton"](net, "fp16", CUDA)
    for capability in ((8, 0), (9, 0), (12, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert triton_backend.refusal(CUDA) is None


def test_want_of_memory_has_the_name_that_tiling_knows() -> None:
    def fail_with(message: str) -> None:
        def run(x: Tensor) -> Tensor:
            raise RuntimeError(message)

        triton_backend._name_want_of_memory(run, torch.empty(0))

    for message in ("Triton Error [CUDA]: out of memory", "CUDA error: out of memory"):
        with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
            fail_with(message)
    with pytest.raises(RuntimeError, match="illegal") as raised:
        fail_with("an illegal memory access was encountered")
    assert not isinstance(raised.value, torch.OutOfMemoryError)


def test_half_precision_takes_less_memory() -> None:
    full, half = (backends.Backend("triton", p, torch.relu).memory for p in ("fp32", "fp16"))
    assert half < full == backends.MEMORY["triton"]


@pytest.mark.parametrize("name", ["eager", "channels_last", "auto"])
def test_float32_is_not_tf32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(torch.backends.cudnn.allow_tf32)
            return x

    monkeypatch.setitem(backends.AUTO, "cpu", ("channels_last", "eager"))
    before = torch.backends.cudnn.allow_tf32
    backends.make(name, Net())(torch.rand(1, 3, 4, 4))
    assert set(seen) == {False} and torch.backends.cudnn.allow_tf32 == before


def test_threads_that_end_in_any_order_leave_tf32_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32
    first, second = devices.without_tf32(), devices.without_tf32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not torch.backends.cudnn.allow_tf32
    second.__exit__(None, None, None)
    assert torch.backends.cudnn.allow_tf32 == before


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
    captures: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[int] = []

    def fail(*_: object, **__: object) -> None:
        tries.append(1)
        raise RuntimeError("Triton Error [CUDA]: out of memory")

    run, fast = run_of()
    monkeypatch.setattr(torch.cuda, "graph", fail)
    x = torch.rand(1, 3, 5, 6)
    assert all(torch.equal(run(x), 2 * x) for _ in range(4))
    assert len(tries) == 1  # it would cost the other sizes their graphs each time


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
