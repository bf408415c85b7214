"""How long the Triton kernels take by a model of the GPU: python -m deploy.bench.modelled

Modelled, not measured. The kernels are compiled ahead of time, their instructions counted, and
each launch takes as long as the busiest part of the GPU, as if all parts worked at once and none
waited: a lower bound, good for comparing two forms of a kernel.
"""

import re
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor

from deploy import backends, runners
from deploy.bench.ahead import Launch, forward_launches
from deploy.bench.sass import loops, parse
from deploy.bench.worker import load_shipped
from utils import command, devices
from utils.command import UserError
from utils.files import write_json
from utils.record import environment
from utils.report import kernels as tables

CPU = torch.device("cpu")  # which compiles, and counts
CAPABILITY, ARCHITECTURES = 90, (80, 86, 90)
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


@dataclass(frozen=True)
class Counts:
    """What one warp of a kernel executes."""

    instructions: float
    l1_bytes: float
    l2_bytes: float  # of copies that go past the L1 cache
    flops: float


def count(sass: list[str], trips: list[int]) -> Counts:
    """Count what a warp executes, its loops as often as `trips` says, in their order.

    Raises:
        ValueError: another number of loops.
    """
    code = parse(sass)
    if len(found := loops(code)) != len(trips):
        raise ValueError(f"expected {len(trips)} loops, got {len(found)}")
    instructions = l1_bytes = l2_bytes = flops = 0.0
    for instruction in code:
        times = 1
        for (first, last), trip in zip(found, trips, strict=True):
            times *= trip if first <= instruction.at <= last else 1
        instructions += times
        name = instruction.name
        if re.match(r"(LDG|STG|LDS|STS|LDSM|STSM)\b", name):
            l1_bytes += times * 32 * _width(name)
        if re.match(r"LDGSTS\b", name):  # a copy to shared memory
            l1_bytes += times * 32 * _width(name)
            l2_bytes += times * 32 * _width(name)
        if shape := re.match(r"[HBQ]?G?MMA\.(\d+)x(\d+)x(\d+)", name):
            # Four warps share one of these.
            flops += times * 2 * int(shape[1]) * int(shape[2]) * int(shape[3]) / 4
    return Counts(instructions, l1_bytes, l2_bytes, flops)


def _width(name: str) -> int:
    """Bytes that a thread moves."""
    if matrices := re.search(r"\.M88\.(\d)", name):
        return 4 * int(matrices[1])
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
        "L2": (max(near, counts.l2_bytes * warps) + written) / L2_BYTES_A_S,
        "memory": (sum(map(bytes_of, read)) + written) / MEMORY_BYTES_A_S,
    }


def model(size: tuple[int, int, int], precision: str) -> dict[str, Any]:
    """A forward of the shipped network: a row a kernel, its launches and how long they take
    together; their sum, and the memory held at most."""
    dtype = runners.DTYPES[precision]
    made = forward_launches(load_shipped(), dtype, CAPABILITY, size)
    rows = []
    for name in dict.fromkeys(launch.kernel.name for launch in made):
        own = [launch for launch in made if launch.kernel.name == name]
        busy = [busy_s(launch, size, dtype) for launch in own]
        total = {part: 1000 * sum(times[part] for times in busy) for part in PARTS}
        rows.append(
            {
                "kernel": name.removesuffix("_kernel"),
                "launches": len(own),
                "registers": max(launch.kernel.registers for launch in own),
                "ms": sum(1000 * max(times.values()) for times in busy),
                "bound_by": max(total, key=lambda part: total[part]),
                "busy_ms": total,
            }
        )
    return {
        "precision": precision,
        "size": size,
        "ms": sum(row["ms"] for row in rows),
        "held_mib": max(launch.held_bytes for launch in made) / 2**20,
        "rows": rows,
    }


def compile_all() -> list[dict[str, Any]]:
    """Compile for every architecture in every precision: a row each, with the least and the most
    registers, the largest stack and the doubtful products of its kernels, or with the compiler's
    error."""
    rows = []
    for capability, precision in product(ARCHITECTURES, backends.PRECISIONS):
        row: dict[str, Any] = {"architecture": f"sm_{capability}", "precision": precision}
        rows.append(row)
        try:
            made = forward_launches(
                load_shipped(), runners.DTYPES[precision], capability, (1, 34, 51)
            )
        except Exception as error:  # the compiler's
            row["failed"] = type(error).__name__
            continue
        kernels = list({launch.kernel.cubin: launch.kernel for launch in made}.values())
        registers = [kernel.registers for kernel in kernels]
        row["kernels"] = len(kernels)
        row["registers"] = [min(registers), max(registers)]
        row["stack_bytes"] = max(kernel.stack for kernel in kernels)
        row["on_tensor_cores"] = sum(kernel.multiplies for kernel in kernels)
        row["doubtful_products"] = sum(len(kernel.doubtful) for kernel in kernels)
    return rows


def main(argv: list[str] | None = None) -> int:
    """The command; its exit code."""
    parser = command.parser(__doc__, "deploy.bench.modelled")
    add = parser.add_argument
    add("--size", type=command.size, default="340x510", metavar="HxW", help="LR size")
    add("--precisions", nargs="+", choices=backends.PRECISIONS, default=["fp16", "fp32"])
    add("--compile", action="store_true", help="only compile, for every architecture")
    add("-o", "--output", type=command.file, metavar="FILE", help="JSON to write")
    args = parser.parse_args(argv)

    def work() -> int:
        if args.size[0] * args.size[1] > backends.TRITON_PIXELS:
            raise UserError(
                f"expected a --size of at most {backends.TRITON_PIXELS} pixels, got "
                "{}x{}: give a smaller one".format(*args.size)
            )
        runners.need("triton")
        if devices.is_interpreted():
            raise UserError("expected Triton's compiler, got TRITON_INTERPRET=1: unset it")
        import triton

        result: dict[str, Any] = {"environment": environment(CPU), "triton": triton.__version__}
        if args.compile:
            result["compiled"] = compile_all()
            print(tables.compiled(result))
        else:
            result["rows"] = [model((1, *args.size), name) for name in args.precisions]
            print(tables.modelled(result))
        if args.output:
            write_json(args.output, result)
        return command.GOOD

    return command.run("deploy.bench.modelled", work)


if __name__ == "__main__":
    command.start(main)
