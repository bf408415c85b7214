"""The compiled kernels as libraries: where they are kept, for how long, and for which CPU."""

import ctypes
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

from kernels import native_library
from kernels.native import NativeLKDN
from kernels.native_library import CompileError
from models.team23_LKDN import LKDN

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="needs a C++ compiler"
)


@pytest.fixture()
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where compiled kernels are kept, not there yet; all else of them would lie in `temporary`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(native_library.tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(native_library, "FLAGS", (*native_library.FLAGS, "-O0"))
    monkeypatch.setattr(native_library, "_unkept", {})
    return tmp_path / "lkdn"


@pytest.fixture()
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The libraries that were compiled, or were to be."""
    done: list[Path] = []
    compile_ = native_library._compile

    def count(command: list[str], source: Path, library: Path) -> ctypes.CDLL:
        done.append(library)
        return compile_(command, source, library)

    monkeypatch.setattr(native_library, "_compile", count)
    return done


def test_compiled_once_a_machine(
    cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    NativeLKDN(LKDN(4, 1))
    NativeLKDN(LKDN(4, 1))
    (library,) = compilations
    assert sorted(cache.iterdir()) == [library.with_suffix(".sha256"), library]
    for path in (cache, *cache.iterdir()):
        assert path.stat().st_mode & 0o022 == 0  # what lies there is run
    monkeypatch.setattr(native_library, "_cpu", lambda: "another machine")
    NativeLKDN(LKDN(4, 1))
    assert len(set(compilations)) == 2


def test_a_damaged_library_is_compiled_anew(cache: Path, compilations: list[Path]) -> None:
    NativeLKDN(LKDN(4, 1))
    (library,) = compilations
    whole = library.read_bytes()
    damages = {
        "cut off": whole[: len(whole) // 2],
        "cut off in its header": whole[:100],
        "overwritten": whole[:4096] + bytes(len(whole) - 4096),
    }
    for damage in damages.values():
        library.unlink()  # which is mapped
        library.write_bytes(damage)
        x = torch.rand(1, 3, 5, 6)
        assert NativeLKDN(LKDN(4, 1))(x).isfinite().all()
    library.with_suffix(".sha256").write_bytes(b"\xff")
    NativeLKDN(LKDN(4, 1))
    assert compilations == [library] * 5
    assert sorted(cache.iterdir()) == [library.with_suffix(".sha256"), library]


def test_what_nobody_uses_any_more_is_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the next library that is compiled; what was used meanwhile is kept."""

    def age(days: float) -> None:
        for file in cache.iterdir():
            os.utime(file, (then := time.time() - 24 * 3600 * days, then))

    NativeLKDN(LKDN(4, 1))
    used = set(cache.iterdir())
    NativeLKDN(LKDN(6, 1))
    age(native_library.UNUSED_DAYS + 1)
    NativeLKDN(LKDN(4, 1))
    (young := cache / "tmp_being_compiled.so").touch()
    (old := cache / "tmp_of_a_killed_compiler.so").touch()
    os.utime(old, (then := time.time() - 25 * 3600, then))
    NativeLKDN(LKDN(8, 1))
    assert used | {young} < (left := set(cache.iterdir()))
    assert len(left) == len(used) + 1 + 2

    def already_gone(file: Path) -> None:
        os.unlink(file)
        raise FileNotFoundError

    age(native_library.UNUSED_DAYS + 1)
    monkeypatch.setattr(Path, "unlink", already_gone)  # another process was faster
    native_library._remove_unused(cache)
    assert not list(cache.iterdir())


def test_a_library_that_cannot_be_loaded_is_compiled_once_more(
    cache: Path, compilations: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = ctypes.CDLL
    refused: list[str] = []

    def refuse_the_first(path: str) -> ctypes.CDLL:
        if not refused:
            refused.append(path)
            raise OSError("failed to map segment")
        return load(path)

    monkeypatch.setattr(native_library.ctypes, "CDLL", refuse_the_first)
    NativeLKDN(LKDN(4, 1))
    NativeLKDN(LKDN(4, 1))  # this process has it already
    assert len(compilations) == 2 and compilations[0].parent == cache
    assert not cache.exists() and not list((cache.parent / "temporary").iterdir())


@pytest.mark.skipif(os.name != "posix", reason="needs owners and modes")
@pytest.mark.parametrize("kind", ["writable", "link", "another's", "file"])
def test_a_folder_that_others_may_write_to_is_not_used(
    kind: str,
    cache: Path,
    compilations: list[Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    own = cache.parent / "own"
    own.mkdir(mode=0o700)
    if kind == "link":
        cache.symlink_to(own)
    elif kind == "file":
        cache.write_text("")
    else:
        cache.mkdir(mode=0o700)
    if kind == "writable":
        cache.chmod(0o770)
    if kind == "another's":
        monkeypatch.setattr(native_library.os, "geteuid", lambda: cache.stat().st_uid + 1)
    NativeLKDN(LKDN(4, 1))
    assert [library for library in compilations if library.is_relative_to(cache)] == []
    assert len(compilations) == 1 and not list((cache.parent / "temporary").iterdir())
    assert kind == "file" or not list(cache.iterdir())
    assert kind == "file" or "this user, alone may write to" in caplog.text


def test_why_it_cannot_be_compiled_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompileError, match="got none: install"):
        NativeLKDN(LKDN(4, 1))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'native.cpp:1: error: C++20 is unknown' >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(CompileError, match="error: C\\+\\+20 is unknown"):
        NativeLKDN(LKDN(4, 1))
    monkeypatch.setattr("platform.system", lambda: "Windows")
    with pytest.raises(CompileError, match="got Windows"):
        NativeLKDN(LKDN(4, 1))
    assert not cache.exists() and not list((tmp_path / "temporary").iterdir())


def test_the_compilers_own_arguments_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ccache", "my c++"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for own, command in {
        "ccache g++-13 -m64": ["ccache", "g++-13", "-m64"],
        "my c++": ["my c++"],
        str(tmp_path / "ccache"): ["ccache"],
    }.items():
        monkeypatch.setenv("CXX", own)
        program, *arguments = native_library.find_compiler()
        assert [program, *arguments] == [str(tmp_path / command[0]), *command[1:]]


CPUINFO = """processor\t: {number}
vendor_id\t: {vendor}
model name\t: of number {number}
flags\t\t: fpu avx512f {more}

"""


@pytest.mark.parametrize(
    ("vendor", "arithmetic"), [("AuthenticAMD", "avx512_bf16"), ("GenuineIntel", "float32")]
)
def test_a_cpu_is_known_by_its_maker_and_what_it_can_do(
    vendor: str, arithmetic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux has it; of processors after the first nothing counts."""
    info = tmp_path / "cpuinfo"
    first, second = ({"number": n, "more": f"{m}bf16"} for n, m in enumerate(("avx512_", "amx_")))
    info.write_text("".join(CPUINFO.format(vendor=vendor, **cpu) for cpu in (first, second)))
    monkeypatch.setattr(native_library, "CPUINFO", info)
    features = native_library.cpu_features()
    assert {vendor, "avx512f", "avx512_bf16"} <= features and "amx_bf16" not in features
    assert "number" not in features
    assert native_library.choose_arithmetic("bf16") == arithmetic
