"""What one pixel asks of a machine, and what the machine can do at best."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deploy import backends, runners
from deploy.bench.worker import milliseconds
from utils import devices


def cost(net: nn.Module) -> tuple[float, float]:
    """Multiply-adds, and bytes in float32, of one LR pixel of the plain network.

    The bytes are what its convolutions, norms and the shuffle move if each reads its input and
    writes its output once: the traffic of a runtime that fuses no two of them.
    """
    moved = [0]
    side = 64

    def count(_: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        moved[0] += 4 * (sum(i.numel() for i in inputs) + out.numel())

    handles = [m.register_forward_hook(count) for m in net.modules() if not list(m.children())]
    with torch.inference_mode():
        net(torch.zeros(1, 3, side, side))
    for handle in handles:
        handle.remove()
    macs = sum(
        m.weight[0].numel() * m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)
    )
    return float(macs), moved[0] / side**2


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """The machine's own: GB/s of a large copy, reads and writes; TFLOP/s of a large product or
    3x3 convolution, whichever is faster (torch computes them by different libraries)."""
    cuda = device.type == "cuda"
    large = torch.empty(2**28 if cuda else 2**25, device=device)
    other = torch.empty_like(large)
    copied = min(milliseconds(other.copy_, large) for _ in range(8))
    ceilings = {"gb_s": 2 * 4 * large.numel() / copied / 1e6}
    side, channels, image = (8192, 512, 128) if cuda else (2048, 256, 64)
    for name, dtype in runners.DTYPES.items():
        if backends.is_emulated(name, device):
            continue  # it would take minutes
        # Random: a GPU flips fewer bits for ones, and its clock stays higher than images allow.
        a = torch.rand(side, side, device=device).to(dtype)
        x = torch.rand(1, channels, image, image, device=device).to(dtype)
        x = x.to(memory_format=torch.channels_last)
        weight = torch.rand(channels, channels, 3, 3, device=device).to(dtype)
        product = min(milliseconds(lambda a: a @ a, a) for _ in range(6))
        convolve = partial(F.conv2d, weight=weight, padding=1)
        with devices.without_tf32():
            convolution = min(milliseconds(convolve, x) for _ in range(6))
        ceilings[f"tflop_s_{name}"] = (
            max(2 * side**3 / product, 2 * 9 * channels**2 * image**2 / convolution) / 1e9
        )
    return ceilings
