"""How long the Triton kernels take by a model of the GPU: python -m deploy.bench.modelled

Modelled, not measured. The kernels are compiled ahead of time, their instructions counted, and
each launch takes as long as the busiest part of the GPU, as if all parts worked at once and none
waited: a lower bound, good for comparing two forms of a kernel.
"""

import argparse
import logging
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from deploy import backends
from deploy.bench.ahead import Launch, forward_launches
from deploy.bench.worker import load_shipped
from utils import command
from utils.files import write_json

CAPABILITY = 90
# An H100 SXM by its data sheet; the L2 cache as microbenchmarks read it.
MULTIPROCESSORS, SCHEDULERS, CLOCK_HZ = 132, 4, 1.755e9
L1_BYTES_A_CLOCK = 128  # loads, stores and shared memory of one multiprocessor
L2_BYTES_A_S = 5.5e12
MEMORY_BYTES_A_S = 3.35e12
FLOPS = {torch.float16: 989e12, torch.bfloat16: 989e12, torch.float32: 494e12}  # or TF32

# Arguments that a kernel reads, and how many pixels around each it looks at; .. and that it writes.
READS = {
    "shallow_kernel": {"image": 1},
    "refine_kernel": {"source": 1},
    "merge_kernel": {"source": 1, "parts": 0},
    "spread_kernel": {"source": 2},
    "attend_kernel": {"source": 6, "merged": 0, "features": 0, "running": 0},
    "smooth_kernel": {"source": 1, "shallow": 0},
    "enlarge_kernel": {"source": 1},
}
WRITES = {
    "shallow_kernel": ("out",),
    "refine_kernel": ("out", "parts"),
    "merge_kernel": ("attention", "attention"),  # what replaces the parts has as many columns
    "spread_kernel": ("out",),
    "attend_kernel": ("out", "running"),
    "smooth_kernel": ("out",),
    "enlarge_kernel": ("image",),
}
PARTS = ("instructions", "tensor cores", "L1", "L2", "memory")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counts:
    """What one warp of a kernel executes."""

    instructions: float
    l1_bytes: float
    flops: float


def count(sass: list[str], trips: list[int]) -> Counts:
    """Count what a warp executes, its loops as often as `trips` says, in their order.

    Raises:
        ValueError: another number of loops.
    """
    lines = [(int(at, 16), text) for at, text in (line.split("*/", 1) for line in sass)]
    loops = []
    for at, text in lines:
        jump = re.search(r"\bBRA (?:`\(\S+\)|0x([0-9a-f]+))", text)
        if jump and jump[1] and int(jump[1], 16) < at:
            loops.append((int(jump[1], 16), at))
    if len(loops) != len(trips):
        raise ValueError(f"expected {len(trips)} loops, got {len(loops)}")
    instructions = l1_bytes = flops = 0.0
    for at, text in lines:
        times = 1
        for (first, last), trip in zip(loops, trips, strict=True):
            times *= trip if first <= at <= last else 1
        instructions += times
        name = re.sub(r"^\s*(@!?U?P\w+\s+)?", "", text)
        if re.match(r"(LDG|STG|LDS|STS|LDSM|STSM)\b", name):
            l1_bytes += times * 32 * _width(name)
        if product := re.match(r"[HBQ]?G?MMA\.(\d+)x(\d+)x(\d+)", name):
            # Four warps share one of these.
            flops += times * 2 * int(product[1]) * int(product[2]) * int(product[3]) / 4
    return Counts(instructions, l1_bytes, flops)


def _width(name: str) -> int:
    """Bytes that a thread moves."""
    if "LDSM" in name or "STSM" in name:
        return 4 * int(re.search(r"\.M88\.(\d)", name)[1]) if ".M88." in name else 4
    bits = re.search(r"\.(?:[US])?(8|16|64|128)\b", name)
    return int(bits[1]) // 8 if bits else 4


def loop_trips(ttgir: str) -> list[int]:
    """How often each loop of a kernel runs, in their order."""
    bounds = re.findall(r"scf\.for %\S+ = %c(\d+)\S* to %c(\d+)", ttgir)
    return [int(last) - int(first) for first, last in bounds]


def busy_s(launch: Launch, size: tuple[int, int, int], dtype: torch.dtype) -> dict[str, float]:
    """Seconds that each of PARTS is busy with a launch."""
    kernel, pixels = launch.kernel, size[0] * size[1] * size[2]
    counts = count(kernel.sass, loop_trips(kernel.ttgir))
    warps = launch.programs * kernel.warps
    height, width = launch.arguments["TH"], launch.arguments["TW"]

    def bytes_of(name: str) -> float:
        argument = launch.arguments[name]
        assert isinstance(argument, Tensor)
        return argument.numel() * argument.element_size()

    read = dict(READS[kernel.name])
    if launch.arguments.get("FIRST"):
        del read["running"]
    written = sum(bytes_of(name) for name in WRITES[kernel.name])
    near = sum(
        bytes_of(name) / pixels * (height + 2 * around) * (width + 2 * around) * launch.programs
        for name, around in read.items()
    )
    machine = MULTIPROCESSORS * CLOCK_HZ
    return {
        "instructions": counts.instructions * warps / (machine * SCHEDULERS),
        "tensor cores": counts.flops * warps / FLOPS[dtype],
        "L1": counts.l1_bytes * warps / (machine * L1_BYTES_A_CLOCK),
        "L2": (near + written) / L2_BYTES_A_S,
        "memory": (sum(map(bytes_of, read)) + written) / MEMORY_BYTES_A_S,
    }


def model(size: tuple[int, int, int], precision: str) -> list[dict[str, object]]:
    """One row a kernel of the shipped network: its launches, and how long they take together."""
    dtype = backends.DTYPES[precision]
    made = forward_launches(load_shipped(), dtype, CAPABILITY, size)
    names = Counter(launch.kernel.name for launch in made)
    rows: list[dict[str, object]] = []
    for name, number in names.items():
        own = [busy_s(launch, size, dtype) for launch in made if launch.kernel.name == name]
        kernel = next(launch.kernel for launch in made if launch.kernel.name == name)
        total = {part: 1000 * sum(busy[part] for busy in own) for part in PARTS}
        rows.append(
            {
                "kernel": name.removesuffix("_kernel"),
                "launches": number,
                "registers": kernel.registers,
                "ms": sum(1000 * max(busy.values()) for busy in own),
                "bound_by": max(total, key=lambda part: total[part]),
                "busy_ms": total,
            }
        )
    return rows
