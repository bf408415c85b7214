"""How much memory is free, by whatever limits a process, and what happens where it runs out."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import names, opened, photo
from PIL import Image

from deploy import backends, upscaler
from utils.memory import free_memory, group_limits, is_exhausted

resource = pytest.importorskip("resource", reason="needs POSIX")
GIB, MIB = 2**30, 2**20


def group(folder: Path, most: object, used: int, cached: int, version: int = 2) -> None:
    files = {2: ("memory.max", "memory.current", "inactive_file")}
    files[1] = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    limit, usage, field = files[version]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{field} {cached}\nactive_file 7\n")


def limits(folder: Path, groups: str) -> list[int]:
    (folder / "proc").mkdir(exist_ok=True)
    (folder / "proc" / "cgroup").write_text(groups)
    return sorted(group_limits(folder / "proc", folder / "sys"))


def test_the_limits_of_all_groups_above_a_process_hold(tmp_path: Path) -> None:
    group(tmp_path / "sys" / "user", 8 * GIB, 3 * GIB, GIB)
    group(tmp_path / "sys" / "user" / "job.1", "max", GIB, 0)
    group(tmp_path / "sys" / "user" / "job.1" / "step", 2 * GIB, 1536 * MIB, 512 * MIB)
    group(tmp_path / "sys" / "other", MIB, 0, 0)
    assert limits(tmp_path, "0::/user/job.1/step\n") == [GIB, 6 * GIB]
    assert limits(tmp_path, "0::/user/job.1\n") == [6 * GIB]
    assert limits(tmp_path, "0::/\n") == limits(tmp_path, "0::/gone\n") == []


def test_version_1_and_containers(tmp_path: Path) -> None:
    memory = tmp_path / "sys" / "memory"
    group(memory, 2**63 - 4096, 9 * GIB, 0, version=1)
    group(memory / "slurm", 4 * GIB, GIB, GIB, version=1)
    groups = "3:cpu,cpuacct:/x\n4:memory:/slurm/uid_0\n0::/\n1:name=systemd:/y\n"
    assert limits(tmp_path, groups) == [4 * GIB, 2**63 - 4096 - 9 * GIB]
    # A container's own group as the root, while its path is the machine's, or leads out of it.
    group(tmp_path / "sys", 3 * GIB, GIB, 0)
    for path in ("/docker/0123", "/../../init.scope", "//", "/"):
        assert limits(tmp_path, f"0::{path}\n") == [2 * GIB]
    assert list(group_limits(tmp_path / "nowhere", tmp_path)) == []


@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_the_limits_of_the_process_hold(root: Path, python: Callable, limit: str) -> None:
    script = f"""
import re, resource, sys
sys.path.insert(0, {str(root)!r})
import torch
from utils.memory import free_memory
field = {{"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}}[{limit!r}]
used = int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10
most = used + (100 << 20)
resource.setrlimit(resource.{limit}, (most, most))
print(free_memory(torch.device("cpu")) / 2**20)
"""
    if not Path("/proc/self/status").exists() or not hasattr(resource, limit):
        pytest.skip("needs Linux's /proc")
    done = python(root, "-c", script)
    assert 90 < float(done.stdout) <= 101, done.stderr


def test_what_is_free_is_told() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50
    assert free_memory(torch.device("meta")) is None


def test_what_torch_keeps_of_a_gpu_for_later_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (3 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 20 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 5 * GIB)
    assert free_memory(torch.device("cuda")) == 18 * GIB


def test_errors_that_say_that_memory_ran_out() -> None:
    huge = 2**56
    for work in (lambda: torch.empty(huge), lambda: np.empty(huge), lambda: bytes(huge)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            work()
        assert is_exhausted(caught.value)
    said = ("std::bad_alloc", "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bad allocation")
    said += ("Triton Error [CUDA]: out of memory", "CUDA error: out of memory")
    assert all(is_exhausted(RuntimeError(text)) for text in said)
    assert is_exhausted(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_exhausted(ValueError("no picture: out of memory.png"))
    assert not is_exhausted(OSError(errno.ENOENT, "not found", "bad_alloc.png"))
    assert not is_exhausted(RuntimeError("size mismatch"))
    assert not is_exhausted(RuntimeError("an illegal memory access was encountered"))


EXHAUSTED = (
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't alloc"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
)


@pytest.mark.parametrize("error", EXHAUSTED)
def test_a_picture_is_made_in_smaller_tiles(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    Image.fromarray(photo(6, 170)).save("a.png")
    forward = upscaler.Upscaler._forward

    def limited(self: upscaler.Upscaler, piece: torch.Tensor) -> torch.Tensor:
        if piece.shape[-1] > 158:
            raise error
        return forward(self, piece)

    assert enlarge("a.png", "-o", "whole.png") == 0
    monkeypatch.setattr(upscaler.Upscaler, "_forward", limited)
    assert enlarge("a.png", "-o", "tiles.png") == 0
    assert "out of memory: going on with tiles of 22 pixels" in caplog.text
    apart = np.array(opened("tiles.png")).astype(int) - np.array(opened("whole.png"))
    assert np.abs(apart).max() <= 1


@pytest.mark.parametrize("error", EXHAUSTED)
@pytest.mark.parametrize("where", ["_forward", "__init__"])
def test_no_memory_at_all_is_one_line_that_says_what_to_do(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    error: Exception,
    where: str,
) -> None:
    Image.fromarray(photo(8, 9)).save("a.png")

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(upscaler.Upscaler, where, fail)
    assert enlarge("a.png") == 1
    printed = capsys.readouterr()
    said = printed.out if where == "_forward" else printed.err
    assert "out of memory: free some, or let the network take less of it by --memory" in said
    assert "Traceback" not in printed.err and names(tmp_path) == ["a.png"]


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_no_memory_for_the_network_itself_is_no_wrong_usage(
    backend: str, enlarge: Callable, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """As on a GPU that others have filled."""

    def fails(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    Image.fromarray(photo(8, 9)).save("a.png")
    for name in backends._MAKERS:
        monkeypatch.setitem(backends._MAKERS, name, fails)
    assert enlarge("a.png", "--backend", backend) == 1
    assert "out of memory: free some" in capsys.readouterr().err


def test_the_smallest_tile_may_take_all_that_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    device, cost = torch.device("cpu"), 6200  # its smallest tile takes 119.2 MiB
    for free, bound in ((100, 100), (130, 119), (1000, 500)):
        monkeypatch.setattr(upscaler, "free_memory", lambda _, free=free: free * MIB)
        assert round(upscaler._default_memory(device, cost) / MIB) == bound
