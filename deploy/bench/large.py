"""One photo to 60 megapixels by upscale.py: its memory and its pixels. python -m deploy.bench.large

The photo goes through the command as anyone's does, in a process of its own; sampled windows of the
file that it writes are compared with the plain network. `measure_tiles`, for the benchmark's --big,
restores 100 megapixels on any device, in memory that is given.
"""

import contextlib
import io
import multiprocessing
import runpy
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy import backends
from deploy.bench.worker import load_shipped
from deploy.tiling import CONTEXT, restore, tile_size
from deploy.upscaler import BORDER
from utils import command, devices, efficiency, record
from utils.datasets import SCALE, find
from utils.files import ROOT, write_json
from utils.imaging.images import read_rgb, write_png

HEIGHT, WIDTH = 1500, 2500  # LR pixels; 60 megapixels come out
SIDE, BOUND = 2500, 2**31  # LR pixels of the image in tiles, 100 megapixels; its memory in bytes
WINDOWS, WINDOW = 12, 24  # how many are compared, and how many LR pixels a side
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Taken:
    """What upscale.py took: its exit code, and memory beyond that of what it imports."""

    code: int
    seconds: float
    import_mib: float
    peak_mib: float


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "deploy.bench.large")
    output = ROOT / "results" / "large_cpu.json"
    parser.add_argument("-o", "--output", type=command.file, default=output, help="JSON to write")
    args = parser.parse_args(argv)
    devices.prepare_cpu()
    interrupted = "interrupted; nothing was written"
    failures = (ValueError,)
    return command.run("deploy.bench.large", lambda: write(args.output), (), failures, interrupted)


def write(output: Path) -> None:
    """Measure, record and print."""
    result = measure_photo()
    print(
        f"{result['megapixels']:.0f} megapixels in {result['seconds']:.1f} s, "
        f"{result['peak_mib']:.0f} MiB beyond {result['import_mib']:.0f} of the imports; "
        f"{result['differing']} of {result['compared']} sampled values differ, by "
        f"{result['largest_difference_levels']} of 255 at most"
    )
    write_json(output, result)
    print(f"Recorded in {output}")


def measure_photo(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """Upscale a photo of so many LR pixels; what it took, and how it differs.

    Raises:
        ValueError: the command failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.png"), Path(folder, "large.png")
        lr = photo(height, width)
        write_png(source, lr)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        arguments = [str(source), "-o", str(target), "--device", "cpu"]
        process = context.Process(target=_upscale, args=(arguments, there), daemon=True)
        process.start()
        there.close()
        try:
            taken, printed = here.recv()
        except EOFError as error:
            raise ValueError(
                "expected upscale.py to restore the photo, its process died"
            ) from error
        process.join()
        if taken.code:
            raise ValueError(f"expected upscale.py to restore the photo, got: {printed}")
        sr = read_rgb(target)
    around = (BORDER, BORDER)
    seen = np.pad(lr, (around, around, (0, 0)), "symmetric")
    return {
        "environment": record.environment(CPU),
        "megapixels": sr.shape[0] * sr.shape[1] / 1e6,
        "said": printed.splitlines()[0],
        **asdict(taken),
        **compare(load_shipped(), as_tensor(seen), as_tensor(sr), BORDER),
        "windows": WINDOWS,
        "window": WINDOW,
    }


def _upscale(arguments: list[str], answer: Connection) -> None:
    """Run upscale.py in this process; answer what it took and printed."""
    import deploy.pipeline  # noqa: F401  # all that the command imports

    efficiency.reset_peak_memory(CPU)
    before, began = efficiency.peak_memory_mib(CPU) or 0.0, time.perf_counter()
    sys.argv[1:] = arguments
    printed, complaints = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(complaints):
        try:
            runpy.run_path(str(ROOT / "upscale.py"), run_name="__main__")
        except SystemExit as ended:
            code = ended.code
    seconds, peak = time.perf_counter() - began, efficiency.peak_memory_mib(CPU) or 0.0
    answer.send(
        (Taken(code, seconds, before, peak - before), printed.getvalue() or complaints.getvalue())
    )


def measure_tiles(device: torch.device, side: int = SIDE, bound: int = BOUND) -> dict[str, Any]:
    """Restore noise of side*side LR pixels in tiles with backend auto; what it took.

    Sampled windows are computed by the plain network from their own surroundings, and compared
    after rounding to 8 bit. The memory is the process's at its peak beyond what it was before.
    """
    net = load_shipped()
    fast = backends.make("auto", net, device=device)
    net = net.to(device)
    rng = np.random.default_rng(0)
    efficiency.reset_peak_memory(device)
    before = efficiency.peak_memory_mib(device) or 0.0
    x = torch.from_numpy(rng.integers(0, 256, (1, 3, side, side), dtype=np.uint8))
    out = torch.empty(1, 3, SCALE * side, SCALE * side, dtype=torch.uint8)
    held = x.numel() + out.numel() if device.type == "cpu" else 0
    size = tile_size(bound - held, fast.memory)

    def in_8_bit(piece: Tensor) -> Tensor:
        y = fast(piece.to(device).float() / 255)
        return y.clamp_(0, 1).mul_(255).round_().to(torch.uint8).cpu()

    began = time.perf_counter()
    restore(in_8_bit, x, size, out=out, progress=True)
    return {
        "megapixels": out[0, 0].numel() / 1e6,
        "bound_mib": bound / 2**20,
        "backend": fast.name,
        "tile": size,
        "seconds": time.perf_counter() - began,
        "peak_mib": (efficiency.peak_memory_mib(device) or 0.0) - before,
        **compare(net, x, out),
    }


@torch.inference_mode()
def compare(net: nn.Module, x: Tensor, out: Tensor, border: int = 0) -> dict[str, int]:
    """How `out`, (1, 3, 4H, 4W) uint8, differs in WINDOWS from what the plain network makes of
    their surroundings in x, (1, 3, H, W) uint8 and `border` LR pixels more on each side."""
    device = next(net.parameters()).device
    rng = np.random.default_rng(1)
    levels, differing, compared = 0, 0, 0
    for _ in range(WINDOWS):
        top, left = (int(rng.integers(0, side // 4 - WINDOW)) for side in out.shape[-2:])
        row, column = top + border, left + border
        y0, x0 = max(0, row - CONTEXT), max(0, column - CONTEXT)
        seen = x[..., y0 : row + WINDOW + CONTEXT, x0 : column + WINDOW + CONTEXT].to(device)
        with devices.without_tf32():
            whole = (net(seen.float() / 255).clamp(0, 1) * 255).round().cpu()
        whole = whole[..., 4 * (row - y0) :, 4 * (column - x0) :][..., : 4 * WINDOW, : 4 * WINDOW]
        got = out[..., 4 * top : 4 * (top + WINDOW), 4 * left : 4 * (left + WINDOW)]
        apart = (got.float() - whole).abs()
        levels = max(levels, int(apart.max()))
        differing += int((apart > 0).sum())
        compared += apart.numel()
    return {"compared": compared, "differing": differing, "largest_difference_levels": levels}


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """The demo photos beside and below each other, (height, width, 3) uint8."""
    pictures = [read_rgb(pair.hr) for pair in find("demo", ROOT / "data").pairs if pair.hr]
    side = min(min(picture.shape[:2]) for picture in pictures)
    strip = np.hstack([picture[:side, :side] for picture in pictures])
    across, down = -(-width // strip.shape[1]), -(-height // side)
    return np.tile(strip, (down, across, 1))[:height, :width].copy()


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) -> (1, 3, H, W), a view."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


if __name__ == "__main__":
    command.start(main)
