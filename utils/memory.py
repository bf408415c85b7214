"""How much memory a process may still take, and which errors say that there is none left."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

import torch

# What PyTorch's, C++'s, ONNX Runtime's and OpenVINO's errors have in them, for they have no type
# of their own on a CPU.
_SAID = re.compile(
    "DefaultCPUAllocator|bad[_ ]alloc|(failed|unable|cannot|could not|not able) to allocate"
    "|(cannot|could not) allocate|(out of|not enough) memory",
    re.IGNORECASE,
)


def is_exhausted(error: BaseException) -> bool:
    """Whether it says that memory ran out, on a GPU or a CPU."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # A ValueError is one of ours, with perhaps such a word in a file's name.
    return not isinstance(error, ValueError) and bool(_SAID.search(str(error)))


def free_memory(device: torch.device) -> int | None:
    """Bytes that this process may still take on a device, or None where nobody tells.

    On a CPU the least of what the machine has available, of what the control groups of the process
    leave it, and of its own limits (ulimit -v, ulimit -d).
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    if device.type != "cpu":
        return None
    limits = [*_available(), *_own_limits(), *group_limits()]
    return max(0, min(limits)) if limits else None


def _available() -> Iterator[int]:
    with contextlib.suppress(OSError, KeyError):
        yield numbers_in("/proc/meminfo")["MemAvailable"] << 10


def _own_limits() -> Iterator[int]:
    with contextlib.suppress(ImportError, OSError, KeyError):
        import resource

        used = numbers_in("/proc/self/status")
        for limit, field in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most, _ = resource.getrlimit(limit)
            if most != resource.RLIM_INFINITY:
                yield most - (used[field] << 10)


def group_limits(
    process: Path = Path("/proc/self"), mounted: Path = Path("/sys/fs/cgroup")
) -> Iterator[int]:
    """Bytes that each of the process's control groups and of those above it leaves, where it has a
    limit; version 2 and 1.

    Pages of files that are only cached count as free: the system drops them when memory is needed.

    Args:
        process: where the file `cgroup` is.
        mounted: where the groups are.
    """
    try:
        lines = (process / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            root, names = mounted, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = mounted / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the machine's, while its own group is mounted as the root.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts) + 1):
            here = root.joinpath(*parts[:depth])
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                most, used = (int((here / name).read_text()) for name in names[:2])
                yield most - used + numbers_in(here / "memory.stat").get(names[2], 0)


def numbers_in(path: str | Path) -> dict[str, int]:
    """`name: 12 kB` or `name 12` of each line, the numbers as they stand."""
    found = re.findall(r"^(\w+):?\s+(\d+)", Path(path).read_text(), re.MULTILINE)
    return {name: int(value) for name, value in found}
