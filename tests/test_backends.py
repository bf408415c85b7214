"""Every backend against the plain network in float64, and how often it compiles."""

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from deploy import backends, runners
from deploy.backends import make
from deploy.bench.worker import load_shipped
from deploy.runners import BackendError
from kernels import native_library
from models.team23_LKDN import LKDN
from utils import evaluate
from utils.datasets import find

CPU = torch.device("cpu")
SIZES = [(1, 1), (1, 40), (7, 13), (64, 64), (65, 31)]


@pytest.fixture(scope="module")
def net() -> LKDN:
    """The challenge's network with weights grown as training grows them."""
    torch.manual_seed(0)
    net = LKDN().eval().requires_grad_(False)
    for name in net.blocks:
        block = net.get_submodule(name)
        for layer in (block.c5, block.atten.pointwise, block.atten.depthwise):
            layer.weight *= 30
            layer.bias *= 30
    return net


def made(name: str, net: LKDN, precision: str) -> backends.Backend:
    """The backend, or a skip with its reason where it cannot run."""
    try:
        return make(name, net, precision, CPU)
    except BackendError as reason:
        pytest.skip(str(reason))


# Float32: sums in another order. Half precision and bfloat16: 11 and 8 bits through 40 layers,
# a normalisation in each block of them.
TOLERANCES = {"fp32": 2e-5, "fp16": 2e-2, "bf16": 2e-1}


@pytest.mark.parametrize("precision", backends.PRECISIONS)
@pytest.mark.parametrize("name", [n for n in backends.NAMES if n not in ("compile", "triton")])
def test_backend_computes_the_network(name: str, precision: str, net: LKDN) -> None:
    fast = made(name, net, precision)
    exact = copy.deepcopy(net).double()
    for size in SIZES:
        x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(sum(size)))
        y = fast(x)
        assert y.dtype == torch.float32 and y.shape == (1, 3, 4 * size[0], 4 * size[1])
        error = float((y - exact(x.double())).abs().max())
        assert error < TOLERANCES[precision], (size, error)
    assert fast(torch.rand(2, 3, 5, 6)).shape == (2, 3, 20, 24)
    first, second = torch.rand(2, 1, 3, 9, 9)
    kept = fast(first)
    before = kept.clone()
    fast(second)
    assert (kept == before).all()  # a later image does not write over an earlier result


def test_native_in_bf16_keeps_the_psnr(root: Path) -> None:
    samples = [evaluate.load(pair) for pair in find("demo", root / "data").pairs]
    exact, fast = (
        evaluate.validate(made("native", load_shipped(), precision), samples, CPU).psnr_y
        for precision in ("fp32", "bf16")
    )
    assert abs(fast - exact) <= 0.012


def test_native_in_bf16_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "cpu_features", lambda: {"GenuineIntel", "avx512_bf16"})
    with pytest.raises(BackendError, match="a CPU with AMX that"):
        make("native", LKDN(4, 1), "bf16")


def test_native_refuses_what_its_library_would_read_past(net: LKDN) -> None:
    fast = made("native", net, "fp32")
    for shape in ((1, 1, 5, 6), (3, 5, 6), (1, 4, 5, 6)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\)"):
            fast(torch.rand(shape))


def test_backend_leaves_the_network_alone(net: LKDN) -> None:
    before = copy.deepcopy(net.state_dict())
    for name in ("channels_last", "eager"):
        made(name, net, "bf16")
    for key, value in net.state_dict().items():
        assert value.dtype == torch.float32 and value.is_contiguous()
        assert (value == before[key]).all()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # of torch in torch
def test_compile_computes_the_network_and_compiles_three_times_at_most() -> None:
    """100 sizes, one graph; a height or width of 1, which torch treats apart, may need two more."""
    torch.manual_seed(0)
    net = LKDN(4, 1).eval().requires_grad_(False)
    fast = made("compile", net, "fp32")
    from torch._dynamo.utils import counters

    counters.clear()
    for x in hundred_sizes():
        assert (fast(x) - net(x)).abs().max() < 2e-5
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def hundred_sizes() -> list[Tensor]:
    rng = np.random.default_rng(0)
    return [torch.rand(1, 3, *map(int, rng.integers(2, 24, 2))) for _ in range(100)]


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_hundred_sizes_compile_once(
    name: str, net: LKDN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runtime compiles in `make`, from one graph; later images are only run."""
    from deploy import onnx_graph

    built = []
    monkeypatch.setattr(onnx_graph, "build", counting(onnx_graph.build, built))
    small = LKDN(4, 1).eval().requires_grad_(False)
    fast = made(name, small, "fp32")
    for x in hundred_sizes():
        assert (fast(x) - small(x)).abs().max() < 2e-5
    assert len(built) == 1


def test_openvino_threads_take_turns() -> None:
    fast = made("openvino", LKDN(4, 1).eval().requires_grad_(False), "fp32")
    images = torch.rand(1, 3, 9, 20), torch.rand(1, 3, 30, 40)
    expected = [fast(x) for x in images]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: fast(images[i % 2]), range(120)))
    assert [i for i, y in enumerate(results) if not torch.equal(y, expected[i % 2])] == []


def test_native_compiles_once_for_a_hundred_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernels import native_library

    compiled: list[None] = []
    monkeypatch.setattr(native_library, "_compile", counting(native_library._compile, compiled))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = LKDN(4, 1).eval().requires_grad_(False)
    fast = made("native", small, "fp32")
    for x in hundred_sizes():
        assert (fast(x) - small(x)).abs().max() < 2e-5
    assert len(compiled) == 1


def counting(build: Callable, calls: list[None]) -> Callable:
    def run(*args: object, **options: object) -> object:
        calls.append(None)
        return build(*args, **options)

    return run


def test_auto_takes_the_first_that_runs_and_is_exact(
    net: LKDN, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(*_: object) -> Callable:
        raise BackendError("not here")

    def wrong(*_: object) -> Callable:
        return lambda x: net(x) + 2 * backends.TOLERANCES["fp32"]

    for name in ("native", "openvino"):
        monkeypatch.setitem(backends._MAKERS, name, absent)
    monkeypatch.setitem(backends._MAKERS, "onnxruntime", wrong)
    fast = make("auto", net)
    assert (fast.name, fast.precision) == ("channels_last", "fp32")
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert said.message == "running on channels_last in fp32, not on the faster native: not here"
    monkeypatch.setattr(backends, "AUTO", {"cpu": ("openvino", "onnxruntime")})
    with pytest.raises(BackendError, match="within 0.002"):
        make("auto", net)


@pytest.mark.parametrize(
    ("precision", "error", "taken"),
    [
        ("bf16", 0.9 * backends.TOLERANCES["bf16"], "bf16"),
        ("bf16", 1.1 * backends.TOLERANCES["bf16"], "fp32"),
        ("fp16", 0.9 * backends.TOLERANCES["fp16"], "fp16"),
        ("fp16", 1.1 * backends.TOLERANCES["fp16"], "fp32"),
    ],
)
def test_auto_goes_up_to_float32_where_less_is_not_exact(
    precision: str, error: float, taken: str, net: LKDN, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rounding(_: LKDN, precision: str, __: torch.device) -> Callable:
        return lambda x: net(x) + (error if precision != "fp32" else 0)

    monkeypatch.setitem(backends._MAKERS, "native", rounding)
    fast = make("auto", net, precision)
    assert (fast.name, fast.precision) == ("native", taken)


@pytest.mark.parametrize("name", ["eager", "channels_last", "native", "openvino"])
def test_auto_takes_the_shipped_network_in_bf16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that compute in it round alike, about 2e-2 at most on random input."""
    shipped = load_shipped()
    made(name, shipped, "bf16")  # skips where it cannot
    if name in ("eager", "channels_last"):
        monkeypatch.setattr(native_library, "cpu_features", lambda: {"amx_bf16"})
    monkeypatch.setattr(backends, "AUTO", {"cpu": (name,)})
    assert make("auto", shipped, "bf16").precision == "bf16"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_auto_takes_nothing_that_the_cpu_emulates(
    precision: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Which is as exact, and takes far longer than float32."""
    monkeypatch.setattr(native_library, "cpu_features", lambda: {"avx2"})
    monkeypatch.setattr(backends, "AUTO", {"cpu": ("channels_last", "eager")})
    fast = make("auto", LKDN(4, 1), precision)
    assert (fast.name, fast.precision) == ("channels_last", "fp32")
    assert f"not in {precision}: this CPU has no instructions for {precision}" in caplog.text


def test_the_plain_network_in_half_precision_is_within_what_auto_allows() -> None:
    shipped = load_shipped()
    x = torch.rand(1, 3, 48, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = make("eager", shipped)(x)
        for precision in ("fp16", "bf16"):
            error = float((make("eager", shipped, precision)(x) - expected).abs().max())
            assert error <= backends.TOLERANCES[precision] < 4 * error


def test_auto_says_why_it_is_not_in_the_precision_asked_for(
    net: LKDN, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def float32_alone(_: LKDN, precision: str, __: torch.device) -> Callable:
        if precision != "fp32":
            raise BackendError("only fp32 here")
        return lambda x: net(x)

    monkeypatch.setitem(backends._MAKERS, "native", float32_alone)
    assert make("auto", net).precision == "fp32" and not caplog.records
    assert make("auto", net, "fp16").precision == "fp32"
    (said,) = caplog.records
    assert said.levelname == "WARNING"
    assert said.message == "running on native in fp32, not in fp16: only fp32 here"


def test_auto_passes_over_what_gives_no_numbers(
    net: LKDN, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(backends._MAKERS, "native", lambda *_: lambda x: net(x) * torch.nan)
    monkeypatch.setattr(backends, "AUTO", {"cpu": ("native", "eager")})
    assert make("auto", net).name == "eager"
    assert "not on the faster native: it is off by nan" in caplog.text


@pytest.mark.parametrize(
    ("name", "precision", "message"),
    [
        ("fastest", "fp32", "expected a backend of eager"),
        ("eager", "int8", "a precision of fp32"),
        ("triton", "fp16", "needs a CUDA device"),
        ("onnxruntime", "bf16", "fp32 or fp16"),
        ("native", "fp16", "fp32 or bf16"),
    ],
)
def test_what_cannot_run_is_refused(
    name: str, precision: str, message: str, net: LKDN, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match=message):
        make(name, net, precision, CPU)


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runners.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match="requirements-fast.txt"):
        runners.need("openvino")


@pytest.mark.filterwarnings("ignore:Specified provider")  # only where it was not built for CUDA
def test_onnxruntime_goes_to_no_other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """It lists what it was built for, and without CUDA's libraries takes the CPU unasked."""
    runtime = pytest.importorskip("onnxruntime")
    monkeypatch.setattr(
        runtime,
        "get_available_providers",
        lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"],
    )
    if torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(BackendError, match="cannot use cuda here, only CPUExecutionProvider"):
        runners.prepare_onnxruntime(LKDN(4, 1).eval(), "fp32", torch.device("cuda"))


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_library_that_fails_is_one_line(
    name: str, net: LKDN, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one of its own libraries is missing, and where it does not know this CPU."""
    package = "onnx" if name == "onnxruntime" else name
    (tmp_path / f"{package}.py").write_text("raise ImportError('libx.so: no such file\\nin x')\n")
    (tmp_path / "onnxruntime.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for module in [m for m in sys.modules if m.partition(".")[0] in (package, "onnxruntime")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(BackendError) as raised:
        make(name, net)
    said = f"expected {package} to be whole, got ImportError: libx.so: no such file: install it"
    assert str(raised.value) == f"{said} anew"

    def fails(*_: object) -> Callable:
        raise RuntimeError("this CPU is not known\n  in a line of C++")

    monkeypatch.setitem(backends._MAKERS, name, fails)
    with pytest.raises(BackendError) as raised:
        make(name, net)
    assert str(raised.value) == f"{name} does not run here: RuntimeError: this CPU is not known"
