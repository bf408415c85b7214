"""The fused Triton network as a backend: where it may run, and how its failures look."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from deploy.cuda_graphs import replay_graphs
from utils import devices

# Below, Triton compiles without tensor cores, or its compiler ends the process.
LEAST_CAPABILITY = (8, 0)
CHECKED = ((1, 1), (7, 13), (24, 40))  # heights and widths, of tiles that are cut
# Largest difference from the plain network, of images in 0..1; half an 8-bit level is 2e-3. In
# float32 sums are taken in another order, in fp16 and bf16 11 and 8 significant bits go through
# about 40 layers.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def refusal(device: torch.device) -> str | None:
    """Why Triton must not be called on a device, found out without calling it."""
    if device.type != "cuda":
        if devices.is_interpreted():
            return None
        return f"triton needs a CUDA device, got {device.type}"
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
        ArithmeticError: compiled for this GPU they compute something else.
        Exception: whatever Triton, the compilers it calls or the driver raise.
    """
    from kernels.triton_network import FusedLKDN

    fast = FusedLKDN(net, dtype)
    if device.type != "cuda":
        return fast
    run = replay_graphs(fast)
    # A kernel's fault shows here, not in somebody's image: kernel by kernel, recorded, replayed.
    check(run, net, fast.image_channels, dtype, device, times=3)
    return run


@torch.no_grad()
def check(
    run: Callable[[Tensor], Tensor],
    net: nn.Module,
    channels: int,
    dtype: torch.dtype,
    device: torch.device,
    times: int,
) -> None:
    """Compare a network's fast form in `dtype` with itself on made-up images, each some times.

    Raises:
        ArithmeticError: it is further off than TOLERANCES allow.
    """
    for height, width in CHECKED:
        generator = torch.Generator().manual_seed(height)
        x = torch.rand(1, channels, height, width, generator=generator).to(device)
        with devices.without_tf32():
            expected = net(x)
        for _ in range(times):
            worst = float((run(x) - expected).abs().max())
            if not worst <= TOLERANCES[dtype]:
                raise ArithmeticError(
                    f"expected images of {height}x{width} within {TOLERANCES[dtype]} of the plain "
                    f"network's on {device}, got {worst:.1e}"
                )
