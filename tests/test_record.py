"""Run records, and what becomes of results files beside them."""

import json
import math
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from made_records import a_run

from utils import record
from utils.files import ROOT, write_json
from utils.report import summary
from utils.text import machine


def sets_in(folder: Path) -> set[str]:
    results = json.loads((folder / "results.json").read_text())
    keys = {key for entry in results.values() for key in entry}
    return {key.removesuffix("_ave_psnr") for key in keys if key.endswith("_ave_psnr")}


def test_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    runs = [a_run(f"set{i}", f"model{i % 3}") for i in range(12)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda run: record.write_run(tmp_path, run), runs))
    assert sets_in(tmp_path) == {f"set{i}" for i in range(12)}
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob(".*"))


def test_a_run_that_comes_while_the_results_are_made_is_in_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, others = record.read_runs, [a_run("Set14"), a_run("BSD100")]

    def overtaken(folder: Path) -> list[dict[str, Any]]:
        runs = read(folder)
        if runs and others:  # from a process that has written its run, and no results yet
            write_json(folder / f"{record.run_stem(others[0])}.json", others.pop(0))
        return runs

    monkeypatch.setattr(record, "read_runs", overtaken)
    record.write_run(tmp_path, a_run("Set5"))
    assert sets_in(tmp_path) == {"Set5", "Set14", "BSD100"}
    assert "BSD100" in (tmp_path / "results.txt").read_text()


def test_runs_of_other_versions_are_left_out_of_the_results(tmp_path: Path) -> None:
    run = a_run("demo", "23_LKDN")
    write_json(tmp_path / "old.json", {"model": 1, "dataset": 2, "images": [3], "checkpoint": 4})
    for key in ("environment", "ave_ssim", "activations", "images"):
        write_json(tmp_path / f"no {key}.json", {k: v for k, v in run.items() if k != key})
    record.write_run(tmp_path, run)
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["23_LKDN"]


def test_results_that_no_run_here_wrote_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The organisers' own, where --save_dir is their folder."""
    for name in ("results.json", "results.txt"):
        (tmp_path / name).write_text(f"their {name}")
    record.write_run(tmp_path, a_run())
    record.write_run(tmp_path, a_run("Set14"))
    assert {path.name for path in tmp_path.iterdir()} == {
        *("results.json", "results.txt", "results_before1.json", "results_before1.txt"),
        *("23_LKDN_Set5_cpu_eager_fp32.json", "23_LKDN_Set14_cpu_eager_fp32.json"),
    }
    assert (tmp_path / "results_before1.json").read_text() == "their results.json"
    assert set(json.loads((tmp_path / "results.json").read_text())) == {"23_LKDN"}
    assert [message.partition(" was there")[2] for message in caplog.messages] == [
        f" and is now {tmp_path}/results_before1.{suffix}" for suffix in ("json", "txt")
    ]


def test_a_run_of_other_weights_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record.write_run(tmp_path, a_run())
    record.write_run(tmp_path, a_run())
    assert not caplog.messages
    record.write_run(tmp_path, {**a_run(), "checkpoint": {"name": "w.pth", "sha256": "1" * 64}})
    (said,) = caplog.messages
    assert "23_LKDN_Set5_cpu_eager_fp32.json is replaced: it was of other weights;" in said


@pytest.mark.parametrize(
    ("change", "is_other"),
    [
        ({"psnr": 31.0, "runtime_ms": 9.0}, False),
        ({"psnr_bicubic": 28.0 + 1e-9}, False),
        ({"name": "b"}, True),
        ({"size": [48, 64]}, True),
        ({"psnr_bicubic": 28.1}, True),
        ({"psnr_bicubic": math.inf}, True),
    ],
)
def test_a_run_of_other_images_is_replaced_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, Any], is_other: bool
) -> None:
    record.write_run(tmp_path, a_run())
    run = a_run()
    run["images"][0] |= change
    for _ in range(2):  # not against itself
        record.write_run(tmp_path, run)
    assert len(caplog.messages) == is_other
    assert all("is replaced: it was of other images;" in said for said in caplog.messages)
    caplog.clear()
    record.write_run(tmp_path, {**run, "lr_source": "files in another LR"})
    assert len(caplog.messages) == 1


def test_the_mean_of_equal_images_is_infinite_not_missing() -> None:
    run = {**a_run(), "ave_psnr": None}
    assert summary.row(run)[1] == "infinite"
    image = {**run["images"][0], "psnr": None, "psnr_bicubic": None}
    assert summary.row({**run, "images": [image]})[1] == "not measured"


@pytest.mark.parametrize(
    ("flags", "widest"),
    [
        ("fpu avx avx2 fma", "AVX2"),
        ("avx2 avx512f avx512_bf16", "AVX512-BF16"),
        ("avx2 avx512f avx512_bf16 amx_tile amx_bf16", "AMX"),
        ("fpu sse", None),
    ],
)
def test_a_record_tells_what_decides_a_cpus_speed(
    flags: str, widest: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: Some CPU\nflags\t\t: {flags}\n")
    monkeypatch.setattr(record, "Path", lambda path: tmp_path / Path(path).name)
    told = record.environment(torch.device("cpu"))
    assert told["device"].startswith("Some CPU, ") and told["instructions"] == widest
    assert machine({**told, "threads": 2}) == told["device"] + f", {widest}" * bool(widest) + (
        ", 2 threads"
    )


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_of_another_repository_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where code.zip is unpacked over a clone of the organisers' template."""

    def git(*arguments: object) -> None:
        who = ("-c", "user.name=A", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", tmp_path, *who, *arguments], check=True, capture_output=True)

    git("init")
    git("commit", "--allow-empty", "-m", "theirs")
    (tmp_path / "team23_LKDN").mkdir()
    monkeypatch.setattr(record, "ROOT", tmp_path.resolve())
    assert len(record.environment(torch.device("cpu"))["commit"]) == 40
    monkeypatch.setattr(record, "ROOT", tmp_path.resolve() / "team23_LKDN")
    environment = record.environment(torch.device("cpu"))
    assert (environment["commit"], environment["dirty"]) == (None, None)


def test_environment_is_complete_and_holds_no_paths() -> None:
    environment = record.environment(torch.device("cpu"))
    assert environment["torch"] == str(torch.__version__) and environment["threads"] >= 1
    assert {
        "commit",
        "dirty",
        "python",
        "cuda",
        "driver",
        "device",
        "tf32_matmul",
        "tf32_cudnn",
        "cudnn_benchmark",
        "date",
    } <= set(environment)
    assert str(ROOT) not in json.dumps(environment)
