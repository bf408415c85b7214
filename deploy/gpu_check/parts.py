"""What is checked on a GPU: each part gives names and measurements, one a row."""

import copy
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deploy import backends, runners
from deploy.bench.worker import load_shipped, milliseconds, raise_clock
from deploy.cuda_graphs import replay_graphs
from deploy.gpu_check.rows import Measure
from deploy.triton_backend import TOLERANCES
from utils import efficiency
from utils.files import ROOT, read_json
from utils.imaging.images import write_png

Size = tuple[int, int]
AWKWARD = ((1, 1, 1), (1, 7, 13), (2, 16, 16), (1, 65, 127))
TIMED = 30  # forwards
TRAINING_TESTS = ("test_recipes.py", "test_optim.py", "test_recording.py")
# Of train/throughput.py, what matters most first: time may run out.
TRAINING_ROWS = (
    *("+ CUDA graphs", "CUDA graphs and dense pairs", "CUDA graphs and channels of zeros"),
    *("+ branches folded at each step", "+ channels_last", "channels_last and dense pairs"),
    *("+ Triton depthwise", "+ torch.compile", "torch.compile and dense pairs"),
)


def agreement(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """Whether the Triton network is the network, in every precision, at awkward sizes."""
    net = load_shipped().to(device)
    exact = copy.deepcopy(net).double()
    cuda = device.type == "cuda"

    def measure(precision: str, batch: int, height: int, width: int) -> dict:
        generator = torch.Generator().manual_seed(height)
        x = torch.rand(batch, 3, height, width, generator=generator).to(device)
        fast = backends.make("triton", net, precision, device)
        with torch.inference_mode():
            # On CUDA by kernels, recorded, replayed.
            results = torch.stack([fast(x) for _ in range(3 if cuda else 1)])
            # torch's maximum: Python's passes over a NaN that comes later.
            worst = float((results - exact(x.double())).abs().max())
        most = TOLERANCES[runners.DTYPES[precision]]
        if not worst <= most:
            raise ArithmeticError(f"expected a difference up to {most}, got {worst}")
        return {"largest_difference": worst}

    # Triton's interpreter multiplies bfloat16 as if it were integers.
    for precision in backends.PRECISIONS if cuda else ("fp32", "fp16"):
        for shape in (*(AWKWARD if cuda else ()), *((1, *size) for size in sizes)):
            yield f"{precision} {'x'.join(map(str, shape))}", partial(measure, precision, *shape)


def products(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """Two products on tensor cores, one after the other, of the shapes that the network's kernels
    have: where this is wrong, the compiler is."""
    from kernels.triton_tiles import multiply

    def measure(precision: str, inner: int, columns: int, last: int) -> dict:
        torch.manual_seed(0)
        dtype = runners.DTYPES[precision]
        a = torch.randn(128, inner, device=device).to(dtype)
        b, c = (torch.randn(n, 96, device=device).to(dtype) for n in (inner, columns))
        b, c = b[:, 32 : 32 + columns], c[:, 64 : 64 + last]
        between = (a.double() @ b.double()).to(dtype)
        expected = between.double() @ c.double()
        result = multiply(a, b, c).double()
        error = float((result - expected).norm() / expected.norm())
        # Sums are float32; now and then one of them is rounded to another neighbour.
        if not error <= {"fp32": 1e-5, "fp16": 1e-4, "bf16": 1e-3}[precision]:
            raise ArithmeticError(f"expected equal products, got a relative error of {error}")
        return {"relative_error": error}

    precisions = backends.PRECISIONS if device.type == "cuda" else ("fp32", "fp16")
    for row in product(precisions, (16, 64, 128), (16, 32, 64), (16, 32)):
        yield "{} 128x{}x{}x{}".format(*row), partial(measure, *row)


def speed(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """Time and memory of each backend; eager also as torch comes, where float32 is TF32."""
    net = load_shipped()
    precisions = ("fp16", "fp32", "bf16") if device.type == "cuda" else ("fp16",)
    pairs = [("triton", precision) for precision in precisions]
    pairs += [("channels_last", p) for p in ("fp16", "fp32")] + [("eager", "fp32")]
    for size, pair in product(sizes, pairs):
        make = partial(backends.make, pair[0], net, pair[1], device)
        name = "{} {} {}x{}".format(*pair, *size)
        yield name, partial(time_forward, make, size, device)

    def measure_plain(size: Size) -> dict:
        tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
        return time_forward(lambda: copy.deepcopy(net).to(device), size, device) | {"tf32": tf32}

    for size in sizes:
        yield "the network as torch comes {}x{}".format(*size), partial(measure_plain, size)


def sweep(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """Other tiles, warps and stages of the Triton kernels; the first row is what they have.

    What needs more than a GPU has, or does not compile, is refused, not failed.
    """
    from triton.errors import TritonError

    from kernels.triton_network import FusedLKDN

    net = load_shipped().to(device)

    def measure(precision: str, tile: Size, warps: int, stages: int) -> dict:
        def make() -> Callable[[Tensor], Tensor]:
            fast = FusedLKDN(net, runners.DTYPES[precision])
            fast.blocks = replace(fast.blocks, tile=tile, warps=warps, stages=stages)
            return replay_graphs(fast) if device.type == "cuda" else fast

        try:
            return time_forward(make, sizes[-1], device)
        except TritonError as error:
            return {"refused": f"{type(error).__name__}: {error}"[:200]}

    height, width = sizes[-1]
    for precision in ("fp16", "fp32"):
        own = FusedLKDN(net, runners.DTYPES[precision]).blocks
        tried = [(own.tile, own.warps, own.stages)]
        tried += product(((4, 16), (8, 16), (4, 32), (8, 8)), (4, 8), (1, 2, 3))
        for tile, warps, stages in dict.fromkeys(tried):
            name = f"{precision} {height}x{width} tile {tile[0]}x{tile[1]}"
            row = partial(measure, precision, tile, warps, stages)
            yield f"{name}, {warps} warps, {stages} stages", row


def kernels(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """The time of each kernel, beside what the model says of an H100."""
    from torch.profiler import ProfilerActivity, profile

    from kernels.triton_network import FusedLKDN

    size = "{}x{}".format(*sizes[-1])

    def measure(precision: str) -> dict:
        fast = FusedLKDN(load_shipped().to(device), runners.DTYPES[precision])
        x = torch.rand(1, 3, *sizes[-1], device=device)
        milliseconds(fast, x)  # compiled: the clock is not up for that
        raise_clock(fast, x)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(TIMED):
                fast(x)
            torch.cuda.synchronize()
        ms = {
            event.key.removesuffix("_kernel"): event.device_time_total / 1000 / TIMED
            for event in profiler.key_averages()
            if event.key.endswith("_kernel")
        }
        return {"measured_ms": ms, "total_ms": sum(ms.values())}

    def model(precision: str) -> dict:
        # In a process of its own: its Triton compiles, and believes in another driver.
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "modelled.json")
            options = ["--precisions", precision, "--size", size, "-o", file]
            _run([sys.executable, "-m", "deploy.bench.modelled", *options])
            return {"modelled_ms": read_json(file)["rows"]}

    for precision in ("fp16", "fp32"):
        if device.type == "cuda":
            yield f"{precision} {size} measured", partial(measure, precision)
        yield f"{precision} {size} modelled", partial(model, precision)


def demo(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """The judge's command, as it comes and with --backend auto."""

    def measure(backend: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--device", device.type, "--backend", backend, "--save_dir", folder]
            return {"last_lines": _run([sys.executable, "test_demo.py", *options])[-6:]}

    for backend in ("eager", "auto"):
        yield f"test_demo.py --backend {backend}", partial(measure, backend)


def tests(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """The tests of the Triton kernels, and those of training that need CUDA, a file a row."""

    def measure(file: Path) -> dict:
        chosen = ["-k", "cuda"] if file.name in TRAINING_TESTS else []
        line = [sys.executable, "-m", "pytest", "-q", file, *chosen]
        return {"last_lines": _run(line)[-6:]}

    tests = ROOT / "tests"
    for file in (*sorted(tests.glob("test_triton_*.py")), *map(tests.joinpath, TRAINING_TESTS)):
        yield file.name, partial(measure, file)


def training(device: torch.device, sizes: list[Size]) -> Iterator[tuple[str, Measure]]:
    """Steps a second of training on made-up images, a row of train/throughput.py each."""
    rows = TRAINING_ROWS if device.type == "cuda" else ("+ denormals flushed, freed memory kept",)
    steps, batch, patch = (100, 128, 256) if device.type == "cuda" else (10, 2, 32)

    def measure(row: str) -> dict:
        with tempfile.TemporaryDirectory() as folder:
            rng = np.random.default_rng(0)
            for i in range(8):
                image = rng.integers(0, 256, (2 * patch, 2 * patch, 3), dtype=np.uint8)
                write_png(Path(folder, "images", f"{i}.png"), image)
            file = Path(folder, "throughput.json")
            options = f"--steps {steps} --batch {batch} --patch {patch} --minutes 4"
            line: list[Any] = [sys.executable, "train/throughput.py", "--device", device.type]
            line += ["--data", f"{folder}/images", "--packed", f"{folder}/packed", "-o", file]
            _run([*line, *options.split(), "--rows", row])
            return dict(read_json(file)["rungs"][0])

    for row in rows:
        yield row, partial(measure, row)


Part = Callable[[torch.device, list[Size]], Iterator[tuple[str, Measure]]]
PARTS: dict[str, Part] = {
    "products": products,
    "agreement": agreement,
    "speed": speed,
    "kernels": kernels,
    "demo": demo,
    "sweep": sweep,
    "training": training,
    "tests": tests,
}


def time_forward(
    make: Callable[[], Callable[[Tensor], Tensor]], size: Size, device: torch.device
) -> dict[str, Any]:
    """Percentiles of a forward's time in ms, and the peak memory, of what `make` gives."""
    efficiency.reset_peak_memory(device)
    run = make()
    x = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    cuda = device.type == "cuda"
    for _ in range(3 if cuda else 0):  # compiled, recorded, replayed
        milliseconds(run, x)
    raise_clock(run, x)
    ms = [milliseconds(run, x) for _ in range(TIMED if cuda else 1)]
    p20, p50, p80 = np.percentile(ms, [20, 50, 80]).tolist()
    memory_mib = efficiency.peak_memory_mib(device)
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "memory_mib": memory_mib}


def _run(line: list[Any]) -> list[str]:
    """The lines that a command prints. Raises RuntimeError with its last ones if it fails."""
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=env)
    printed = [part for part in re.split(r"[\r\n]+", done.stdout) if part.strip()]
    if done.returncode:
        last = " | ".join([*printed, *done.stderr.strip().splitlines()][-6:])
        raise RuntimeError(f"exit code {done.returncode}: {last}")
    return printed
