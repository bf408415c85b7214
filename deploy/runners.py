"""What runs a network: of each backend, what prepares (B, 3, H, W) -> (B, 3, 4H, 4W), float32, in a
precision on a device, or raises BackendError."""

import importlib
import importlib.util
import threading
from collections.abc import Callable

import torch
from torch import Tensor, nn

from utils import devices
from utils.command import UserError
from utils.text import printable

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class BackendError(UserError):
    """A backend that cannot run here, or not in this precision; the message says why."""


def in_a_line(error: Exception) -> str:
    """What went wrong, in one line: Triton's compiler shows the source first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    line = lines[-1 if type(error).__name__ == "CompilationError" else 0].strip()
    return printable(f"{type(error).__name__}: {line}", 200)


def prepare_plain(
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


def prepare_triton(
    net: nn.Module, precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """This repository's fused Triton kernels, see deploy/triton_backend.py."""
    from deploy import triton_backend

    if reason := triton_backend.refusal(device):
        raise BackendError(reason)
    need("triton")
    return triton_backend.prepare(net, DTYPES[precision], device)


def prepare_native(
    net: nn.Module, precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """This repository's C++ kernels, see kernels/native.py."""
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


def prepare_onnxruntime(
    net: nn.Module, precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """ONNX Runtime on one graph for all sizes, on a CPU or by onnxruntime-gpu on CUDA."""
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
    exact = {"use_tf32": 0} if device.type == "cuda" else {}
    session = onnxruntime.InferenceSession(
        model, options, providers=[(provider, exact)], enable_fallback=0
    )
    if session.get_providers()[0] != provider:  # its libraries are missing, and it says nothing
        raise BackendError(
            f"onnxruntime cannot use {device.type} here, only {session.get_providers()[0]}: see to "
            "its CUDA and cuDNN, or give --device cpu"
        )

    def run(x: Tensor) -> Tensor:
        (y,) = session.run(None, {"lr": x.contiguous().cpu().numpy()})
        return torch.from_numpy(y).to(x.device)

    return run


def prepare_openvino(
    net: nn.Module, precision: str, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """OpenVINO on one graph for all sizes, on a CPU; threads take turns."""
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
                f"expected {package} to be whole, got {in_a_line(error)}: install it anew"
            ) from error
