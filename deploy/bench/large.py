"""One photo to 60 megapixels by upscale.py: its memory and its pixels. python -m deploy.bench.large

The photo goes through the command as anyone's does, in a process of its own; sampled windows of the
file that it writes are compared with the plain network.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deploy.bench.big import WINDOW, WINDOWS, compare
from deploy.bench.worker import shipped
from utils import command, devices, record
from utils.datasets import find
from utils.files import ROOT, write_json
from utils.images import read_rgb, write_png

HEIGHT, WIDTH = 1500, 2500  # LR pixels; 60 megapixels come out
# The process is asked for its peak after importing all that the command imports, and at its end.
SCRIPT = """
import json, sys, time
import upscale
import deploy.photos.decode, deploy.photos.encode, deploy.upscaler
from utils import efficiency
cpu = efficiency.torch.device("cpu")
efficiency.reset_peak_memory(cpu)
before, began = efficiency.peak_memory_mib(cpu), time.perf_counter()
code = upscale.main(sys.argv[1:])
seconds, peak = time.perf_counter() - began, efficiency.peak_memory_mib(cpu)
print(json.dumps({"code": code, "seconds": seconds, "import_mib": before,
                  "peak_mib": peak - before}), file=sys.stderr)
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.bench.large",
        description=(__doc__ or "").split("\n\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "-o", "--output", type=Path, help="JSON to write; by default results/large_cpu.json"
    )
    args = parser.parse_args(argv)
    output = args.output or ROOT / "results" / "large_cpu.json"
    devices.prepare_cpu()
    interrupted = "interrupted; nothing was written"
    return command.run("deploy.bench.large", lambda: write(output), (), (ValueError,), interrupted)


def write(output: Path) -> None:
    """Measure, record and print."""
    result = measure()
    write_json(output, result)
    print(
        f"{result['megapixels']:.0f} megapixels in {result['seconds']:.1f} s, "
        f"{result['peak_mib']:.0f} MiB beyond {result['import_mib']:.0f} of the imports; "
        f"{result['differing']} of {result['compared']} sampled values differ, by "
        f"{result['largest_difference_levels']} of 255 at most"
    )
    print(f"Recorded in {output}")


def measure(height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    """Upscale a photo of so many LR pixels; what it took, and how it differs.

    Raises:
        ValueError: the command failed.
    """
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "photo.png"), Path(folder, "large.png")
        lr = photo(height, width)
        write_png(source, lr)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(source), "-o", str(target), "--device", "cpu"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        said = done.stderr.strip().splitlines() or ["nothing"]
        if done.returncode or json.loads(said[-1])["code"]:
            raise ValueError(f"expected upscale.py to restore the photo, it said: {said[-2:]}")
        sr = read_rgb(target)
    return {
        "environment": record.environment(cpu),
        "megapixels": sr.shape[0] * sr.shape[1] / 1e6,
        "said": done.stdout.splitlines()[0],
        **json.loads(said[-1]),
        **compare(shipped(), as_tensor(lr), as_tensor(sr)),
        "windows": WINDOWS,
        "window": WINDOW,
    }


def photo(height: int, width: int) -> NDArray[np.uint8]:
    """The demo photos beside and below each other, (height, width, 3) uint8."""
    pictures = [read_rgb(pair.hr) for pair in find("demo", ROOT / "data").pairs if pair.hr]
    side = min(min(picture.shape[:2]) for picture in pictures)
    strip = np.hstack([picture[:side, :side] for picture in pictures])
    across, down = -(-width // strip.shape[1]), -(-height // side)
    return np.tile(strip, (down, across, 1))[:height, :width].copy()


def as_tensor(image: NDArray[np.uint8]) -> torch.Tensor:
    """(H, W, 3) -> (1, 3, H, W), a view."""
    return torch.from_numpy(image).permute(2, 0, 1)[None]


if __name__ == "__main__":
    sys.exit(main())
