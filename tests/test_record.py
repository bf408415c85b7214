"""Run records, and the template's results files made of them."""

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

from utils import record, template
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


# What the template writes, tabs and padding included; SPAN's line is of the results.txt of 2026.
HEADER = "Model               \tVal PSNR  \tVal Time [ms] \t"
HEADER_TEST = (
    "Model               \tVal PSNR  \tTest PSNR \tVal Time [ms] \tTest Time [ms]\tAve Time [ms] \t"
)
COSTS = "Params [M]\tFLOPs [G] \tActs [M]\tMem [M] \tConv    \n"
SPAN = (
    "00_SPAN             \t26.94     \t27.01     \t8.00          \t7.47          \t7.74          \t"
    "0.151     \t9.83      \t41.68   \t705.24  \t  22    \n"
)
OURS = "0.129     \t8.29      \t202.70  \t100.00  \t  86    \n"
COUNTS = {"activations": 202.702848, "num_conv": 86, "flops": 8.289189888}


def entry_of(mode: str, ssim: bool = False) -> dict[str, Any]:
    """One mode's part of the template's results.json, in its order, of `a_run`."""
    return {
        f"{mode}_runtime": [2.0],
        f"{mode}_psnr": [30.0],
        **({f"{mode}_ssim": [0.8]} if ssim else {}),
        f"{mode}_memory": 100.0,
        f"{mode}_ave_runtime": 2.0,
        f"{mode}_ave_psnr": 30.0,
        **({f"{mode}_ave_ssim": 0.8} if ssim else {}),
    }


@pytest.mark.parametrize("ssim", [False, True])
@pytest.mark.parametrize(
    ("sets", "modes", "text"),
    [
        (
            ["DIV2K_valid"],
            ["valid"],
            HEADER + COSTS + "23_LKDN             \t30.00     \t2.00          \t" + OURS,
        ),
        (
            ["LSDIR_DIV2K_test"],
            ["hybrid_test"],
            HEADER + COSTS + "23_LKDN             \t30.00     \t2.00          \t" + OURS,
        ),
        (
            ["DIV2K_valid", "DIV2K_test"],
            ["valid", "test"],
            HEADER_TEST
            + COSTS
            + "23_LKDN             \t30.00     \t30.00     \t2.00          \t2.00          \t"
            + "2.00          \t"
            + OURS,
        ),
    ],
)
def test_results_are_written_as_the_template_writes_them(
    tmp_path: Path, sets: list[str], modes: list[str], text: str, ssim: bool
) -> None:
    for name in sets:
        run = a_run(name)
        del run["images"][1:]
        if ssim:
            run["ave_ssim"] = run["images"][0]["ssim"] = 0.8
        record.write_run(tmp_path, run)
    parts = [part for mode in modes for part in entry_of(mode, ssim).items()]
    expected = {"23_LKDN": {**dict(parts), **COUNTS, "num_parameters": 0.129177}}
    written = json.loads((tmp_path / "results.json").read_text())
    assert written == expected and list(written["23_LKDN"]) == list(expected["23_LKDN"])
    assert (tmp_path / "results.txt").read_text() == text


def test_the_sets_of_later_years_give_their_lines() -> None:
    span = {
        "num_parameters": 150688,
        "flops": 9_800_000_000,
        "flops_fvcore": 9833807872,
        "activations": 41680896,
        "num_conv": 22,
    }
    test = a_run("DIV2K_LSDIR_test", "00_SPAN") | span
    test |= {"ave_psnr": 27.012206, "ave_runtime_ms": 7.468771, "memory_mib": 1159.11474609375}
    valid = a_run("DIV2K_LSDIR_valid", "00_SPAN") | span
    valid |= {"ave_psnr": 26.940388, "ave_runtime_ms": 8.004025, "memory_mib": 705.23681640625}
    assert template.table([test, valid]) == HEADER_TEST + COSTS + SPAN
    entry = template.results([test, valid])["00_SPAN"]
    assert list(entry)[:2] == ["valid_runtime", "valid_psnr"] and entry["flops"] == 9.833807872
    both = template.results(
        [valid, a_run("DIV2K_valid", "00_SPAN") | span]
    )  # one must not hide the other
    assert both["00_SPAN_DIV2K_LSDIR"]["valid_ave_psnr"] == 26.940388
    assert both["00_SPAN"]["valid_ave_psnr"] == 30.0


def test_other_sets_stand_below_and_gaps_stay_empty() -> None:
    runs = [a_run(name) for name in ("Set5", "LSDIR_DIV2K_test", "DIV2K_test")]
    runs[2]["ave_psnr"] = None  # its HR images are not public
    blocks = template.table(runs).split("\n\n")
    cells = [[cell.strip() for cell in block.splitlines()[1].split("\t")] for block in blocks]
    titles = [block.split("\t")[1].strip() for block in blocks]
    assert titles == ["Val PSNR", "Hybrid PSNR", "Set5 PSNR"]
    assert cells[0][:6] == ["23_LKDN", "", "", "", "2.00", ""] and cells[0][-2] == "100.00"
    assert cells[1][:3] == cells[2][:3] == ["23_LKDN", "30.00", "2.00"]


def test_results_of_several_devices_stand_side_by_side() -> None:
    results = template.results([a_run(device="cpu"), a_run(device="cuda")])
    assert set(results) == {"23_LKDN_cpu_eager_fp32", "23_LKDN_cuda_eager_fp32"}


def test_runs_of_other_weights_stand_in_lines_of_their_own() -> None:
    """Or validation would be of one and test of another, and the costs of whichever came last."""
    old = {**a_run("DIV2K_test"), "checkpoint": {"name": "w.pth", "sha256": "ab" * 32}}
    new = {**a_run("DIV2K_valid"), "ave_psnr": 26.0, "num_parameters": 90000, "flops": 5 * 10**9}
    new["environment"] = {**new["environment"], "date": "2026-01-03T00:00:00+00:00"}
    for runs in ([old, new], [new, old]):
        entries = template.results(runs)
        assert set(entries) == {"23_LKDN", "23_LKDN_abababab"}
        assert entries["23_LKDN"]["num_parameters"] == 0.09
        assert "test_ave_psnr" not in entries["23_LKDN"]
        assert entries["23_LKDN_abababab"]["flops"] == COUNTS["flops"]
        assert template.table(runs).count("23_LKDN_abababab") == 1


def test_a_folder_of_a_modes_name_is_none_of_the_challenges() -> None:
    folder = {**a_run("valid"), "ave_psnr": 20.0}
    (entry,) = template.results([a_run("DIV2K_valid"), folder]).values()
    assert (entry["valid_ave_psnr"], entry["folder_valid_ave_psnr"]) == (30.0, 20.0)
    first, second = template.table([folder, a_run("DIV2K_valid")]).split("\n\n")
    assert "Val PSNR" in first and "folder_valid PSNR" in second


def test_an_image_without_ssim_is_a_gap() -> None:
    run = {**a_run("demo"), "ave_ssim": 0.5}
    del run["images"][0]["ssim"]
    assert template.results([run])["23_LKDN"]["demo_ssim"] == [None]


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
