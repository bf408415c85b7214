"""A network made fast by name: what runs it, in which precision, on which device."""

import copy
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deploy.runners import (
    DTYPES,
    BackendError,
    in_a_line,
    prepare_native,
    prepare_onnxruntime,
    prepare_openvino,
    prepare_plain,
    prepare_triton,
)

PRECISIONS = tuple(DTYPES)
# Largest difference from the plain float32 network, on random input, that auto accepts: half an
# 8-bit level, and in fp16 and bf16 twice what the plain network is off by with the shipped weights.
TOLERANCES = {"fp32": 2e-3, "fp16": 5e-3, "bf16": 5e-2}
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
TRITON_PIXELS = 2**31 // 72 - 1  # LR pixels at once: its kernels count 72 numbers of each in int32

logger = logging.getLogger(__name__)


def is_emulated(precision: str, device: torch.device) -> bool:
    """Whether the device has no instructions for it, so that torch takes far longer than in
    float32: fp16 on a CPU, and bf16 on one that does not multiply it, or does not say."""
    if device.type != "cpu" or precision == "fp32":
        return False
    from kernels.native_library import cpu_features

    return precision == "fp16" or not cpu_features() & {"avx512_bf16", "amx_bf16", "bf16"}


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

    @property
    def most_pixels(self) -> float:
        """LR pixels that it takes at once, of all images of a batch."""
        return TRITON_PIXELS if self.name == "triton" else math.inf


def make(
    name: str, net: nn.Module, precision: str = "fp32", device: torch.device | str = "cpu"
) -> Backend:
    """The network on the backend of that name, for images of any size.

    auto takes the first of AUTO that is installed, does not go below the precision, and differs
    from the plain float32 network by at most TOLERANCES on random input.

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
        raise BackendError(f"{name} does not run here: {in_a_line(error)}") from error


def _auto(net: nn.Module, precision: str, device: torch.device) -> Backend:
    x = torch.rand(1, 3, 48, 56, generator=torch.Generator().manual_seed(0)).to(device)
    first = AUTO[device.type][0]
    reasons: dict[str, str] = {}
    latest: Exception | None = None
    with torch.inference_mode():
        expected = prepare_plain(net, "fp32", device)(x)
        for name in AUTO[device.type]:
            for tried in dict.fromkeys((precision, "fp32")):
                if name in ("channels_last", "eager") and is_emulated(tried, device):
                    reasons[name] = f"this CPU has no instructions for {tried}"
                    continue
                try:
                    backend = Backend(name, tried, _MAKERS[name](net, tried, device))
                    error = float((backend(x) - expected).abs().max())
                except BackendError as reason:
                    reasons[name] = str(reason)
                except OverflowError:  # of the weights, whatever runs them
                    raise
                except Exception as failure:  # of a library's or a driver's own kind
                    reasons[name], latest = in_a_line(failure), failure
                else:
                    if error <= (most := TOLERANCES[tried]):
                        ran = f"running on {name} in {tried}, not"
                        if name != first:
                            logger.warning("%s on the faster %s: %s", ran, first, reasons[first])
                        if tried != precision:
                            logger.warning("%s in %s: %s", ran, precision, reasons[name])
                        return backend
                    reasons[name] = f"it is off by {error:.1e}, more than {most:.0e}"
                logger.info("%s in %s: %s", name, tried, reasons[name])
    why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise BackendError(
        f"expected a backend within {TOLERANCES['fp32']} of the plain network, got none: {why}"
    ) from latest


_MAKERS: dict[str, Callable[[nn.Module, str, torch.device], Callable[[Tensor], Tensor]]] = {
    "eager": prepare_plain,
    "channels_last": partial(prepare_plain, layout=torch.channels_last),
    "compile": partial(prepare_plain, layout=torch.channels_last, compiled=True),
    "triton": prepare_triton,
    "native": prepare_native,
    "onnxruntime": prepare_onnxruntime,
    "openvino": prepare_openvino,
}
