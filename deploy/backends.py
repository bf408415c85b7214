"""A network made fast by name: what runs it, in which precision, on which device."""

import copy
import importlib
import importlib.util
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from utils import devices
from utils.command import UserError
from utils.text import printable

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PRECISIONS = tuple(DTYPES)
TOLERANCE = 2e-3  # largest difference from the plain float32 network that auto accepts
# The order in which auto tries, fastest first as measured by deploy.bench; compile is left
# out, for it takes longer than it saves on fewer than some hundred images.
AUTO = {
    "cuda": ("triton", "channels_last", "eager"),
    "cpu": ("native", "openvino", "onnxruntime", "channels_last", "eager"),
    "mps": ("eager",),
}
# Bytes a LR pixel that a backend takes at its peak in float32, with the result: as deploy.bench
# measures them, rounded up. Triton's number is counted, not measured: its features, and the results
# that four CUDA graphs keep (a whole tile, those at two edges, the corner).
MEMORY = {
    "eager": 6200,
    "channels_last": 6200,
    "compile": 5000,
    "triton": 2200,
    "native": 1400,
    "onnxruntime": 4800,
    "openvino": 4400,
}
NAMES = tuple(MEMORY)
TRITON_HALF_MEMORY = 1500  # .. in fp16 and bf16

logger = logging.getLogger(__name__)


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the device has no instructions for it, so that torch takes far longer than in
    float32: fp16 on a CPU, and bf16 on one that does not multiply it, or does not say."""
    if device.type != "cpu" or precision == "fp32":
        return False
    from kernels.native_library import cpu_features

    return precision == "fp16" or not cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"}


class BackendError(UserError):
    """A backend that cannot run here, or not in this precision; the message says why."""


@dataclass(frozen=True)
class Backend:
    """A callable (B, 3, H, W) float32, RGB, 0..1 -> (B, 3, 4H, 4W) float32 on the same device."""

    name: str
    precision: str
    run: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor) -> Tensor:
        """Enlarge x by `run`."""
        return self.run(x)

    @property
    def memory(self) -> int:
        """Bytes a LR pixel that it takes at its peak, with the result."""
        half = self.name == "triton" and self.precision != "fp32"
        return TRITON_HALF_MEMORY if half else MEMORY[self.name]


def make(
    name: str, net: nn.Module, precision: str = "fp32", device: torch.device | str = "cpu"
) -> Backend:
    """The network on the backend of that name, for images of any size.

    auto takes the first of AUTO that is installed, does not go below the precision, and differs
    from the plain float32 network by at most TOLERANCE on random input.

    Args:
        name: one of NAMES, or auto.
        net: models.team23_LKDN.LKDN with its weights; it is copied.
        precision: one of PRECISIONS, that of weights and features; sums are kept in float32.
        device: where it runs; x has to be there.

    Raises:
        BackendError: it cannot run here, or not with these weights, and why.
    """
    device = torch.device(device)
    if name not in (*NAMES, "auto") or precision not in PRECISIONS:
        raise BackendError(
            f"expected a backend of {', '.join(NAMES)} or auto and a precision of "
            f"{', '.join(PRECISIONS)}, got {name} and {precision}"
        )
    net = copy.deepcopy(net).eval().requires_grad_(False).to(device)
    try:
        if name == "auto":
            return _auto(net, precision, device)
        return Backend(name, precision, _MAKERS[name](net, precision, device))
    except BackendError:
        raise
    except OverflowError as error:  # of the weights, whatever runs them
        raise BackendError(str(error)) from error
    except Exception as error:  # of a library's or a driver's own kind
        raise BackendError(f"{name} does not run here: {_in_a_line(error)}") from error


def _auto(net: nn.Module, precision: str, device: torch.device) -> Backend:
    x = torch.rand(1, 3, 48, 56, generator=torch.Generator().manual_seed(0)).to(device)
    first = AUTO[device.type][0]
    reasons: dict[str, str] = {}
    with torch.inference_mode():
        expected = _plain(net, "fp32", device)(x)
        for name in AUTO[device.type]:
            for tried in dict.fromkeys((precision, "fp32")):
                try:
                    backend = Backend(name, tried, _MAKERS[name](net, tried, device))
                    error = float((backend(x) - expected).abs().max())
                except BackendError as reason:
                    reasons[name] = str(reason)
                except OverflowError:  # of the weights, whatever runs them
                    raise
                except Exception as failure:  # of a library's or a driver's own kind
                    reasons[name] = _in_a_line(failure)
                else:
                    if error <= TOLERANCE:
                        ran = f"running on {name} in {tried}, not"
                        if name != first:
                            logger.warning("%s on the faster %s: %s", ran, first, reasons[first])
                        if tried != precision:
                            logger.warning("%s in %s: %s", ran, precision, reasons[name])
                        return backend
                    reasons[name] = f"it is off by {error:.1e}, more than {TOLERANCE:.0e}"
                logger.info("%s in %s: %s", name, tried, reasons[name])
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise BackendError(
        f"expected a backend within {TOLERANCE} of the plain network, got none: {why}"
    )


def _in_a_line(error: Exception) -> str:
    """What went wrong, in one line: Triton's compiler shows the source first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1 if type(error).__name__ == "CompilationError" else 0].strip()
    return printable(f"{type(error).__name__}: {line}", 200)


def _plain(
    net: nn.Module,
    precision: str,
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
    compiled: bool = False,
) -> Callable[[Tensor], Tensor]:
    """The plain network in a precision and a layout.

    Float32 is float32: by default cuDNN multiplies in TF32, which is off by 6e-3, and would be
    further from the network than all that `auto` accepts.
    """
    if compiled and not devices.can_compile(device):
        raise BackendError("torch.compile needs a C++ compiler on a CPU, got none: install g++")
    dtype = DTYPES[precision]
    if dtype != torch.float32:
        from kernels.fold import rescaled

        net = rescaled(net)
    net = net.to(dtype=dtype).to(memory_format=layout)  # type: ignore[call-overload]
    forward = torch.compile(net, dynamic=True) if compiled else net

    def run(x: Tensor) -> Tensor:
        with devices.without_tf32():
            return forward(x.to(dtype=dtype, memory_format=layout)).float()

    return run


def _triton(net: nn.Module, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    from deploy import triton_backend

    if reason := triton_backend.refusal(device):
        raise BackendError(reason)
    need("triton")
    return triton_backend.prepare(net, DTYPES[precision], device)


def _native(net: nn.Module, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type != "cpu":
        raise BackendError(f"native runs on a CPU, got {device.type}")
    if precision == "fp16":
        raise BackendError("native computes in fp32 or bf16, got fp16")
    from kernels.native import NativeLKDN
    from kernels.native_library import CompileError, choose_arithmetic

    arithmetic = choose_arithmetic(precision)
    if precision == "bf16" and arithmetic == "float32":
        raise BackendError(
            "native computes in bf16 on a CPU with AMX that the system lets programs use, or on "
            "AMD's with AVX512-BF16, which this one is not: give --precision fp32"
        )
    devices.prepare_cpu()
    try:
        return NativeLKDN(net, arithmetic=arithmetic)
    except CompileError as error:
        raise BackendError(str(error)) from error


def _onnxruntime(
    net: nn.Module, precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    if precision == "bf16":
        raise BackendError("onnxruntime computes in fp32 or fp16, got bf16")
    need("onnx", "onnxruntime")
    import onnxruntime

    from deploy import onnx_graph

    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}.get(device.type)
    if provider not in onnxruntime.get_available_providers():
        raise BackendError(
            f"this onnxruntime has nothing for {device.type}, only "
            f"{', '.join(onnxruntime.get_available_providers())}"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")  # between two images
    model = onnx_graph.build(net, half=precision == "fp16").SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {"lr": x.contiguous().cpu().numpy()})
        return torch.from_numpy(y).to(x.device)

    return run


def _openvino(net: nn.Module, precision: str, device: torch.device) -> Callable[[Tensor], Tensor]:
    if device.type != "cpu":
        raise BackendError(f"openvino runs on a CPU here, got {device.type}")
    need("onnx", "openvino")
    import openvino

    from deploy import onnx_graph

    core = openvino.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if DTYPES[precision] != torch.float32 and precision.upper() not in able:
        raise BackendError(f"openvino computes in {', '.join(able)} on this CPU, got {precision}")
    kind = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}[precision]
    compiled = core.compile_model(
        core.read_model(onnx_graph.build(net).SerializeToString()),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": kind,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            # A cache that would grow by 2 MiB with each image size; oneDNN's, which is bounded,
            # holds what takes long to make.
            "CPU_RUNTIME_CACHE_CAPACITY": "0",
        },
    )
    devices.prepare_cpu()  # OpenVINO maps and clears its memory anew for each image otherwise
    request = compiled.create_infer_request()
    lock = threading.Lock()

    def run(x: Tensor) -> Tensor:
        with lock:
            request.infer({"lr": openvino.Tensor(x.contiguous().numpy(), shared_memory=True)})
            return torch.from_numpy(request.get_output_tensor(0).data.copy())

    return run


def need(*packages: str) -> None:
    """BackendError unless these packages are installed, and can be imported."""
    absent = [package for package in packages if not importlib.util.find_spec(package)]
    if absent:
        raise BackendError(
            f"expected {' and '.join(absent)} to be installed: pip install -r requirements-fast.txt"
        )
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # whatever a library does without one of its own
            raise BackendError(
                f"expected {package} to be whole, got {_in_a_line(error)}: install it anew"
            ) from error


_MAKERS: dict[str, Callable[[nn.Module, str, torch.device], Callable[[Tensor], Tensor]]] = {
    "eager": _plain,
    "channels_last": partial(_plain, layout=torch.channels_last),
    "compile": partial(_plain, layout=torch.channels_last, compiled=True),
    "triton": _triton,
    "native": _native,
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
