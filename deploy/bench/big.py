"""One very large image in little memory: 100 megapixels in 2 GiB, checked window by window."""

import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deploy import backends
from deploy.bench.worker import shipped
from deploy.tiling import CONTEXT, restore, tile_size
from utils import efficiency

SIDE = 2500  # LR pixels; 10000x10000 come out
BOUND = 2**31  # bytes
WINDOWS, WINDOW = 12, 24  # how many are compared, and how many LR pixels a side


def measure(device: torch.device, side: int = SIDE, bound: int = BOUND) -> dict[str, Any]:
    """Restore noise of side*side LR pixels in tiles with backend auto; what it took.

    Sampled windows are computed by the plain network from their own surroundings, and compared
    after rounding to 8 bit. The memory is the process's at its peak beyond what it was before.
    """
    net = shipped()
    fast = backends.make("auto", net, device=device)
    net = net.to(device)
    rng = np.random.default_rng(0)
    efficiency.reset_peak_memory(device)
    before = efficiency.peak_memory_mib(device) or 0.0
    x = torch.from_numpy(rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8))
    out = torch.empty(1, 3, 4 * side, 4 * side, dtype=torch.uint8)
    held = x.numel() + out.numel() if device.type == "cpu" else 0
    size = tile_size(bound - held, backends.MEMORY[fast.name])

    def in_8_bit(piece: Tensor) -> Tensor:
        y = fast(piece.to(device).float() / 255)
        return y.clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu()

    began = time.perf_counter()
    restore(in_8_bit, x, size, out=out, progress=True)
    seconds = time.perf_counter() - began
    peak = (efficiency.peak_memory_mib(device) or 0.0) - before
    return {
        "megapixels": 16 * side**2 / 1e6,
        "bound_mib": bound / 2**20,
        "backend": fast.name,
        "tile": size,
        "seconds": seconds,
        "peak_mib": peak,
        **compare(net, x, out),
    }


@torch.inference_mode()
def compare(net: nn.Module, x: Tensor, out: Tensor) -> dict[str, int]:
    """How `out`, (1, 3, 4H, 4W) uint8, differs in WINDOWS from what the plain network makes of
    their surroundings in x, (1, 3, H, W) uint8."""
    device = next(net.parameters()).device
    rng = np.random.default_rng(1)
    levels, differing, compared = 0, 0, 0
    for _ in range(WINDOWS):
        top, left = (int(rng.integers(0, side - WINDOW)) for side in x.shape[-2:])
        y0, x0 = max(0, top - CONTEXT), max(0, left - CONTEXT)
        seen = x[..., y0 : top + WINDOW + CONTEXT, x0 : left + WINDOW + CONTEXT].to(device)
        whole = (net(seen.float() / 255).clamp(0, 1) * 255).round().cpu()
        whole = whole[..., 4 * (top - y0) :, 4 * (left - x0) :][..., : 4 * WINDOW, : 4 * WINDOW]
        got = out[..., 4 * top : 4 * (top + WINDOW), 4 * left : 4 * (left + WINDOW)]
        apart = (got.float() - whole).abs()
        levels = max(levels, int(apart.max()))
        differing += int((apart > 0).sum())
        compared += apart.numel()
    return {"compared": compared, "differing": differing, "largest_difference_levels": levels}
