"""What a network costs: parameters, FLOPs, activations, convolutions, memory, runtime."""

import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

# Multiply-adds of these operators (fvcore's names) and one operation per output of the others
# are what the challenge calls FLOPs. fvcore's own total has LayerNorm and interpolation besides.
MULTIPLYING = ("conv", "linear", "addmm", "matmul", "bmm", "baddbmm", "einsum")
RELU_FAMILY = (
    "relu",
    "relu_",
    "leaky_relu",
    "leaky_relu_",
    "prelu",
    "_prelu_kernel",
    "rrelu",
    "elu",
    "elu_",
    "hardtanh",
    "hardtanh_",
)
COUNTER = "multiply-adds of convolutions and products, plus one per output of ReLU-like layers"


@dataclass(frozen=True)
class Counts:
    """num_parameters; flops and activations of one input; num_conv: Conv2d modules."""

    num_parameters: int
    flops: int
    activations: int
    num_conv: int


def count(net: nn.Module, size: tuple[int, int, int] = (3, 256, 256)) -> Counts:
    """Count as the NTIRE efficient super-resolution challenge does, exactly, in integers.

    flops: see COUNTER. activations: elements of all outputs of convolutions and products.

    Args:
        net: on any device; it is run on it twice.
        size: channels, height, width of the input.
    """
    parameter = next(net.parameters())
    x = torch.rand(1, *size, dtype=parameter.dtype, device=parameter.device)
    with warnings.catch_warnings():  # fvcore stands on torch.jit, which torch deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        # Imported late: the counters are its only use, and training machines may not have it.
        from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis

        flops = FlopCountAnalysis(net, x).set_op_handle(
            **{f"aten::{name}": _outputs for name in RELU_FAMILY}
        )
        activations = ActivationCountAnalysis(net, x)
        for counter in (flops, activations):
            counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        by_operator, num_activations = flops.by_operator(), int(activations.total())
    return Counts(
        num_parameters=sum(p.numel() for p in net.parameters()),
        flops=int(sum(by_operator[name] for name in MULTIPLYING + ("relu_family",))),
        activations=num_activations,
        num_conv=sum(isinstance(module, nn.Conv2d) for module in net.modules()),
    )


def _outputs(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """fvcore handle: one operation per output element."""
    return Counter({"relu_family": int(np.prod(outputs[0].type().sizes()))})


@dataclass(frozen=True)
class Runtime:
    """Milliseconds. average: the challenge's, mean of the first pass with its cold first image.
    The others are percentiles of the warm times; None where there were none."""

    average: float | None
    median: float | None
    p20: float | None
    p80: float | None


def runtime(passes: Sequence[Sequence[float]]) -> Runtime:
    """Summarise the times in ms of each image in each pass over a set.

    Warm are the passes after the first, or the first without its first image if it is the only.
    """
    first = list(passes[0]) if passes else []
    warm = [time for later in passes[1:] for time in later] or first[1:]
    p20, median, p80 = np.percentile(warm, [20, 50, 80]).tolist() if warm else [None] * 3
    return Runtime(float(np.mean(first)) if first else None, median, p20, p80)


def reset_peak_memory(device: torch.device, free: bool = True) -> None:
    """Start a new measurement of `peak_memory_mib`; on CUDA `free` what torch keeps for later."""
    if device.type == "cuda":
        if free:
            torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    elif (clear := Path("/proc/self/clear_refs")).exists():
        try:
            clear.write_text("5")
        except OSError:  # not permitted in some containers: the peak is then the process's
            return


def peak_memory_mib(device: torch.device) -> float | None:
    """MiB. CUDA: allocated by tensors (the challenge's figure). Else: resident, whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 2**10
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
