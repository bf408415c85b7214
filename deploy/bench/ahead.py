"""The Triton kernels compiled ahead of time, for a GPU that is not here.

Triton's wheel brings the assembler, so all that a compiler can say about a kernel is known without
a GPU: whether it compiles, its registers, its stack, its instructions.
"""

import contextlib
import re
import struct
import subprocess
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploy.bench.descriptors import doubtful_products

LONG, MIN_STACK_SIZE, REGCOUNT = 0x04, 0x12, 0x2F  # in a cubin's section .nv.info
NVIDIA = Path("backends", "nvidia", "bin")  # in Triton's package


@dataclass(frozen=True)
class Compiled:
    """One kernel as compiled for one architecture."""

    name: str
    ttgir: str
    ptx: str
    cubin: bytes
    warps: int
    shared: int  # bytes of shared memory a program

    @cached_property
    def registers(self) -> int:
        """Registers a thread."""
        return max(_attributes(self.cubin, REGCOUNT).values())

    @cached_property
    def stack(self) -> int:
        """Bytes of memory a thread uses as a stack: what does not fit into registers goes there."""
        return max(_attributes(self.cubin, MIN_STACK_SIZE).values())

    @property
    def multiplies(self) -> bool:
        """Whether it uses tensor cores."""
        return "wgmma.mma_async" in self.ptx or "mma.sync" in self.ptx

    @cached_property
    def late_writes(self) -> list[str]:
        """Registers that are written between Hopper's wgmma.fence and a product that reads them:
        it may read what was there before (PTX ISA, wgmma.fence)."""
        late: list[str] = []
        written: set[str] | None = None
        for line in map(str.strip, self.ptx.splitlines()):
            if line.startswith("wgmma.fence"):
                written = set()
            elif line.startswith("wgmma.wait_group"):
                written = None
            elif line.startswith("wgmma.mma_async"):
                late += sorted(set(re.findall(r"%r\d+", line)) & (written or set()))
            elif written is not None and (target := re.match(r"(?:@\S+ )?[\w.]+\s+(%r\d+),", line)):
                written.add(target[1])
        return late

    @cached_property
    def doubtful(self) -> list[str]:
        """Products on Hopper of which the machine code does not say where their matrices are."""
        return doubtful_products(self.sass) if "wgmma.mma_async" in self.ptx else []

    @cached_property
    def sass(self) -> list[str]:
        """The machine's instructions in order, each with its address before it, as cuobjdump
        prints them."""
        import triton

        program = Path(triton.__file__).parent / NVIDIA / "cuobjdump"
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.cubin)
            file.flush()
            text = subprocess.run(
                [program, "--dump-sass", file.name], check=True, capture_output=True, text=True
            ).stdout
        return re.findall(r"/\*([0-9a-f]{4,5}\*/\s+[^;]+);", text)


@dataclass(frozen=True)
class Launch:
    """One launch of a forward: what runs, how often, and what it was given, tensors without
    their memory."""

    kernel: Compiled
    programs: int
    arguments: dict[str, Any]
    held_bytes: int  # of all tensors made since, and still held


class _Driver:
    """Stands in for Triton's driver: a device of that architecture, on which nothing runs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)


class _Made(TorchDispatchMode):
    """Remembers the tensors that are made meanwhile, as long as anybody holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.tensors.append(weakref.ref(result))
        return result

    def held_bytes(self) -> int:
        """Of their memory, each piece counted once."""
        held = [tensor for made in self.tensors if (tensor := made()) is not None]
        storages = [tensor.untyped_storage() for tensor in held if not tensor.is_meta]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@contextlib.contextmanager
def launches(capability: int) -> Iterator[list[Launch]]:
    """Meanwhile every Triton kernel is compiled for that architecture instead of run; the list
    grows by a Launch each time.

    Args:
        capability: ten times the compute capability, such as 90.
    """
    import triton
    from triton.runtime.jit import JITFunction

    made: list[Launch] = []
    known: dict[str, Compiled] = {}
    original = JITFunction.run

    def run(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        compiled = original(self, *args, grid=grid, warmup=True, **options)
        if compiled.hash not in known:
            metadata, asm = compiled.metadata, compiled.asm
            known[compiled.hash] = Compiled(
                name=self.__name__,
                ttgir=asm["ttgir"],
                ptx=asm["ptx"],
                cubin=asm["cubin"],
                warps=metadata.num_warps,
                shared=metadata.shared,
            )
        sides = (*grid, 1, 1)[:3]
        programs = sides[0] * sides[1] * sides[2]
        held = tensors.held_bytes()
        given = [
            torch.empty(a.shape, dtype=a.dtype, device="meta") if isinstance(a, Tensor) else a
            for a in args
        ]
        arguments = dict(zip(self.arg_names, given, strict=False)) | options
        made.append(Launch(known[compiled.hash], programs, arguments, held))
        return compiled

    triton.runtime.driver.set_active(_Driver(capability))
    try:
        with mock.patch.object(JITFunction, "run", run), _Made() as tensors:
            yield made
    finally:
        triton.runtime.driver._active = None


def forward_launches(
    net: nn.Module, dtype: torch.dtype, capability: int, size: tuple[int, int, int]
) -> list[Launch]:
    """What one forward of the fused network launches for (batch, height, width) LR pixels."""
    from kernels.triton_network import FusedLKDN

    batch, height, width = size
    fast = FusedLKDN(net, dtype, capability=capability)
    with launches(capability) as made:
        fast(torch.zeros(batch, 3, height, width))
    return made


def _attributes(cubin: bytes, wanted: int) -> dict[int, int]:
    """Function -> value of an attribute in the section .nv.info of an ELF64 file.

    The section is a row of records: how its value is stored, which attribute it is, and two bytes
    that are the value, or the number of the bytes that follow.
    """
    sections, size, number, names = struct.unpack_from("<Q10xHHH", cubin, 0x28)
    headers = [struct.unpack_from("<I20xQQ", cubin, sections + i * size) for i in range(number)]
    texts = headers[names][1]
    found = {}
    for name, start, length in headers:
        if cubin[texts + name :].split(b"\0", 1)[0] != b".nv.info":
            continue
        at = start
        while at < start + length:
            kind, attribute, value = struct.unpack_from("<BBH", cubin, at)
            if kind == LONG and attribute == wanted:
                function, amount = struct.unpack_from("<II", cubin, at + 4)
                found[function] = amount
            at += 4 + (value if kind == LONG else 0)
    return found
