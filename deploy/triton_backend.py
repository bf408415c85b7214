"""The fused Triton network as a backend: where it may run, and how its failures look."""

import os
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploy.cuda_graphs import replay_graphs

# Below, Triton compiles without tensor cores, or its compiler ends the process.
LEAST_CAPABILITY = (8, 0)


def refusal(device: torch.device) -> str | None:
    """Why Triton must not be called on a device, found out without calling it."""
    if device.type != "cuda":
        interpreted = os.environ.get("TRITON_INTERPRET") == "1"
        return None if interpreted else f"triton needs a CUDA device, got {device.type}"
    capability = torch.cuda.get_device_capability(device)
    if capability < LEAST_CAPABILITY:
        return (
            "triton needs an NVIDIA GPU of compute capability 8.0 or above, got "
            f"{'.'.join(map(str, capability))} ({torch.cuda.get_device_name(device)})"
        )
    return None


def prepare(net: nn.Module, dtype: torch.dtype, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The network on Triton kernels, compiled now: those of one image size are those of all.

    Raises:
        Exception: whatever Triton, the compilers it calls or the driver raise.
    """
    from kernels.triton_network import FusedLKDN

    fast = FusedLKDN(net, dtype)
    if device.type != "cuda":
        return fast
    run = replay_graphs(fast)
    run(torch.zeros(1, fast.image_channels, 8, 8, device=device))
    torch.cuda.synchronize(device)  # a kernel's fault shows here, not in somebody's image
    return lambda x: _name_want_of_memory(run, x)


def _name_want_of_memory(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """run(x); tiling takes smaller tiles after torch's error, and Triton's is another."""
    try:
        return run(x)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "out of memory" not in str(error).lower():
            raise
        raise torch.OutOfMemoryError(str(error)) from error
