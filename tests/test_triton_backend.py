"""Triton where it cannot run, and TF32: what of the GPU's path shows without a GPU."""

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from deploy import backends, triton_backend
from deploy.runners import BackendError
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


def test_kernels_that_compute_something_else_are_refused(net: LKDN) -> None:
    """On a H200 fp16 was off by 0.03 where float32 was right, as both are in the interpreter."""

    def off_by(amount: float, from_call: int = 1) -> Callable[[Tensor], Tensor]:
        calls: list[int] = []

        def run(x: Tensor) -> Tensor:
            calls.append(1)
            return net(x) + (amount if len(calls) >= from_call else 0)

        return run

    for dtype, most in triton_backend.TOLERANCES.items():
        triton_backend.check(off_by(0.9 * most), net, 3, dtype, CPU, times=3)
        for wrong in (off_by(1.1 * most, from_call=3), off_by(float("nan"))):
            with pytest.raises(ArithmeticError, match="of the plain network's on cpu, got"):
                triton_backend.check(wrong, net, 3, dtype, CPU, times=3)


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
