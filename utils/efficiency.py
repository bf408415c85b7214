"""What a network costs: parameters, FLOPs, activations, convolutions, memory, runtime."""

import contextlib
import copy
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from utils.memory import numbers_in

# What the hooks of the challenge's template see: calls of these modules, and nothing else.
CONVS = (nn.Conv2d, nn.ConvTranspose2d)
RELUS = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6)
COUNTER = (
    "multiply-adds of convolution and linear layers, one per output of ReLU layers, two of "
    "batch normalisation"
)


@dataclass(frozen=True)
class Counts:
    """What the challenge counts at one input, and by which year's counter.

    flops: 2023's, by hooks, see COUNTER; activations: elements of all outputs of 2D convolutions;
    num_conv: calls of them. flops_fvcore: 2024's to 2026's, fvcore's total, in which also
    functional products, normalisation and interpolation are; None where fvcore is not installed,
    cannot trace the network, or has too little memory for it.
    """

    num_parameters: int
    flops: int
    activations: int
    num_conv: int
    flops_fvcore: int | None = None


@torch.no_grad()
def count(net: nn.Module, size: tuple[int, int, int] = (3, 256, 256)) -> Counts:
    """Count as the NTIRE efficient super-resolution challenge does, exactly, in integers.

    Its hooks see a layer whenever it is called: twice if twice, also for an output that nobody
    reads, and never if only its weights are used.

    Args:
        net: on any device, in eval(). For the hooks a copy without numbers runs, which takes no
            memory; or, where its shapes depend on numbers, the network itself, as for fvcore.
        size: channels, height, width of the input.
    """
    try:
        counts = _count(copy.deepcopy(net).to("meta"), size)
    except Exception:  # whatever a network raises that wants numbers
        counts = _count(net, size)
    return replace(counts, flops_fvcore=_fvcore_flops(net, size))


def _input_of(net: nn.Module, size: tuple[int, int, int]) -> Tensor:
    parameter = next(net.parameters())
    return torch.rand(1, *size, dtype=parameter.dtype, device=parameter.device)


def _count(net: nn.Module, size: tuple[int, int, int]) -> Counts:
    """All but fvcore's."""
    flops = activations = num_conv = 0

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal flops, activations, num_conv
        flops += _flops(module, inputs, output)
        if isinstance(module, CONVS):
            activations += output.numel()
            num_conv += 1

    counted = (*CONVS, *RELUS, nn.Linear, nn.BatchNorm2d)
    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, counted)]
    try:
        net(_input_of(net, size))
    finally:
        for handle in handles:
            handle.remove()
    parameters = sum(p.numel() for p in net.parameters())
    return Counts(parameters, flops, activations, num_conv)


def _flops(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    """2023's FLOPs of one call. Two rules of it are not multiply-adds, and kept: a transposed
    convolution is counted at its output's positions, and a linear layer by the first two
    dimensions of its input and the second of its output, which are right for (B, C) alone."""
    if isinstance(module, CONVS):
        at_a_position = math.prod(module.kernel_size) * module.in_channels
        return at_a_position * (module.out_channels // module.groups) * output[:, 0].numel()
    if isinstance(module, nn.Linear):
        given, made = inputs[0].shape, output.shape
        return given[0] * made[0] if len(given) == 1 else given[0] * given[1] * made[1]
    if isinstance(module, nn.BatchNorm2d):
        return output.numel() * (2 if module.affine else 1)
    return output.numel()


def _fvcore_flops(net: nn.Module, size: tuple[int, int, int]) -> int | None:
    with warnings.catch_warnings():  # fvcore stands on torch.jit, which torch deprecates
        warnings.simplefilter("ignore", DeprecationWarning)
        # Imported late: nothing else uses it, and training machines may not have it.
        try:
            from fvcore.nn import FlopCountAnalysis
        except ImportError:
            return None
        try:
            analysis = FlopCountAnalysis(net, _input_of(net, size))
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            return int(analysis.total())
        except Exception:  # not every network can be traced, or fits; fvcore raises anything
            return None


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


def reset_peak_memory(device: torch.device) -> None:
    """Start a new measurement of `peak_memory_mib`; on CUDA, free what torch keeps for later."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        # Not there, or not permitted as in some containers: the peak is then the process's.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float | None:
    """MiB. CUDA: allocated by tensors (the challenge's figure). Else: resident, whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with contextlib.suppress(OSError, KeyError):
        return numbers_in("/proc/self/status")["VmHWM"] / 2**10
    if sys.platform == "win32":
        return None
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
