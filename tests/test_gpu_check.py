"""The check for a GPU, rehearsed on a CPU in Triton's interpreter, and how it fails."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deploy import backends
from deploy.bench.worker import load_shipped
from deploy.gpu_check import __main__ as gpu_check
from deploy.gpu_check.parts import PARTS
from deploy.gpu_check.rows import run_rows
from utils.command import UserError
from utils.report.documents import publish

CPU = torch.device("cpu")
ABSENT = ("fvcore", "openvino", "onnx", "onnxruntime")


def test_it_runs_without_what_a_gpu_machine_lacks(tmp_path: Path, root: Path) -> None:
    """Every part's process fails if it imports one of these packages."""
    pytest.importorskip("triton", reason="triton is not installed")
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    for package in ABSENT:
        (blocked / f"{package}.py").write_text("import os\n\nos._exit(77)\n")
    line = "-m deploy.gpu_check --device cpu --sizes 3x5 --parts products agreement speed -o"
    done = subprocess.run(
        [sys.executable, *line.split(), tmp_path / "out"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(blocked)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout, done.stderr[-3000:])
    assert "products: 36 rows, 0 failed, " in done.stdout
    assert "agreement: 2 rows, 0 failed, " in done.stdout
    assert "speed: 5 rows, 0 failed, " in done.stdout
    agreement, speed = (
        json.loads((tmp_path / f"out/{p}.json").read_text())["rows"] for p in ("agreement", "speed")
    )
    assert all(0 < row["largest_difference"] < 1e-2 for row in agreement)
    assert {row["name"] for row in speed} >= {"triton fp16 3x5", "the network as torch comes 3x5"}
    assert all(row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"] for row in speed)


def test_rows_are_written_as_they_come_and_run_once(tmp_path: Path) -> None:
    file, runs = tmp_path / "part.json", []

    def good() -> dict:
        runs.append("good")
        return {"total_ms": 1.0}

    def bad() -> dict:
        runs.append("bad")
        assert [row["name"] for row in json.loads(file.read_text())["rows"]][:1] == ["good"]
        raise RuntimeError("an illegal memory access was encountered\nand more")

    for _ in range(2):
        result = run_rows("part", [("good", good), ("bad", bad)], CPU, file)
        assert json.loads(file.read_text()) == result
        failed = {row["name"]: row.get("failed") for row in result["rows"]}
        assert failed["good"] is None and failed["bad"].startswith("RuntimeError: an illegal")
    assert runs == ["good", "bad"]


@pytest.mark.parametrize(
    ("ended", "words"),
    [(1, "0 failed, "), (-11, "0 failed, ended with -11, "), (None, "cut after 9 minutes, ")],
)
def test_a_part_that_failed_or_was_cut_makes_the_exit_code_1(
    ended: int | None,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    started: list[str] = []

    def run(line: list[str], seconds: float) -> int | None:
        assert seconds == pytest.approx(540, abs=5)
        started.append(line[line.index("--parts") + 1])
        return ended

    monkeypatch.setattr(gpu_check, "_run_for", run)
    assert gpu_check.main(["--device", "cpu", "-o", str(tmp_path)]) == 1
    assert started == list(PARTS)  # the others run all the same
    assert capsys.readouterr().out.count(words) == len(PARTS)


DYING = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
from deploy import runners
from deploy.gpu_check import __main__ as gpu_check, rows

def lose():
    rows._answers = lambda device: False
    raise RuntimeError("an illegal memory access was encountered")

def speed(device, sizes):
    measures = {
        "good": dict,
        "raises": lambda: 1 / 0,
        "segfault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
        "device lost": lose,
        "exit": lambda: os._exit(1),  # as LLVM does
        "last": dict,
    }
    for name, measure in measures.items():
        yield name, lambda: open("begun", "a").write(name + ",") and measure()

gpu_check.PARTS["speed"] = speed
runners.need = lambda name: None
sys.exit(gpu_check.main(sys.argv[1:]))
"""


def test_a_row_that_ends_its_process_costs_itself_alone(
    tmp_path: Path,
    root: Path,
    python: Callable[..., subprocess.CompletedProcess[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    script = tmp_path / "dying.py"
    script.write_text(DYING)
    ends = []

    def run(line: list[str], seconds: float) -> int:
        ends.append(python(tmp_path, script, root, *line[3:]).returncode)
        return ends[-1]

    monkeypatch.setattr(gpu_check, "_run_for", run)
    options = ["--device", "cpu", "--parts", "speed", "-o", str(tmp_path)]
    for call in (1, 2):  # what failed is tried anew, once
        assert gpu_check.main(options) == 1
        assert "speed: 6 rows, 4 failed, " in capsys.readouterr().out
        rows = json.loads((tmp_path / "speed.json").read_text())["rows"]
        assert {row["name"]: row.get("failed") for row in rows} == {
            "good": None,
            "raises": "ZeroDivisionError: division by zero",
            "segfault": "its process ended with SIGSEGV",
            "device lost": "RuntimeError: an illegal memory access was encountered",
            "exit": "its process ended with exit code 1",
            "last": None,
        }
        assert ends == [-signal.SIGSEGV, gpu_check.LOST, 1, 1] * call
    again = "raises,segfault,device lost,exit,"
    assert (tmp_path / "begun").read_text() == f"good,{again}last,{again}"


def test_what_a_cut_part_started_ends_with_it(tmp_path: Path) -> None:
    beats = tmp_path / "beats"
    inner = f"while sleep 0.05; do echo >> {beats}; done"
    assert gpu_check._run_for(["sh", "-c", f"sh -c '{inner}'; true"], 0.5) is None
    before = beats.stat().st_size
    time.sleep(0.2)
    assert beats.stat().st_size == before
    assert gpu_check._run_for(["sh", "-c", "exit 3"], 10) == 3


ENDED = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv.pop(1))
from deploy.gpu_check import __main__ as gpu_check

beats = ["sh", "-c", f"while sleep 0.05; do echo >> {os.getcwd()}/beats; done"]
gpu_check._run_part = lambda part, args: gpu_check._run_for(beats, 60)
threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
sys.exit(gpu_check.main(["--device", "cpu", "--parts", "speed"]))
"""


def test_what_was_started_ends_with_the_command(
    tmp_path: Path, root: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (tmp_path / "ended.py").write_text(ENDED)
    done = python(tmp_path, tmp_path / "ended.py", root)
    assert (done.returncode, done.stderr) == (1, "deploy.gpu_check: interrupted\n")
    before = (tmp_path / "beats").stat().st_size
    time.sleep(0.2)
    assert (tmp_path / "beats").stat().st_size == before


@pytest.mark.parametrize("content", ['{"rows": [1]}', '{"rows": 3}', "[]", "{"])
def test_another_file_of_the_name_has_no_rows(tmp_path: Path, content: str) -> None:
    (tmp_path / "speed.json").write_text(content)
    assert gpu_check._rows(tmp_path / "speed.json") == []


def test_a_device_that_is_not_there_is_refused(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert gpu_check.main([]) == 2
    assert "expected the device cuda" in capsys.readouterr().err


def test_a_replay_of_nan_does_not_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though the kernels agreed when they were launched one by one."""

    class Cuda:
        type = "cuda"

    net = load_shipped()
    calls: list[int] = []

    def fast(x: Tensor) -> Tensor:
        calls.append(1)
        return net(x) if len(calls) == 1 else torch.full_like(net(x), torch.nan)

    monkeypatch.setattr(Tensor, "to", lambda self, device: self)
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: self)
    monkeypatch.setattr(backends, "make", lambda *_: fast)
    _, measure = next(PARTS["agreement"](Cuda(), []))  # type: ignore[arg-type]
    with pytest.raises(ArithmeticError, match="got nan"):
        measure()
    assert len(calls) == 3


def test_what_was_found_is_published_failures_too(tmp_path: Path) -> None:
    def fails() -> dict:
        raise ArithmeticError("expected | a difference")

    time = {"p20_ms": 1.0, "p50_ms": 1.25, "p80_ms": 2.0, "memory_mib": 41.7}
    found = {"largest_difference": 3.86e-7, "tf32": True}
    rows = [("exact", lambda: found), ("fast", lambda: time), ("broken", fails)]
    rows += [("tile", lambda: {"refused": "OutOfResources: shared memory"})]
    rows += [("kernels", lambda: {"measured_ms": {"merge": 0.25}, "total_ms": 12.345})]
    rows += [("model", lambda: {"modelled_ms": [{"size": [1, 9], "rows": [{"ms": 0.1}]}]})]
    run_rows("agreement", rows, CPU, tmp_path / "found.json")
    document = tmp_path / "deploy" / "README.md"
    document.parent.mkdir()
    document.write_text("<!-- generated: gpu_check -->\n<!-- end -->\n")
    publish([tmp_path / "found.json"], tmp_path)
    assert (tmp_path / "results/published/gpu_check/agreement.json").is_file()
    lines = document.read_text().splitlines()
    assert "| exact | largest difference 3.86e-07 |" in lines
    assert "| fast | 1.25 ms (1, 2), 42 MiB |" in lines
    assert "| tile | refused: OutOfResources: shared memory |" in lines
    assert "| kernels | total ms 12.3 |" in lines and "| model | done |" in lines
    (broken,) = (line for line in lines if line.startswith("| broken |"))
    assert "failed: ArithmeticError: expected" in broken and broken.count("|") in (3, 4)
    found_there = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "found.json").write_text(json.dumps(found_there | {"part": "../x"}))
    with pytest.raises(UserError, match="expected the JSON of a run"):
        publish([tmp_path / "found.json"], tmp_path)
