"""Closed, full and broken streams: the work is done, the exit code says so, and nothing else."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import OPTIONS
from warm_python import python

from utils.files import ROOT

# Runs a command as a shell does with 1>&-, 2>/dev/full, | head -0 and the like; Python itself has
# no stream for a descriptor that is closed.
SHELL = """
import os, runpy, sys
how, numbers, command, *sys.argv[1:] = sys.argv[1:]
for number in map(int, numbers):
    if how == "closed":
        os.close(number)
        for name in (["stdout"], ["stderr"])[number - 1]:
            setattr(sys, name, None)
            setattr(sys, f"__{name}__", None)
    elif how == "full":
        os.dup2(os.open("/dev/full", os.O_WRONLY), number)
    else:
        reader, writer = os.pipe()
        os.close(reader)
        os.dup2(writer, number)
sys.argv[0] = command
if command.endswith(".py"):
    runpy.run_path(command, run_name="__main__")
else:
    sys.path[0] = os.environ["REPOSITORY"]
    runpy.run_module(command, run_name="__main__", alter_sys=True)
"""
OUT, ERR, BOTH = "1", "2", "12"


def start(
    cwd: Path, how: str, numbers: str, command: str, *arguments: object
) -> subprocess.CompletedProcess[str]:
    done = python(
        cwd,
        "-c",
        SHELL,
        how,
        numbers,
        command,
        *arguments,
        REPOSITORY=str(ROOT),
        OMP_NUM_THREADS="1",
    )
    said = done.stdout + done.stderr
    assert not re.search("Traceback|Exception ignored|Logging error", said), said
    return done


@pytest.mark.parametrize("numbers", [OUT, ERR, BOTH])
@pytest.mark.parametrize("how", ["closed", "full", "broken"])
def test_photos_are_enlarged(
    how: str, numbers: str, tmp_path: Path, save: Callable, noise: Callable, random_weights: Path
) -> None:
    for name in "abc":
        save(tmp_path / f"{name}.png", noise(6, 7))
    save(tmp_path / "d.png", noise(6, 7)).write_bytes(b"no image")
    options = ["-o", "out", "--device", "cpu", "--backend", "eager", "--checkpoint", random_weights]
    good = [f"{name}.png" for name in "abc"]
    done = start(tmp_path, how, numbers, f"{ROOT}/upscale.py", *good, *options, "--verbose")
    assert done.returncode == 0
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == [
        "a_x4.png",
        "b_x4.png",
        "c_x4.png",
    ]
    expected = "not all could be written to stdout: No space left on device"
    assert (expected in done.stderr) == (how == "full" and numbers == OUT)
    failed = start(tmp_path, how, numbers, f"{ROOT}/upscale.py", "d.png", *options)
    assert failed.returncode == 1


def test_sets_are_measured(tmp_path: Path, save: Callable, noise: Callable) -> None:
    save(tmp_path / "set" / "HR" / "a.png", noise(32, 36))
    options = ["--dataset", "set", "--save_dir", "out", "--device", "cpu"]
    done = start(tmp_path, "full", BOTH, f"{ROOT}/test_demo.py", *options)
    assert done.returncode == 0
    assert (tmp_path / "out" / "results.json").stat().st_size
    assert (tmp_path / "out" / "23_LKDN" / "set" / "a.png").stat().st_size


def test_training_goes_on(
    place: Path, logged: Callable, uninterrupted: Path, tmp_path: Path
) -> None:
    more = ["--out", tmp_path, "--val", "held out"]
    done = start(place, "broken", BOTH, f"{ROOT}/train/train.py", *OPTIONS.split(), *more)
    assert done.returncode == 0
    assert logged(tmp_path) == logged(uninterrupted)
    assert start(place, "broken", BOTH, f"{ROOT}/train/export.py", tmp_path).returncode == 0
    assert list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize(
    "command",
    [
        *("test_demo.py", "upscale.py", "data/prepare.py", "train/train.py", "train/export.py"),
        *("train/trial.py", "train/throughput.py", "train/agreement.py"),
        *("deploy.bench", "deploy.bench.large", "deploy.submission", "deploy.onnx_export"),
        *("deploy.bench.modelled", "deploy.gpu_check"),
        *("utils.report.documents", "utils.report.page", "utils.report.pictures"),
    ],
)
def test_help_that_cannot_be_written_is_a_failure_in_every_command(
    command: str, tmp_path: Path
) -> None:
    command = f"{ROOT}/{command}" if command.endswith(".py") else command
    done = start(tmp_path, "full", OUT, command, "--help")
    assert done.returncode == 1
    assert done.stderr == "--help: cannot write to stdout: No space left on device\n"


def test_an_answer_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    question = [f"{ROOT}/test_demo.py", "--device", "cpu", "--memory_of", "8x8"]
    done = start(tmp_path, "full", OUT, *question)
    assert done.returncode == 1
    assert done.stderr == "test_demo.py: cannot write to stdout: No space left on device\n"
    assert start(tmp_path, "broken", OUT, *question).returncode == 0  # nobody wants to know


def test_names_that_a_terminal_has_no_letters_for_are_written(tmp_path: Path) -> None:
    code = f"import sys; sys.path[0] = {str(ROOT)!r}\n" + (
        "from utils import command; command.start(lambda: print('a\\udcff\\u2192') or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "a\\udcff\\u2192\n"), done.stderr


def test_no_file_becomes_a_closed_stream(tmp_path: Path) -> None:
    """The first file to be opened gets the number 2 where nothing is: what a library says there
    would stand in it."""
    code = """
import os, sys
sys.path[0] = os.environ["REPOSITORY"]
os.close(2)
sys.stderr = sys.__stderr__ = None
from utils import command
def main():
    with open("photo", "w") as file:
        os.write(2, b"libpng warning")
        file.write("pixels")
    return 0
command.start(main)
"""
    assert python(tmp_path, "-c", code, REPOSITORY=str(ROOT)).returncode == 0
    assert (tmp_path / "photo").read_text() == "pixels"


@pytest.mark.parametrize(
    "command", ["test_demo.py", "upscale.py", "train/train.py", "data/prepare.py"]
)
def test_commands_run_without_their_folder_on_the_path(command: str, tmp_path: Path) -> None:
    # What -P makes of sys.path, and the flag that tells of it.
    code = """
import os, runpy, sys, types
flags = types.SimpleNamespace(**{n: getattr(sys.flags, n) for n in dir(sys.flags) if n[0] != "_"})
flags.safe_path = True
del sys.path[0]
sys.flags, sys.argv = flags, sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    done = python(tmp_path, "-c", code, ROOT / command, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ")
