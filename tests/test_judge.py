"""test_demo.py as a judge uses it: in a process of its own, from another directory."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import photo
from warm_python import python

from models.team00_RFDN import RFDN
from models.team23_LKDN import LKDN
from utils.bicubic import downscale
from utils.command import UserError
from utils.files import ROOT
from utils.images import mod_crop, read_rgb, to_tensor, to_uint8, write_png
from utils.lock import locked
from utils.metrics import psnr
from utils.networks import Entry

SCRIPT = str(ROOT / "test_demo.py")
STEM = "23_LKDN@random"


def judge(cwd: Path, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    done = python(cwd, SCRIPT, *arguments, **environment)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def strict(path: Path) -> Any:
    """JSON that must not hold NaN or Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_broken_images_do_not_stop_the_others(tmp_path: Path, random_weights: Path) -> None:
    folder = tmp_path / "my set"
    for name, (height, width) in {"odd": (37, 53), "wide": (16, 90), "tiny": (8, 40)}.items():
        write_png(folder / "HR" / f"{name}.png", photo(height, width))
    whole = (folder / "HR" / "odd.png").read_bytes()
    (folder / "HR" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "HR" / "empty.png").touch()

    done = judge(
        tmp_path,
        "--dataset",
        folder,
        "--checkpoint",
        random_weights,
        "--save_dir",
        "out",
        "--ssim",
        "--repeat",
        "2",
        CUDA_VISIBLE_DEVICES="",
    )

    assert done.returncode == 1
    for name in ("cut", "empty", "tiny", "wide"):  # wide is too small for SSIM's window
        assert f"  {name}: expected" in done.stderr
    run = strict(tmp_path / "out" / f"{STEM}_my set_cpu_eager_fp32.json")
    assert [image["name"] for image in run["images"]] == ["odd"]
    assert len(run["failed"]) == 4
    assert run["environment"]["device_type"] == "cpu"
    assert (run["num_parameters"], run["flops"], run["activations"], run["num_conv"]) == (
        129177,
        8289189888,
        202702848,
        86,
    )
    assert "im2double" in run["lr_source"] and "im2double" in done.stdout
    assert run["median_runtime_ms"] > 0 and run["p20_runtime_ms"] <= run["p80_runtime_ms"]

    hr = mod_crop(read_rgb(folder / "HR" / "odd.png"))
    net = LKDN().eval()
    net.load_state_dict(torch.load(random_weights, weights_only=True))
    with torch.inference_mode():
        expected = to_uint8(net(to_tensor(downscale(hr))))
    written = read_rgb(tmp_path / "out" / STEM / "my set" / "odd.png")
    assert written.shape == (36, 52, 3) == hr.shape
    # Another thread count may round a sum elsewhere: one level, on a pixel or two.
    assert np.abs(written.astype(int) - expected).max() <= 1
    assert run["images"][0]["psnr"] == pytest.approx(psnr(written, hr), abs=1e-9)
    assert run["ave_psnr"] == run["images"][0]["psnr"]
    assert f"{run['ave_psnr']:.2f} dB" in done.stdout
    assert not list((tmp_path / "out").rglob("*.tmp"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are Unicode")
def test_names_that_are_not_utf8(tmp_path: Path, random_weights: Path) -> None:
    name = os.fsdecode(b"\x82\xa0")  # in Shift-JIS
    for stem in ("ok", name):
        write_png(tmp_path / name / f"{stem}.png", photo(24, 28))
    (tmp_path / name / f"{name}2.png").touch()
    options = ("--dataset", name, "--checkpoint", random_weights, "--save_dir", "out")
    done = judge(tmp_path, *options, "--report", "--verbose", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "Logging error" not in done.stderr
    assert f"  {ascii(name)[1:-1]}2: expected" in done.stderr
    file = tmp_path / "out" / f"{STEM}_{name}_cpu_eager_fp32.json"
    assert [image["name"] for image in strict(file)["images"]] == ["ok", name]
    assert (tmp_path / "out" / STEM / name / f"{name}.png").exists()
    assert ascii(name)[1:-1] in file.with_suffix(".log").read_text()
    assert (tmp_path / "out" / "report.html").exists()


def test_two_runs_of_one_name_into_one_folder_are_not_mixed(
    tmp_path: Path, random_weights: Path
) -> None:
    """Nothing is measured, also of another set that is free: all or nothing."""
    for name in ("free", "set"):
        write_png(tmp_path / name / "a.png", photo(24, 28))
    options = ("--dataset", "free", "set", "--checkpoint", random_weights, "--save_dir", "out")
    lock = tmp_path / "out" / f".{STEM}_set_cpu_eager_fp32.lock"
    lock.parent.mkdir()
    with locked(lock, "the run"):
        done = judge(tmp_path, *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert f"in use by process {os.getpid()} on" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "out").iterdir())


def test_div2k_in_both_layouts_and_modes(tmp_path: Path, random_weights: Path) -> None:
    hr = photo(48, 64)
    write_png(tmp_path / "DIV2K_valid_HR" / "0801.png", hr)
    write_png(tmp_path / "DIV2K_valid_LR_bicubic" / "X4" / "0801x4.png", downscale(hr))
    write_png(tmp_path / "DIV2K_test_LR" / "0901.png", downscale(hr))
    write_png(tmp_path / "LSDIR_DIV2K_test_HR" / "a.png", hr)
    write_png(tmp_path / "LSDIR_DIV2K_test_LR" / "ax4.png", photo(13, 16))  # not a quarter of 48
    common = ("--data_dir", tmp_path, "--checkpoint", random_weights, "--save_dir", tmp_path)

    assert judge(tmp_path, *common, "--include_test").returncode == 0
    done = judge(tmp_path, *common, "--dataset", "LSDIR_DIV2K_test", "DIV2K_valid", "--no_images")

    assert done.returncode == 1
    assert "expected HR of 4 times the LR size, got 64x48 and 16x13" in done.stderr
    results = strict(tmp_path / "results.json")
    entry = results[STEM]
    assert entry["valid_ave_psnr"] == entry["valid_psnr"][0] > 0
    assert entry["test_psnr"] == [None] and entry["test_ave_psnr"] is None
    assert len(entry["test_runtime"]) == 1 and entry["test_memory"] > 0
    assert entry["num_parameters"] == 0.129177 and entry["num_conv"] == 86
    assert entry["flops"] == pytest.approx(8.289189888)
    assert (tmp_path / "results.txt").read_text().startswith("Model               \tVal PSNR  \t")
    run = strict(tmp_path / f"{STEM}_DIV2K_test_cpu_eager_fp32.json")
    assert run["lr_source"].endswith("/DIV2K_test_LR") and run["ave_psnr_bicubic"] is None
    assert (tmp_path / STEM / "DIV2K_test" / "0901.png").exists()


def test_models_are_imported_when_chosen_and_ids_are_single(
    tmp_path: Path, random_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_demo
    from test_demo import MODELS, select_model

    cpu = torch.device("cpu")
    (tmp_path / "broken_net.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(str(tmp_path))
    broken = Entry(41, "Broken", "broken_net:Net", "none.pth")
    monkeypatch.setattr(
        test_demo,
        "MODELS",
        (
            *MODELS,
            broken,
            *[Entry(8, name, "models.team00_RFDN:RFDN", "rfdn.pth") for name in "BC"],
        ),
    )
    assert select_model(23, cpu, f"{random_weights}").name == STEM  # whatever the others lack
    with pytest.raises(UserError, match="No module named 'absent_dependency'"):
        select_model(41, cpu)
    with pytest.raises(UserError, match="expected one model of ID 8, got B and C"):
        select_model(8, cpu)


def test_the_baselines_weights_are_used_where_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import test_demo

    monkeypatch.setattr(test_demo, "ROOT", tmp_path)
    assert test_demo.select_model(0, torch.device("cpu")).file is None
    weights = RFDN().state_dict()
    (tmp_path / "model_zoo").mkdir()
    torch.save(weights, tmp_path / "model_zoo" / "team00_rfdn.pth")
    model = test_demo.select_model(0, torch.device("cpu"))
    assert (model.name, model.file) == ("00_RFDN", tmp_path / "model_zoo" / "team00_rfdn.pth")
    assert torch.equal(model.net.state_dict()["B1.c5.weight"], weights["B1.c5.weight"])


@pytest.mark.parametrize(
    ("options", "there", "expected"),
    [
        ([], ["DIV2K_valid"], ["DIV2K_valid"]),
        (["--include_test"], ["DIV2K_valid", "DIV2K_test"], ["DIV2K_valid", "DIV2K_test"]),
        (["--hybrid_test"], ["DIV2K_valid", "LSDIR_DIV2K_test"], ["LSDIR_DIV2K_test"]),
        (["--hybrid_test"], ["LSDIR_DIV2K_test"], ["LSDIR_DIV2K_test"]),
        (
            ["--include_test"],
            ["DIV2K_LSDIR_valid", "DIV2K_LSDIR_test"],
            ["DIV2K_LSDIR_valid", "DIV2K_LSDIR_test"],
        ),
        (["--dataset", "benchmarks", "demo"], ["Set14", "B100"], ["Set14", "B100", "demo"]),
    ],
)
def test_the_templates_flags_choose_its_sets(
    tmp_path: Path, options: list[str], there: list[str], expected: list[str]
) -> None:
    from test_demo import find_sets, parse

    for name in there:
        write_png(tmp_path / f"{name}_HR" / "0801.png", photo(16, 16))
    sets = find_sets(parse(["--data_dir", str(tmp_path), *options]))
    assert [image_set.name for image_set in sets] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "Set5"], "Set5/HR"),
        ([], "DIV2K_valid_LR_bicubic/X4"),
        (["--dataset", "benchmarks"], "expected one of Set5, Set14"),
        (["--data_dir", "absent"], "expected a folder, found none: --data_dir absent\n"),
        (["--dataset", "demo", "--model_id", "7"], "expected a --model_id of 0 (00_RFDN)"),
        (["--dataset", "demo", "--checkpoint", "no.pth"], "found no file: no.pth"),
        (
            ["--dataset", "demo", "--checkpoint", "other.pth"],
            "fea_conv.dw.bias (56,), expected (42,)",
        ),
        (["--dataset", "demo", "--checkpoint", "text.pth"], "expected a PyTorch checkpoint"),
        (["--dataset", "demo", "--repeat", "0"], "expected --repeat of at least 1"),
        (["--dataset", "demo", "--device", "cuda"], "expected the device cuda"),
        (["--dataset", "demo", "--save_dir", "text.pth/results"], "cannot write to"),
        (
            ["--dataset", "demo", "--model_id", "0", "23", "--checkpoint", "other.pth"],
            "expected --checkpoint ID=FILE",
        ),
        (["--dataset", "demo", "--checkpoint", "0=other.pth"], "for a model of --model_id"),
        (
            [
                "--dataset",
                "demo",
                "--model_id",
                "0",
                "--checkpoint",
                "shipped",
                "--backend",
                "auto",
            ],
            "expected --model_id 23 with",
        ),
        (["--dataset", "demo", "--backend", "fast"], "expected a backend of eager"),
        (["--dataset", "demo", "--backend", "triton"], "triton needs a CUDA device"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    tmp_path: Path,
    random_weights: Path,
    capsys: pytest.CaptureFixture,
    monkeypatch: Any,
    arguments: list[str],
    message: str,
) -> None:
    import test_demo

    torch.save(LKDN(56, 8).state_dict(), tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("no checkpoint")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if "--checkpoint" not in arguments:
        arguments = [*arguments, "--checkpoint", str(random_weights)]
    try:
        code = test_demo.main(["--data_dir", str(tmp_path), "--save_dir", "out", *arguments])
    except SystemExit as stopped:  # argparse
        code = int(str(stopped.code))
    assert code == 2
    assert message in capsys.readouterr().err


def test_shipped_weights_beat_bicubic_on_the_demo_photos(tmp_path: Path) -> None:
    done = judge(tmp_path, "--dataset", "demo", "--save_dir", "out", "--no_images", "--verbose")
    assert done.returncode == 0, done.stderr
    run = strict(tmp_path / "out" / "23_LKDN_demo_cpu_eager_fp32.json")
    assert [image["name"] for image in run["images"]] == [
        "astronaut",
        "chelsea",
        "coffee",
        "rocket",
    ]
    assert run["ave_psnr"] - run["ave_psnr_bicubic"] >= 1.2
    assert "astronaut: 512x512" in done.stderr
    assert "29.01" not in done.stdout and "Measured on demo" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_finished_images(tmp_path: Path, random_weights: Path) -> None:
    for i in range(30):
        write_png(tmp_path / "set" / "HR" / f"{i:03}.png", photo(64, 64, i))
    process = subprocess.Popen(
        [
            sys.executable,
            SCRIPT,
            "--dataset",
            "set",
            "--checkpoint",
            str(random_weights),
            "--save_dir",
            "out",
            "--repeat",
            "100000",
        ],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    images = tmp_path / "out" / STEM / "set"
    while not images.exists() or len(list(images.glob("*.png"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted" in errors and "Traceback" not in errors
    assert all(read_rgb(path).shape == (64, 64, 3) for path in images.glob("*.png"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp"]


def test_another_backend_gives_the_same_picture_and_both_runtimes(
    tmp_path: Path, random_weights: Path
) -> None:
    for seed in range(3):
        write_png(tmp_path / "set" / "HR" / f"{seed}.png", photo(40, 52 + 4 * seed, seed))
    common = ("--dataset", "set", "--checkpoint", random_weights, "--save_dir", "out")
    runs = []
    for options in ([], ["--backend", "channels_last"], ["--precision", "bf16"]):
        done = judge(tmp_path, *common, *options, CUDA_VISIBLE_DEVICES="")
        assert done.returncode == 0, done.stderr
        backend, precision = (
            options[1] if flag in options else default
            for flag, default in (("--backend", "eager"), ("--precision", "fp32"))
        )
        runs.append(strict(tmp_path / "out" / f"{STEM}_set_cpu_{backend}_{precision}.json"))
        assert ("Plain network" in done.stdout) == bool(options)
    plain, fast, half = runs
    assert "plain" not in plain and fast["plain"]["median"] > 0 < half["plain"]["median"]
    assert fast["ave_psnr"] == pytest.approx(plain["ave_psnr"], abs=1e-3)
    assert half["ave_psnr"] == pytest.approx(plain["ave_psnr"], abs=0.05)
    assert half["ave_psnr"] != plain["ave_psnr"]
    for key in ("num_parameters", "flops", "activations", "num_conv"):
        assert plain[key] == fast[key] == half[key]


def test_baseline_and_network_take_turns(tmp_path: Path, random_weights: Path) -> None:
    for seed in range(2):
        write_png(tmp_path / "set" / "HR" / f"{seed}.png", photo(64, 80 + 4 * seed, seed))
    done = judge(
        tmp_path,
        "--dataset",
        "set",
        "--model_id",
        "0",
        "23",
        "--checkpoint",
        f"23={random_weights}",
        "--save_dir",
        "out",
        "--repeat",
        "2",
        "--verbose",
        "--report",
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(rf"(00_RFDN|{STEM}) (\d): \d+x\d+, ", done.stderr)
    assert lines == [("00_RFDN", "0"), (STEM, "0"), ("00_RFDN", "1"), (STEM, "1")]
    baseline, ours = (
        strict(tmp_path / "out" / f"{name}_set_cpu_eager_fp32.json") for name in ("00_RFDN", STEM)
    )
    assert baseline["checkpoint"] == {"name": None, "sha256": None}
    assert baseline["ave_psnr"] is None and ours["ave_psnr"] > 0
    assert min(baseline["memory_mib"], ours["memory_mib"]) > 100  # torch alone takes that much
    assert ours["memory_of"] == "a process of its own that restores 21x16"
    assert (baseline["num_parameters"], baseline["num_conv"]) == (433448, 64)
    assert "no weights of this network are shipped" in done.stdout
    assert f"{STEM} takes " in done.stdout and "2025, against EFDN: 00_RFDN" in done.stdout
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == [STEM]
    own = (tmp_path / "out" / f"{STEM}_set_cpu_eager_fp32.log").read_text()
    assert own.count(STEM) == 2 and "00_RFDN" not in own
    results = strict(tmp_path / "out" / "results.json")
    assert results["00_RFDN"]["flops"] == pytest.approx(27.10262256)
    assert "Report in out" in done.stdout
    assert f"SR {STEM}" in (tmp_path / "out" / "report.html").read_text()
