"""upscale.py as people use it: photos of every kind, folders with broken ones in them, Ctrl-C."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps
from test_photos import mutated, small_files

import upscale
from deploy import pipeline
from deploy.photos import decode, folders
from models.team23_LKDN import LKDN
from utils.images import ImageError

SCRIPT = Path(upscale.__file__).resolve()


@pytest.fixture
def run(
    random_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., int]:
    """main() in this process, in tmp_path, with random weights on the plain backend."""
    monkeypatch.chdir(tmp_path)

    def main(*arguments: object) -> int:
        options = ["--checkpoint", random_weights] if "--checkpoint" not in arguments else []
        options += ["--device", "cpu"] if "--device" not in arguments else []
        options += ["--backend", "eager"] if "--backend" not in arguments else []
        try:
            return upscale.main([str(argument) for argument in (*arguments, *options)])
        except SystemExit as stopped:  # argparse
            return int(str(stopped.code))

    return main


def plain(net: LKDN, image: NDArray) -> NDArray:
    """(H, W, 3) uint8 or uint16 through the network in one piece, in levels, not rounded."""
    levels = np.iinfo(image.dtype).max
    x = torch.from_numpy(image.astype(np.float32) / levels).permute(2, 0, 1)[None]
    return (net(x)[0] * levels).permute(1, 2, 0).numpy()


def photo(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """A smooth colourful image, of which a JPEG is no ruin."""
    noise = np.random.default_rng(seed).integers(0, 256, (height // 4 + 2, width // 4 + 2, 3))
    return cv2.resize(noise.astype(np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)


def opened(path: Path | str) -> Image.Image:
    """An image read to its end, and its file closed."""
    with Image.open(path) as image:
        image.load()
    return image


def names(folder: Path) -> list[str]:
    """Everything in a folder and below, hidden and temporary files too."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()
    )


def test_one_photo_from_another_directory(
    random_net: LKDN, random_weights: Path, tmp_path: Path, python: Callable
) -> None:
    image = photo(20, 31)
    Image.fromarray(image).save(tmp_path / "my photo.png")
    done = python(
        tmp_path,
        SCRIPT,
        "my photo.png",
        "--checkpoint",
        random_weights,
        "--verbose",
        "--device",
        "cpu",
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("LKDN x4 on cpu, ") and first.endswith(" fp32, weights random.pth")
    assert last == "1 of 1 images written to my photo_x4.png"
    assert "memory bound: " in done.stderr and "31x20 to 124x80: whole" in done.stderr
    written = np.array(opened(tmp_path / "my photo_x4.png"))
    assert np.abs(written - plain(random_net, image).clip(0, 255)).max() <= 0.51  # half a level


def test_every_kind_of_photo(random_net: LKDN, run: Callable, tmp_path: Path) -> None:
    image = photo(19, 26)
    picture = Image.fromarray(image)
    grey, palette = picture.convert("L"), picture.quantize(16)
    alpha = picture.copy()
    alpha.putalpha(255)
    deep = image.astype(np.uint16) * 257 + np.arange(26, dtype=np.uint16)[None, :, None] - 13
    deep[image < 1], deep[image > 254] = 0, 65535
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    turned = Image.Exif()
    turned[0x0112] = 6  # a quarter turn
    (tmp_path / "in").mkdir()
    grey.save("in/grey.png")
    palette.save("in/palette.png")
    picture.save("in/rgb.bmp")
    alpha.save("in/alpha.png")
    cv2.imwrite("in/deep.png", deep[..., ::-1])
    picture.convert("CMYK").save("in/cmyk.jpg", quality=95)
    picture.save("in/turned.jpg", quality=95, exif=turned)
    picture.save("in/profile.png", icc_profile=profile)

    assert run("in", "-o", "out") == 0
    assert len(names(tmp_path / "out")) == 8

    def check(name: str, mode: str, rgb: NDArray) -> Image.Image:
        written = opened(f"out/{name}_x4.png")
        height, width = rgb.shape[:2]
        assert (written.mode, written.size) == (mode, (4 * width, 4 * height)), name
        expected = plain(random_net, np.ascontiguousarray(rgb))
        if mode == "L":
            expected = expected.mean(2)
        got = np.array(written)[..., :3] if mode != "L" else np.array(written)
        assert np.abs(got - expected.clip(0, 255)).max() <= 0.51, name
        return written

    check("grey", "L", np.array(grey.convert("RGB")))
    check("palette", "RGB", np.array(palette.convert("RGB")))
    check("rgb", "RGB", image)
    assert np.array(check("alpha", "RGBA", image))[..., 3].min() == 255
    check("cmyk", "RGB", np.array(opened("in/cmyk.jpg").convert("RGB")))
    upright = ImageOps.exif_transpose(opened("in/turned.jpg"))
    assert check("turned", "RGB", np.array(upright)).getexif().get(0x0112, 1) == 1
    assert check("profile", "RGB", image).info["icc_profile"] == profile
    written = cv2.imread("out/deep_x4.png", cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert written.dtype == np.uint16
    assert np.abs(written - plain(random_net, deep).clip(0, 65535)).max() <= 4  # of 65535


def test_formats_and_names(run: Callable, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(photo(8, 12)).save(tmp_path / name)
    assert run("a.png", "-i", "b.jpg", "c.webp", "--ext", "auto", "--suffix", "big") == 0
    assert run("a.png", "--ext", "jpg", "-o", "new/folder") == 0
    assert run("-i", "a.png", "-o", "new/other.WebP", "--self_ensemble") == 0
    assert run("a.png", "--ext", "webp", "--suffix", "", "--tile", "16") == 0
    made = {
        "a_big.png": "PNG",
        "b_big.jpg": "JPEG",
        "c_big.webp": "WEBP",
        "a.webp": "WEBP",
        "new/folder/a_x4.jpg": "JPEG",
        "new/other.WebP": "WEBP",
    }
    assert names(tmp_path) == sorted([*made, "a.png", "b.jpg", "c.webp"])
    for name, kind in made.items():
        written = opened(tmp_path / name)
        assert (written.format, written.size) == (kind, (48, 32))


def test_broken_files_are_named_and_the_others_made(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for i in range(30):
        where = folder / "sub" if i % 3 == 0 else folder
        Image.fromarray(photo(8, 9 + i % 4, i)).save(where / f"{i:02}.png")
    whole = io.BytesIO()
    Image.fromarray(photo(64, 64)).save(whole, "PNG")
    (folder / "cut.png").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.webp").touch()
    (folder / ".hidden.png").touch()
    (folder / "notes.txt").touch()
    (folder / ".thumbs").mkdir()
    (folder / ".thumbs" / "01.png").touch()
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "sub" / "folder.png").symlink_to(folder)
    (folder / "sub" / "gone.tif").symlink_to("nowhere.tif")
    os.mkfifo(folder / "pipe.png")

    assert run("in", "-o", "in/out", "--recursive", "--jobs", 3) == 1

    assert names(folder / "out") == sorted(
        f"{'sub/' if i % 3 == 0 else ''}{i:02}_x4.png" for i in range(30)
    )
    first, *said = capsys.readouterr().out.splitlines()
    assert first == "LKDN x4 on cpu, eager fp32, weights random.pth"
    assert said[0] == "30 of 36 images written to in/out, 6 failed:"
    bad = ["cut.png", "empty.webp", "loop.png", "sub/folder.png", "sub/gone.tif", "text.jpg"]
    for line, name in zip(said[1:], bad, strict=True):
        assert line.startswith(f"  in/{name}: ") and line.count(name) == 1

    assert run("in", "-o", "in/out", "--recursive", "--skip_existing") == 1
    assert "0 of 6 images written, 30 were there, 6 failed:" in capsys.readouterr().out


def test_results_of_an_earlier_run_are_no_inputs(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    assert run(".") == run(".", "--verbose") == 0
    assert "left out, for it is named like a result: a_x4.png" in caplog.text
    assert names(tmp_path) == ["a.png", "a_x4.png"]
    assert run(".", "-o", "out") == 0  # elsewhere they are images like others
    assert names(tmp_path / "out") == ["a_x4.png", "a_x4_x4.png"]
    assert run("a_x4.png") == 0 and (tmp_path / "a_x4_x4.png").exists()
    assert run(".", "--skip_existing") == 0
    assert "0 of 0 images written, 1 were there" in capsys.readouterr().out


def test_results_of_one_name_are_both_kept(run: Callable, tmp_path: Path) -> None:
    for i, name in enumerate(("a.jpg", "a.png", "b.png", "one/c.png", "two/c.png", "a_png.png")):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo(8, 4 + i)).save(tmp_path / "in" / name)
    assert run("in/one", "in", "in/two/c.png", "in/a.jpg", "-o", "out") == 0
    widths = {name: opened(tmp_path / "out" / name).width // 4 for name in names(tmp_path / "out")}
    assert widths == {
        "a_jpg_x4.png": 4,
        "a_png_x4.png": 5,
        "b_x4.png": 6,
        "c_png_x4.png": 7,
        "c_png_x4_2.png": 8,
        "a_png_x4_2.png": 9,
    }


def test_inputs_are_never_written_over(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("a.png", "a_x4.png", "b.jpg"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert run("a.png", "a_x4.png") == 1  # the result of the first would be the second
    assert (
        "1 of 2 images written to a_x4_x4.png, 1 failed:\n  a.png: the result would overwrite "
        "an input" in capsys.readouterr().out
    )
    for arguments in (
        ["a.png", "--suffix", ""],
        ["b.jpg", "-o", "b.jpg"],
        ["b.jpg", "--ext", "auto", "--suffix", "", "-o", "link"],
    ):
        assert run(*arguments) == 1
        assert "0 of 1 images written, 1 failed:" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in before} == before


def test_shards_are_disjoint_and_complete(run: Callable, tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(photo(4, 5, i)).save(tmp_path / "in" / f"{i}.png")
    assert run("in", "-o", "1", "--shard", "1/2") == run("in", "-o", "2", "--shard", "2/2") == 0
    assert names(tmp_path / "1") == [f"{i}_x4.png" for i in (0, 2, 4, 6)]
    assert names(tmp_path / "2") == [f"{i}_x4.png" for i in (1, 3, 5)]
    assert run("in", "-o", "3", "--shard", "9/9") == 0 and not (tmp_path / "3").exists()


def test_what_cannot_be_stored_is_said_before_it_is_made(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "LARGE", 1)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: type("usage", (), {"free": 5}))
    assert run("a.png", "-o", "new/out") == 1
    assert "a.png: expected 0 MiB free for the result in new/out, got 0" in capsys.readouterr().out
    assert names(tmp_path) == ["a.png"]


def test_a_folder_that_cannot_be_read_is_a_failure(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "in" / "locked").mkdir(parents=True)
    Image.fromarray(photo(8, 9)).save(tmp_path / "in" / "a.png")
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert run("in", "-o", "out", "--recursive") == 1
    assert "  in/locked: Permission denied" in capsys.readouterr().out
    assert names(tmp_path / "out") == ["a_x4.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected an image or a folder of images, got none"),
        (["no.png"], "found nothing: no.png"),
        (["empty"], "found none: empty"),
        (["a.png", "--checkpoint", "other.pth"], "does not fit LKDN"),
        (["a.png", "--checkpoint", "a.png"], "expected a PyTorch checkpoint"),
        (["a.png", "--device", "cuda"], "expected the device cuda"),
        (["a.png", "--backend", "triton"], "triton needs a CUDA device"),
        (["a.png", "--backend", "native", "--precision", "fp16"], "native computes in fp32"),
        (["a.png", "-o", "a.png/out"], "expected a folder to write to"),
        (["a.png", "b.png", "-o", "out.png"], "expected a folder for the results"),
        (["a.png", "--tile", "3"], "expected a tile of at least 16"),
        (["a.png", "--memory", "5"], "expected at least 120 MiB"),
        (["a.png", "--jobs", "0"], "expected --jobs of at least 1"),
        (["a.png", "--shard", "3/2"], "expected I/N such as 1/4"),
        (["a.png", "--suffix", "/x4"], "expected a --suffix that may stand in a file name"),
        (["a.png", "--ext", "gif"], "invalid choice"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    run: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    torch.save(LKDN(56, 8).state_dict(), tmp_path / "other.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out
    assert names(tmp_path) == ["a.png", "b.png", "other.pth"]


def test_names_that_cannot_be_printed(
    run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_one_line", lambda source, error: "\udcff.png: broken")
    (tmp_path / "a.png").touch()
    assert run("a.png") == 1
    assert "  \\udcff.png: broken" in capsys.readouterr().out


def test_an_output_that_may_not_be_written(
    run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    assert run("a.png") == 2
    assert "expected a folder that can be written, got ." in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_keeps_finished_images_and_a_rerun_completes(
    run: Callable, random_weights: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(60):
        Image.fromarray(photo(64, 64, i)).save(tmp_path / "in" / f"{i:02}.png")
    process = subprocess.Popen(
        [
            sys.executable,
            str(SCRIPT),
            "in",
            "-o",
            "out",
            "--checkpoint",
            str(random_weights),
            "--device",
            "cpu",
            "--backend",
            "eager",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = tmp_path / "out"
    while not out.exists() or len(list(out.glob("*.png"))) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    done = {path: path.read_bytes() for path in out.iterdir()}
    assert 3 <= len(done) < 60 and all(path.suffix == ".png" for path in done)
    assert f"interrupted: {len(done)} of 60 images are written" in errors
    assert "Traceback" not in errors

    assert run("in", "-o", "out", "--skip_existing") == 0
    assert names(out) == [f"{i:02}_x4.png" for i in range(60)]
    assert {path: path.read_bytes() for path in done} == done
    assert all(opened(path).size == (256, 256) for path in out.iterdir())


def test_damaged_files_give_whole_results_or_one_line(
    tmp_path: Path, run: Callable[..., int], capsys: pytest.CaptureFixture
) -> None:
    """LKDN_FUZZ=500 for as many files."""
    rng = np.random.default_rng(7)
    files = [(name, data) for name, data in small_files().items() if not name.endswith(".gif")]
    sizes: dict[str, tuple[int, int] | None] = {}
    for i in range(int(os.environ.get("LKDN_FUZZ", "60"))):
        kind, data = files[i % len(files)]
        path = tmp_path / "in" / f"{i:03}_{kind}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(mutated(data, rng))
        try:
            height, width = decode.read(path).pixels.shape[:2]
        except ImageError:
            sizes[path.name] = None
        else:
            sizes[path.name] = (4 * width, 4 * height)
            if height * width > 2000:  # a whole picture as its header has it, which takes long
                path.unlink()
                del sizes[path.name]
    capsys.readouterr()
    assert run("in", "-o", "out") == 1
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    good = {name: size for name, size in sizes.items() if size}
    assert names(tmp_path / "out") == sorted(f"{Path(name).stem}_x4.png" for name in good)
    for name, size in good.items():
        assert opened(tmp_path / "out" / f"{Path(name).stem}_x4.png").size == size
    failed = [line for line in said.out.splitlines() if line.startswith("  ")]
    assert sorted(Path(line.split(":")[0].strip()).name for line in failed) == sorted(
        set(sizes) - set(good)
    )
    assert good and failed
