"""Training by the compiled kernels, from the command: processes, compilers, caches, sanitizers."""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kernels import native_library
from utils.weights import read_checkpoint

Run = Callable[..., CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, native_library.COMPILERS)), reason="needs a C++ compiler"
)


def test_the_fastest_arithmetic_of_a_cpu_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*features: str) -> str:
        monkeypatch.setattr(native_library, "cpu_features", lambda: set(features))
        return native_library.choose_arithmetic("bf16")

    tiles = ("amx_tile", "amx_bf16", "avx512_bf16")
    monkeypatch.setattr(native_library, "may_use_tiles", lambda: True)
    assert chosen("GenuineIntel", *tiles) == "amx_bf16"
    monkeypatch.setattr(native_library, "may_use_tiles", lambda: False)
    assert chosen("GenuineIntel", *tiles) == "float32"  # the system keeps them
    assert chosen("AuthenticAMD", *tiles) == "avx512_bf16"
    assert chosen("GenuineIntel", "avx512_bf16") == "float32"  # half as fast as float32 there
    assert chosen("AuthenticAMD", "avx512_bf16") == "avx512_bf16"
    assert chosen("AuthenticAMD", "avx512f") == chosen() == "float32"
    assert native_library.choose_arithmetic("fp32") == "float32"


@pytest.mark.skipif(
    "amx_tile" in native_library.cpu_features(), reason="needs a CPU without AMX, or unknown"
)
def test_no_system_lends_tiles_that_its_cpu_lacks() -> None:
    assert not native_library.may_use_tiles()


def test_a_run_by_two_processes_is_one_by_one(place: Path, root: Path, train: Run) -> None:
    options = ("--kernels", "native", "--precision", "fp32", "--batch", 4, "--val", "held out")
    assert train("native", *options).returncode == 0
    script = (root / "tests/two_processes.py", root / "train/train.py")
    together = train("native by two", *options, script=script)
    assert together.returncode == 0, together.stderr
    one, two = (read_checkpoint(place / run / "stage1.pt") for run in ("native", "native by two"))
    assert one["history"][0]["engine"]["kernels"] == "native"
    for name, value in one["params_ema"].items():
        # Float32 sums in another order, and Muon takes the gradient's direction alone.
        assert float((two["params_ema"][name] - value).abs().max()) < 1e-3


def test_torch_trains_where_the_kernels_cannot_be_compiled(
    place: Path, train: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def history(out: str) -> Any:
        return read_checkpoint(place / out / "stage1.pt")["history"][0]["engine"]["kernels"]

    recipe = ("--recipe", "cpu", "--steps", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = train("asked for", *recipe, "--no-fold")
    assert done.returncode == 0 and history("asked for") == "torch"

    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    done = train("no compiler", *recipe)
    assert done.returncode == 0 and history("no compiler") == "torch"
    assert "training by torch: the faster kernels need" in done.stderr
    assert "install g++" in done.stderr
    done = train("none but asked for", *recipe, "--kernels", "native")
    assert done.returncode == 2 and "install g++" in done.stderr

    broken = empty / "c++"
    broken.write_text("#!/bin/sh\necho 'native.h:1: error: C++20 is unknown' >&2\nexit 1\n")
    broken.chmod(0o755)
    done = train("broken compiler", *recipe)
    assert done.returncode == 0 and history("broken compiler") == "torch"
    assert "error: C++20 is unknown" in done.stderr


def test_a_home_that_cannot_be_written_to_is_done_without(
    place: Path, train: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    quick = tmp_path / "quick"  # a compiler that spares itself the optimisation
    compiler = " ".join(native_library.find_compiler())
    quick.write_text(f'#!/bin/sh\nexec {compiler} "$@" -O0\n')
    quick.chmod(0o755)
    monkeypatch.setenv("CXX", str(quick))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    done = train("no home", "--recipe", "cpu", "--steps", 1)
    assert done.returncode == 0, done.stderr
    engine = read_checkpoint(place / "no home" / "stage1.pt")["history"][0]["engine"]
    assert engine["kernels"] == "native"


# At 14 channels a block's parts have more columns than its features or the pixels enlarged by 2.
@pytest.mark.parametrize(("channels", "scale"), [(6, 4), (14, 2)])
def test_no_read_or_write_outside_of_memory_and_nothing_undefined(
    channels: int, scale: int, root: Path, tmp_path: Path
) -> None:
    """Both libraries' entry points under AddressSanitizer and UndefinedBehaviorSanitizer."""
    compiler = native_library.find_compiler()
    command = [
        *compiler,
        "-std=c++20",
        "-O0",
        "-g",
        "-march=native",
        "-pthread",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
        f"-DCHANNELS={channels}",
        "-DBLOCKS=2",
        "-DIMAGE=3",
        f"-DSCALE={scale}",
    ]
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}")
    linked = subprocess.run([*command, probe, "-o", tmp_path / "probe"], capture_output=True)
    if linked.returncode or subprocess.run([tmp_path / "probe"], capture_output=True).returncode:
        pytest.skip("this compiler lacks the sanitizers")
    sources = [root / "kernels" / name for name in ("native.cpp", "native_training.cpp")]
    main = root / "tests" / "sanitized.cpp"
    subprocess.run([*command, main, *sources, "-o", tmp_path / "sanitized"], check=True)
    done = subprocess.run([tmp_path / "sanitized"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == "8 sizes"
