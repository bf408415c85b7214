"""test_demo.py as a judge uses it: in a process of its own, from another directory."""

import os
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
from judging import SCRIPT, STEM, judge, strict

from models.team23_LKDN import LKDN
from utils.bicubic import downscale
from utils.files import sha256
from utils.imaging.images import mod_crop, read_rgb, to_tensor, to_uint8, write_png
from utils.lock import locked
from utils.metrics import psnr
from utils.report.summary import FACTSHEET_ROW


def test_broken_images_do_not_stop_the_others(tmp_path: Path, random_weights: Path) -> None:
    folder = tmp_path / "my set"
    for name, (height, width) in {"odd": (37, 53), "wide": (16, 90), "tiny": (8, 40)}.items():
        write_png(folder / "HR" / f"{name}.png", photo(height, width))
    whole = (folder / "HR" / "odd.png").read_bytes()
    (folder / "HR" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "HR" / "empty.png").touch()
    (folder / "HR" / "gone.png").symlink_to("/nowhere/gone.png")

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
    assert "  gone: " in done.stderr
    assert "(2 of 6 images)" in done.stdout
    run = strict(tmp_path / "out" / f"{STEM}_my set_cpu_eager_fp32.json")
    assert [image["name"] for image in run["images"]] == ["odd", "wide"]
    assert len(run["failed"]) == 5
    odd, wide = run["images"]
    assert wide["ssim"] is None and wide["psnr"] > 0 and odd["ssim"] == run["ave_ssim"]
    for image in (odd, wide):
        file = tmp_path / "out" / STEM / "my set" / f"{image['name']}.png"
        assert image["png_sha256"] == sha256(file)
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
    assert run["ave_psnr"] == pytest.approx((odd["psnr"] + wide["psnr"]) / 2)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "Set5"], "Set5/HR, found none: data/README.md"),
        ([], "expected images of DIV2K_valid in folders"),
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
    assert "Measured on demo" in done.stdout
    assert FACTSHEET_ROW[0] not in done.stdout  # which is of other images


def test_what_cannot_be_written_costs_no_figure(tmp_path: Path, random_weights: Path) -> None:
    """An image whose place is taken, and a log's."""
    for name in ("a", "b"):
        write_png(tmp_path / "set" / f"{name}.png", photo(24, 28))
    (tmp_path / "out" / STEM / "set" / "a.png").mkdir(parents=True)
    (tmp_path / "out" / f"{STEM}_set_cpu_eager_fp32.log").mkdir()
    options = ("--dataset", "set", "--checkpoint", random_weights, "--save_dir", "out")
    done = judge(tmp_path, *options, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "2 failed:" in done.stderr and "a.png" in done.stderr and ".log: " in done.stderr
    assert f"{STEM} on set (2 images)" in done.stdout
    run = strict(tmp_path / "out" / f"{STEM}_set_cpu_eager_fp32.json")
    a, b = run["images"]
    assert a["psnr"] == b["psnr"] == run["ave_psnr"] and run["memory_mib"] > 0
    assert "png_sha256" not in a and "png_sha256" in b


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupted_further_pass_keeps_what_the_first_gave(
    tmp_path: Path, random_weights: Path
) -> None:
    write_png(tmp_path / "set" / "a.png", photo(24, 28))
    options = f"--dataset set --checkpoint {random_weights} --save_dir out --repeat 10000000"
    record = tmp_path / "out" / f"{STEM}_set_cpu_eager_fp32.json"
    process = subprocess.Popen(
        [sys.executable, SCRIPT, *options.split()],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        while not (tmp_path / "out" / "results.txt").exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "interrupted; what was finished is in out" in errors
    run = strict(record)
    assert run["ave_psnr"] == run["images"][0]["psnr"] > 0 and run["ave_runtime_ms"] > 0
    assert (run["repeat"], run["median_runtime_ms"], run["memory_mib"]) == (1, None, None)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_keeps_finished_images(
    number: signal.Signals, tmp_path: Path, random_weights: Path
) -> None:
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
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background, too
    )
    images = tmp_path / "out" / STEM / "set"
    try:
        while not images.exists() or len(list(images.glob("*.png"))) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()  # whatever went wrong: it would go on for days
    assert process.returncode == 1
    assert "interrupted" in errors and "Traceback" not in errors
    assert all(read_rgb(path).shape == (64, 64, 3) for path in images.glob("*.png"))
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix == ".tmp"]
