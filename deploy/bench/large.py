"""One photo to 60 megapixels by upscale.py: its memory and its pixels. python -m deploy.bench.large

The photo goes through the command as anyone's does, in a process of its own; sampled windows of the
file that it writes are compared with the plain network. `measure_tiles`, for the benchmark's --big,
upscales to 100 megapixels on any device, in memory that is given.
"""

import contextlib
import io
import multiprocessing
import runpy
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.bench.worker import load_shipped
from deploy.tiling import CONTEXT
from deploy.upscaler import BORDER, Upscaler
from utils import command, devices, efficiency, record
from utils.datasets import find
from utils.files import ROOT, write_json
from utils.imaging.images import read_rgb, write_png

HEIGHT, WIDTH = 1500, 2500  # LR pixels; 60 megapixels come out
SIDE, BOUND = 2500, 2**31  # LR pixels of the image in tiles, 100 megapixels; its memory in bytes
WINDOWS, WINDOW = 12, 24  # how many are compared, and how many LR pixels a side
CPU = torch.device("cpu")


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
        if taken["code"]:
            raise ValueError(f"expected upscale.py to restore the photo, got: {printed}")
        sr = read_rgb(target)
    return {
        "environment": record.environment(CPU),
        "megapixels": sr.shape[0] * sr.shape[1] / 1e6,
        "said": printed.splitlines()[0],
        **taken,
        **compare(lr, sr, CPU),
        "windows": WINDOWS,
        "window": WINDOW,
    }


def _upscale(arguments: list[str], answer: Connection) -> None:
    """Run upscale.py in this process; answer what it took, its memory beyond that of what it
    imports, and what it printed."""
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
    taken = {"code": code, "seconds": seconds, "import_mib": before, "peak_mib": peak - before}
    answer.send((taken, printed.getvalue() or complaints.getvalue()))


def measure_tiles(device: torch.device, side: int = SIDE, bound: int = BOUND) -> dict[str, Any]:
    """Upscale noise of side*side LR pixels in memory that is given; what it took, and how it
    differs. The memory is the process's at its peak beyond what it was before."""
    upscaler = Upscaler(device.type, memory_bytes=bound)
    upscaler.progress = True
    lr = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    efficiency.reset_peak_memory(device)
    before, began = efficiency.peak_memory_mib(device) or 0.0, time.perf_counter()
    sr = upscaler(lr)
    seconds, peak = time.perf_counter() - began, efficiency.peak_memory_mib(device) or 0.0
    held = lr.nbytes + mirrored(lr).nbytes + sr.nbytes if device.type == "cpu" else 0
    return {
        "megapixels": sr.shape[0] * sr.shape[1] / 1e6,
        "bound_mib": bound / 2**20,
        "backend": upscaler.backend.name,
        "tile": upscaler.tile_for(side, side, held),
        "seconds": seconds,
        "peak_mib": peak - before,
        **compare(lr, sr, device),
    }


@torch.inference_mode()
def compare(lr: NDArray[np.uint8], sr: NDArray[np.uint8], device: torch.device) -> dict[str, int]:
    """How `sr`, (4H, 4W, 3), differs in WINDOWS from what the plain network makes of their
    surroundings in `lr`, (H, W, 3)."""
    net, rng = load_shipped().to(device), np.random.default_rng(1)
    x = torch.from_numpy(mirrored(lr)).permute(2, 0, 1)[None]
    out = torch.from_numpy(sr).permute(2, 0, 1)[None]
    levels, differing, compared = 0, 0, 0
    for _ in range(WINDOWS):
        top, left = (int(rng.integers(0, side - WINDOW)) for side in lr.shape[:2])
        row, column = top + BORDER, left + BORDER
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


def mirrored(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) continued as Upscaler has it."""
    return np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), "symmetric")


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """The demo photos beside and below each other, (height, width, 3) uint8."""
    pictures = [read_rgb(pair.hr) for pair in find("demo", ROOT / "data").pairs if pair.hr]
    side = min(min(picture.shape[:2]) for picture in pictures)
    strip = np.hstack([picture[:side, :side] for picture in pictures])
    across, down = -(-width // strip.shape[1]), -(-height // side)
    return np.tile(strip, (down, across, 1))[:height, :width].copy()


if __name__ == "__main__":
    command.start(main)
