"""The benchmark: its command, its record, and the large image."""

import contextlib
import json
import multiprocessing
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from made_records import a_benchmark

from deploy import backends
from deploy.bench import __main__ as bench
from deploy.bench import large, limits, plan, worker
from deploy.bench.worker import Ready, Row, RunImages, Timing
from models.team23_LKDN import LKDN
from utils.command import UserError
from utils.report import documents, speed
from utils.schema import misfit

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def rival(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own network, in a file of its own."""
    path = tmp_path_factory.mktemp("rival") / "rival.py"
    path.write_text(
        "from torch.nn import Upsample\n\n\nclass Rival(Upsample):\n"
        "    def __init__(self):\n        super().__init__(scale_factor=4)\n"
    )
    return path


@pytest.fixture()
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that are forks of a process with torch in memory, not each a fresh one."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deploy.bench.worker"])
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.mark.parametrize("name", ["json.py", "a_net.py"])
def test_a_rival_may_have_dataclasses(tmp_path: Path, name: str) -> None:
    """They look for their module among those that are imported."""
    (tmp_path / name).write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "from torch.nn import Upsample\n\n\n@dataclass\nclass Size:\n    scale: float\n\n\n"
        "class Net(Upsample):\n    def __init__(self):\n"
        "        super().__init__(scale_factor=Size(4).scale)\n"
    )
    assert worker.rival(f"{tmp_path / name}:Net")(torch.zeros(1, 3, 2, 2)).shape[-1] == 8
    assert sys.modules["json"] is json


def test_networks_of_one_class_have_rows_of_their_own(tmp_path: Path, rival: Path) -> None:
    (tmp_path / "old").mkdir()
    other = shutil.copy(rival, tmp_path / "old" / "net.py")
    single = shutil.copy(rival, tmp_path / "single.py")
    Path(single).write_text(Path(single).read_text().replace("Rival", "Single"))
    given = [f"{rival}:Rival", f"{other}:Rival", f"{single}:Single", f"{rival}:Rival"]
    args = bench._parse(["--backends", "eager", "--precisions", "fp32", "--against", *given])
    labels = [row.label for row in bench._rows(args, torch.device("cpu"))]
    assert labels == [
        "eager fp32, torch as it comes",
        "eager fp32",
        *(f"{name} {how} fp32" for name in given[:2] for how in ("eager", "channels_last")),
        "Single eager fp32",
        "Single channels_last fp32",
    ]


@pytest.mark.usefixtures("forked_workers")
def test_every_row_is_timed_and_compared(
    tmp_path: Path, rival: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    options = "--sizes 24x31 16x16 --rounds 2 --backends channels_last triton --device cpu"
    against = ("--precisions", "fp32", "bf16", "--against", f"{rival}:Rival")
    assert bench.main([*options.split(), *against, "-o", str(tmp_path / "bench.json")]) == 0
    result = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert speed.is_whole(result)
    labels = [
        "eager fp32, torch as it comes",
        "channels_last fp32",
        "channels_last bf16",
        "Rival eager fp32",
        "Rival channels_last fp32",
    ]
    assert [row["label"] for row in result["rows"]] == 2 * labels
    assert result["refused"] == {
        f"triton {p}": "triton needs a CUDA device, got cpu" for p in ("fp32", "bf16")
    }
    plain = result["rows"][0]
    for row in result["rows"][: len(labels)]:
        assert (row["height"], row["width"]) == (24, 31)
        assert 0 < row["p20_ms"] <= row["p50_ms"] <= row["p80_ms"]
        assert row["ratio_to_eager"] == pytest.approx(plain["p50_ms"] / row["p50_ms"])
        assert row["memory_mib"] > 0
        assert ("psnr_drift_db" in row) == ("tflop_s" in row) == (not row["against"])
    exact, half = (abs(row["psnr_drift_db"]) for row in result["rows"][:2]), result["rows"][2]
    assert max(exact) < 1e-3 and 1e-4 < abs(half["psnr_drift_db"]) < 0.2
    assert {"commit", "threads", "date"} <= set(result["environment"])
    printed = capsys.readouterr().out
    assert all(label in printed for label in labels)
    first, *lines = caplog.messages
    assert first.startswith("7 rows at 2 sizes, 7 forwards each; no benchmark of this machine")
    assert "left out: triton bf16: triton needs a CUDA device, got cpu" in lines


FAILING = """
from torch.nn import Upsample

class Picky(Upsample):
    def __init__(self):
        super().__init__(scale_factor=4)

    def forward(self, x):
        assert x.shape[-1] != 20, "not of 20 pixels\\nand more"
        return super().forward(x)
"""


@pytest.mark.usefixtures("forked_workers")
def test_a_row_that_fails_at_a_size_costs_the_others_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    against = [f"{tmp_path / 'failing.py'}:Picky"]
    options = "--sizes 16x18 16x20 8x8 --rounds 1 --backends triton --precisions fp32"
    output = tmp_path / "bench.json"
    command = [*options.split(), "--device", "cpu", "-o", str(output), "--against", *against]
    assert bench.main(command) == 0
    result = json.loads(output.read_text())
    assert speed.is_whole(result)
    own = ["eager fp32, torch as it comes"]
    others = ["Picky eager fp32", "Picky channels_last fp32"]
    measured = [(row["label"], row["width"]) for row in result["rows"]]
    expected = [*((label, 18) for label in (*own, *others)), *((label, 20) for label in own)]
    assert measured == expected + [(label, 8) for label in own]
    assert result["refused"].pop("triton fp32") == "triton needs a CUDA device, got cpu"
    assert result["refused"] == {f"{label} at 16x20": "not of 20 pixels" for label in others}
    assert f"{others[0]} at 16x20: not of 20 pixels" in capsys.readouterr().out


class ScriptedPipe:
    """A row's process that answers up to a size and then dies."""

    def __init__(self, widest: int) -> None:
        self.widest = widest
        self.answers: list[Any] = [Ready("ran", 0.0)]

    def send(self, question: Any) -> None:
        if not self.widest:
            raise BrokenPipeError
        if isinstance(question, RunImages) and question.width > self.widest:
            self.widest = 0
        elif isinstance(question, RunImages):
            self.answers.append(Timing(1.0, 1.0))
        else:
            self.answers.append(0.0)

    def recv(self) -> Any:
        if not self.answers:
            raise EOFError
        return self.answers.pop(0)


def test_figures_of_a_row_that_died_before_it_was_compared_are_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [Row("eager", "fp32"), Row("channels_last", "fp32")]
    sizes = [(16, 16), (16, 32)]

    def measured(*widest: int) -> dict[str, Any]:
        pipes = dict(zip(rows, map(ScriptedPipe, widest), strict=True))
        monkeypatch.setattr(bench, "workers", lambda *_: contextlib.nullcontext(pipes))
        result: dict[str, Any] = {"rows": []}
        bench.measure(result, rows, sizes, CPU, 1)
        return result

    monkeypatch.setattr(bench, "measure_ceilings", lambda _: {})
    assert [row["width"] for row in measured(99, 99)["rows"]] == [16, 16, 32, 32]
    result = measured(99, 20)
    assert [(row["label"], row["width"]) for row in result["rows"]] == [
        ("eager fp32", 16),
        ("eager fp32", 32),
    ]
    assert set(result["refused"]) == {"channels_last fp32 at 16x32", "channels_last fp32"}
    with pytest.raises(UserError, match="plain network cannot run at 16x32: its process died"):
        measured(20, 99)


@pytest.mark.parametrize(
    ("features", "emulated"),
    [
        ({"avx2"}, ["fp16", "bf16"]),
        (set(), ["fp16", "bf16"]),
        ({"avx512_bf16", "avx2"}, ["fp16"]),
        ({"bf16"}, ["fp16"]),
    ],
)
def test_what_a_cpu_emulates_is_measured_only_if_asked_for(
    features: set[str], emulated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch's large product took minutes in bf16 on a CPU with AVX2."""
    monkeypatch.setattr("kernels.native_library.cpu_features", lambda: features)
    assert [p for p in backends.PRECISIONS if backends.is_emulated(p, CPU)] == emulated
    assert not any(backends.is_emulated(p, torch.device("cuda")) for p in backends.PRECISIONS)
    for given in ([], ["--precisions", "bf16"]):
        args = bench._parse(["--backends", "native", *given])
        asked = {row.precision for row in bench._rows(args, CPU)} - {"fp32"}
        assert asked == ({"bf16"} if given else {"fp16", "bf16"} - set(emulated))


def test_cost_is_that_of_the_paper() -> None:
    macs, moved = limits.cost(LKDN())
    assert macs * 256**2 == 8289189888  # the factsheet's 8.29 G
    # Floats a pixel that convolutions, norms and the shuffle read and write.
    block = 3 * (42 + 21 + 42 + 42 + 42 + 42) + (42 + 21 + 21 + 21) + (84 + 42) + 3 * 84 + 2 * 84
    ends = (12 + 42 + 42 + 42) + (210 + 42) + 4 * 42 + (42 + 48) + (48 + 48)
    assert moved / 4 == 5 * block + ends


@pytest.mark.parametrize(
    "options",
    [
        ("--sizes", "24"),
        ("--sizes", "0x4"),
        ("--rounds", "0"),
        ("--against", "absent.py:Net"),
        ("--against", "broken.py:Net"),
        ("--against", "net.py:Absent"),
        ("--backends", "fastest"),
        ("-o", "x.png"),
    ],
)
def test_wrong_options_are_refused(
    options: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "net.py").write_text("")
    try:
        code = bench.main(["-o", "x.json", "--device", "cpu", *options])
    except SystemExit as stop:  # argparse
        code = int(str(stop.code))
    assert code == 2 and capsys.readouterr().err.strip()
    assert not (tmp_path / "x.json").exists()


def test_interrupted_it_keeps_the_sizes_that_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    time_size = bench._time_size

    def stop(pipes: Any, height: int, *rest: Any) -> Any:
        if height == 9:
            raise KeyboardInterrupt
        return time_size(pipes, height, *rest)

    monkeypatch.setattr(bench, "_time_size", stop)
    file = tmp_path / "bench.json"
    options = "--sizes 8x8 9x9 --rounds 1 --backends eager --precisions fp32 --device cpu"
    assert bench.main([*options.split(), "-o", str(file)]) == 1
    result = json.loads(file.read_text())
    assert [row["height"] for row in result["rows"]] == [8, 8]
    assert not speed.is_whole(result)
    with pytest.raises(UserError, match="all of deploy.bench"):
        documents.publish([file], tmp_path)


def test_a_large_image_keeps_to_its_bound_and_to_the_plain_network() -> None:
    result = large.measure_tiles(CPU, side=250, bound=40 << 20)
    assert result["tile"] < 250 and result["megapixels"] == 1
    assert result["largest_difference_levels"] <= 1
    assert result["differing"] <= 1e-3 * result["compared"]
    assert result["compared"] == 12 * 3 * (4 * 24) ** 2


def test_a_large_photo_is_measured_through_the_command() -> None:
    result = large.measure_photo(height=90, width=130)
    assert not misfit(result, speed.LARGE) and result["code"] == 0
    assert result["megapixels"] == 16 * 90 * 130 / 1e6
    assert 0 < result["peak_mib"] < 1000 and result["import_mib"] > 50
    assert result["largest_difference_levels"] <= 1
    assert f"and {result['peak_mib']:.0f} MiB beyond the" in speed.large([result])


def test_labels_tell_rows_apart() -> None:
    rows = [
        Row("eager", "fp32"),
        Row("eager", "fp32", prepared=False),
        Row("eager", "bf16"),
        Row("eager", "fp32", "nets/a.py:Net:w.pth", network="Net"),
    ]
    assert [row.label for row in rows] == [
        "eager fp32",
        "eager fp32, torch as it comes",
        "eager bf16",
        "Net eager fp32",
    ]


def test_the_time_is_that_of_a_benchmark_of_the_same_machine(tmp_path: Path) -> None:
    file, other = tmp_path / "benchmark_cpu.json", tmp_path / "other.json"
    file.write_text(json.dumps(a_benchmark()))
    other.write_text(json.dumps({}))
    files, sizes = [tmp_path / "absent.json", other, file], [(340, 510), (8, 8)]
    here = {"device": "a chip", "threads": 2}
    text = plan.describe(["eager fp32", "auto fp32"], sizes, 10, here, files)
    # 3 + 10 * 2 forwards of 50 and of 10 ms: 1.38 s.
    assert "2 rows at 2 sizes, 23 forwards each: about 1 s" in text
    text = plan.describe(["eager fp32", "auto fp32"], sizes, 3000, here, files)
    assert f"about 6 minutes of forwards by {file}, which has 2 of these 4 pairs" in text
    unknown = "no benchmark of this machine says how long"
    assert unknown in plan.describe(["eager fp32"], sizes, 3, here | {"threads": 4}, files)
    assert unknown in plan.describe(["native fp32"], sizes, 3, here, files)
