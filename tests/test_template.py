"""The template's results files, made of run records."""

import json
from pathlib import Path
from typing import Any

import pytest
from made_records import a_run

from utils import record, template

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


def test_validation_sets_of_two_years_are_told_apart_also_of_two_networks() -> None:
    runs = [a_run("DIV2K_valid", "00_A"), a_run("DIV2K_LSDIR_valid", "23_B")]
    assert set(template.results(runs)) == {"00_A", "23_B_DIV2K_LSDIR"}


def test_a_set_called_like_another_ones_average_is_a_set() -> None:
    entry = template.results([a_run("photos"), a_run("photos_ave")])["23_LKDN"]
    assert entry["photos_ave_psnr"] == 30.0 and entry["photos_ave__psnr"] == [30.0]
    assert template.table([a_run("photos"), a_run("photos_ave")]).count("23_LKDN") == 2
