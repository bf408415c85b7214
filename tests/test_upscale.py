"""upscale.py as people use it: photos of every kind, names, wrong usage, Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from image_files import mirrored, names, opened, photo
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

import upscale
from models.team23_LKDN import LKDN
from utils.files import ROOT

SCRIPT = Path(upscale.__file__).resolve()


def plain(net: LKDN, image: NDArray) -> NDArray:
    """(H, W, 3) uint8 or uint16, mirrored around, through the network in one piece, in levels, not
    rounded."""
    levels = np.iinfo(image.dtype).max
    x = torch.from_numpy(mirrored(image).astype(np.float32) / levels).permute(2, 0, 1)[None]
    return (net(x)[0, :, 12:-12, 12:-12] * levels).permute(1, 2, 0).numpy()


def test_one_photo_from_another_directory(
    random_net: LKDN, random_weights: Path, tmp_path: Path, python: Callable
) -> None:
    image = photo(20, 31)
    Image.fromarray(image).save(tmp_path / "my photo.png")
    options = ("--checkpoint", random_weights, "--verbose", "--device", "cpu")
    done = python(tmp_path, SCRIPT, "my photo.png", *options)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    first, last = done.stdout.splitlines()
    assert first.startswith("LKDN x4 on cpu, ") and first.endswith(" fp32, weights random.pth")
    assert last == "1 of 1 images written to my photo_x4.png"
    assert "memory bound: " in done.stderr and "31x20 to 124x80: whole" in done.stderr
    written = np.array(opened(tmp_path / "my photo_x4.png"))
    assert np.abs(written - plain(random_net, image).clip(0, 255)).max() <= 0.51  # half a level


@pytest.mark.skipif(sys.platform == "win32", reason="names that Windows does not allow")
def test_a_name_is_told_once_on_one_line(tmp_path: Path, python: Callable) -> None:
    for name in ("two  blanks.png", "\x1b[31mred\nline.png"):
        (tmp_path / name).touch()
    Image.new("I", (2, 2), 70000).save(tmp_path / "\x1b[2J.tif")  # of which something is to be said
    done = python(tmp_path, SCRIPT, ".", "--device", "cpu", "--backend", "eager")
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    _, _, *failed = done.stdout.splitlines()
    said = (
        "expected a whole image, got a broken, truncated or foreign file (UnidentifiedImageError)"
    )
    names = (r"\x1b[31mred\nline.png", "two  blanks.png")
    assert failed == [f"  {name}: {said}" for name in names]
    assert all(f"failed: {name}: {said}\n" in done.stderr for name in names)
    assert r"\x1b[2J.tif: its values, 70000 to 70000, became 0 to 65535" in done.stderr


def test_every_kind_of_photo(random_net: LKDN, enlarge: Callable, tmp_path: Path) -> None:
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

    assert enlarge("in", "-o", "out") == 0
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


def test_formats_and_names(enlarge: Callable, tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.webp"):
        Image.fromarray(photo(8, 12)).save(tmp_path / name)
    assert enlarge("a.png", "-i", "b.jpg", "c.webp", "--ext", "auto", "--suffix", "big") == 0
    assert enlarge("a.png", "--ext", "jpg", "-o", "new/folder") == 0
    assert enlarge("-i", "a.png", "-o", "new/other.WebP", "--self_ensemble") == 0
    assert enlarge("a.png", "--ext", "webp", "--suffix", "", "--tile", "16") == 0
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


def test_a_self_ensemble_makes_the_same_of_a_turned_photo(enlarge: Callable) -> None:
    image = photo(16, 20)
    Image.fromarray(image).save("a.png")
    Image.fromarray(np.rot90(image)).save("b.png")

    def difference(*options: str) -> int:
        assert enlarge("a.png", "b.png", *options) == 0
        a, b = (np.array(opened(f"{name}_x4.png")).astype(int) for name in "ab")
        return int(np.abs(np.rot90(a) - b).max())

    assert difference("--self_ensemble") <= 1 < 10 < difference()


def test_what_a_warning_advises_can_be_done(
    enlarge: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = srgb + bytes(1 << 20)  # more than programs take in a PNG
    Image.fromarray(photo(8, 12)).save(tmp_path / "a.tif", icc_profile=profile)
    assert enlarge("a.tif") == 0 and "icc_profile" not in opened("a_x4.png").info
    options = re.search(r"give (--ext \w+), or an -o that ends in (\.\w+)", caplog.text)
    assert options
    assert enlarge("a.tif", *options[1].split()) == 0
    assert enlarge("a.tif", "-o", f"b{options[2]}") == 0
    assert opened("a_x4.tif").info["icc_profile"] == opened("b.tif").info["icc_profile"] == profile


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
        (["a.png", "-o", "pipe.png"], "expected a file or a folder for -o, got something else"),
        (["a.png", "--tile", "3"], "expected a tile of at least 16"),
        (
            ["a.png", "--memory", "5"],
            "expected at least 120 MiB for a tile of 16 pixels and its context, got 5",
        ),
        (["a.png", "--jobs", "0"], "expected --jobs of at least 1"),
        (["a.png", "--shard", "3/2"], "expected I/N such as 1/4"),
        (["a.png", "--suffix", "/x4"], "expected a --suffix that may stand in a file name"),
        (["a.png", "--ext", "gif"], "invalid choice"),
        (["a.png", "--ext", "tif", "-o", "b.tiff.png"], "ends in .tif, as --ext says, got b.tiff"),
        ([""], "expected the name of a file or folder, got none"),
        (["a.png", "--", ""], "expected the name of a file or folder, got none"),
        (["a.png", "-o", ""], "expected the name of a file or folder, got none"),
    ],
)
def test_wrong_usage_is_one_sentence_and_exit_2(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    torch.save(LKDN(56, 8).state_dict(), tmp_path / "other.pth")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert enlarge(*arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "Traceback" not in printed.err and not printed.out
    assert names(tmp_path) == ["a.png", "b.png", "other.pth", "pipe.png"]


def test_inputs_may_stand_among_the_options(enlarge: Callable, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png", "-d.png"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    assert enlarge("a.png", "-o", "out", "b.png", "--ext", "jpg", "c.png") == 0
    assert names(tmp_path / "out") == [f"{name}_x4.jpg" for name in "abc"]
    assert enlarge("a.png", "--ext", "jpg", "-o", "a.jpeg") == 0  # the same format
    assert enlarge("a.png", "--ext", "auto", "-o", "a.webp") == 0  # which says more
    assert opened(tmp_path / "a.webp").format == "WEBP"
    for given in (["--", "-d.png"], ["-o", "x", "a.png", "--", "b.png", "-d.png"]):
        parsed = upscale.parse(given)
        assert [str(path) for path in parsed.inputs] == [name for name in given if "png" in name]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("script", ["upscale.py", "test_demo.py", "train/train.py"])
def test_ctrl_c_while_libraries_are_loaded_shows_no_traceback(script: str, tmp_path: Path) -> None:
    line = [sys.executable, "-X", "importtime", ROOT / script, "--help"]
    with subprocess.Popen(
        line,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # in the background, too
    ) as running:
        assert running.stderr
        for loaded in running.stderr:
            if "torch" in loaded:
                break
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
    assert running.returncode == -signal.SIGINT and "Traceback" not in rest


# Ctrl-C, or another signal, at a moment that is always the same.
INTERRUPTED = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
name = sys.argv.pop(1)
import upscale
from deploy import pipeline

enlarge, calls = pipeline.enlarge, []

def interrupted(*arguments):
    calls.append(arguments)
    if len(calls) == 8:
        os.kill(os.getpid(), signal.Signals[name])
    return enlarge(*arguments)

pipeline.enlarge = interrupted
sys.exit(upscale.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_ctrl_c_keeps_finished_images_and_a_rerun_completes(
    name: str, enlarge: Callable, random_weights: Path, tmp_path: Path, python: Callable
) -> None:
    (tmp_path / "in").mkdir()
    for i in range(20):
        Image.fromarray(photo(16, 16, i)).save(tmp_path / "in" / f"{i:02}.png")
    options = f"in -o out --checkpoint {random_weights} --device cpu --backend eager --jobs 2"
    interrupted = python(tmp_path, "-c", INTERRUPTED, SCRIPT.parent, name, *options.split())
    assert interrupted.returncode == 1
    out = tmp_path / "out"
    done = {path: path.read_bytes() for path in out.iterdir()}
    assert 3 <= len(done) < 8 and all(path.suffix == ".png" for path in done)
    assert f"interrupted: {len(done)} of 20 images are written" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr

    assert enlarge("in", "-o", "out", "--skip_existing") == 0
    assert names(out) == [f"{i:02}_x4.png" for i in range(20)]
    assert {path: path.read_bytes() for path in done} == done
    assert all(opened(path).size == (64, 64) for path in out.iterdir())
