"""data/prepare.py --benchmarks: the sets as the web has them, in folders and archives."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from mirror import MakeImage, files_below, lay_out, png, tarred, zipped

from data import prepare
from utils.datasets import BENCHMARKS, find
from utils.imaging.images import read_rgb

# (set, what is given, HR file in it, LR file in it, name of the pair)
LAYOUTS = [
    ("Set5", "mine", "Set5/HR/baby.png", "Set5/LR/babyx4.png", "baby"),
    ("Set5", "mine", "benchmark/Set5/GTmod12/baby.png", "benchmark/Set5/LRbicx4/baby.png", "baby"),
    ("Set5", "Set5", "HR/baby.png", "LR_bicubic/X4/babyx4.png", "baby"),
    ("Set14", "set14", "zebra.png", None, "zebra"),
    ("Set14", "mine", "Set14_HR/zebra.png", "Set14_LR/zebrax4.png", "zebra"),
    ("B100", "mine", "B100/original/3096.jpg", None, "3096"),
    (
        "Urban100",
        "mine",
        "Urban100/image_SRF_4/img_001_SRF_4_HR.png",
        "Urban100/image_SRF_4/img_001_SRF_4_LR.png",
        "img_001",
    ),
    ("B100", "BSD100", "image_SRF_4/img_001_SRF_4_HR.png", None, "img_001"),
    ("Manga109", "mine", "Manga109/ARMS.png", None, "ARMS"),
]


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "zip with backslashes"])
@pytest.mark.parametrize(("name", "given", "hr", "lr", "stem"), LAYOUTS)
def test_benchmark_is_found_after_preparing_it(
    tmp_path: Path,
    noise: MakeImage,
    kind: str,
    name: str,
    given: str,
    hr: str,
    lr: str | None,
    stem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = {hr: png(noise(16, 20, 1), Path(hr).suffix)}
    if lr:
        files[lr] = png(noise(4, 5, 2))
    if "SRF" in hr:  # another scale, another method, and notes
        for other in ("image_SRF_2/img_001_SRF_2_HR.png", "image_SRF_4/img_001_SRF_4_nearest.png"):
            files[f"{hr.split('image')[0]}{other}"] = png(noise(6, 6, 3))
        files["notes.txt"] = b"notes"
    ending = "" if kind == "folder" else f".{kind[:3]}"
    source = tmp_path / "from" / f"{given}{ending}"
    if kind == "folder":
        lay_out(source, files)
    else:
        source.parent.mkdir()
        packed = files
        if kind == "zip with backslashes":  # as programs of Windows may write them, folders too
            packed = {"empty\\": b""} | {
                name.replace("/", "\\"): content for name, content in files.items()
            }
        source.write_bytes(tarred(packed) if kind == "tar" else zipped(packed))
    options = ["--benchmarks", str(source), "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    (pair,) = find(name, tmp_path / "data").pairs
    assert pair.name == stem
    assert pair.hr == tmp_path / "data" / name / "HR" / f"{stem}.png"
    given_hr = cv2.imdecode(np.frombuffer(files[hr], np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(read_rgb(pair.hr), given_hr)
    assert (pair.lr is None) == (lr is None)
    if pair.lr:
        assert pair.lr == tmp_path / "data" / name / "LR" / f"{stem}x4.png"
        np.testing.assert_array_equal(read_rgb(pair.lr), noise(4, 5, 2))
    assert len(files_below(tmp_path / "data")) == 1 + bool(lr)

    before = {path: path.stat() for path in (tmp_path / "data" / name).rglob("*")}
    capsys.readouterr()
    assert prepare.main(options) == 0
    assert " already" in capsys.readouterr().out
    assert {path: path.stat() for path in (tmp_path / "data" / name).rglob("*")} == before


def test_a_part_of_a_set_is_not_called_complete(
    tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "Set5.zip"
    source.write_bytes(zipped({f"Set5/HR/{name}.png": png(noise(16, 20)) for name in "abc"}))
    part = lay_out(tmp_path / "data", {"Set5/HR/a.png": png(noise(16, 20))})
    assert prepare.main(["--benchmarks", str(source), "--data_dir", str(part)]) == 1
    said = capsys.readouterr().err
    assert f"expected nothing or 3 images in {part / 'Set5'}, got 1: move it away" in said
    assert files_below(part) == {"Set5/HR/a.png"}
    source.write_bytes(zipped({"Set5/HR/a.png": png(noise(16, 20))}))
    assert prepare.main(["--benchmarks", str(source), "--data_dir", str(part)]) == 0
    assert "1 images, of 5, there already" in capsys.readouterr().out


def test_a_set_that_lost_an_lr_image_is_not_called_complete(
    tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"Set5/HR/{name}.png": png(noise(16, 20)) for name in "abcde"}
    files |= {f"Set5/LR/{name}x4.png": png(noise(4, 5)) for name in "abcde"}
    source = tmp_path / "Set5.zip"
    source.write_bytes(zipped(files))
    data = lay_out(tmp_path / "data", files)
    (data / "Set5/LR/cx4.png").unlink()
    assert prepare.main(["--benchmarks", str(source), "--data_dir", str(data)]) == 1
    said = capsys.readouterr()
    assert "a set with all LR images" in said.err and "complete" not in said.out


def test_several_benchmarks_at_once_and_then_none_is_opened(
    tmp_path: Path, noise: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def files(*names: str) -> dict[str, bytes]:
        hr = {f"{name}/HR/a.png": png(noise(16, 20)) for name in names}
        return hr | {f"{name}/LR/ax4.png": png(noise(4, 5)) for name in names}

    one = lay_out(tmp_path / "one", files("Set5", "Set14", "B100"))
    two = tmp_path / "two.zip"
    two.write_bytes(zipped(files("x/Urban100", "x/Manga109")))
    options = ["--benchmarks", str(one), str(two), "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    assert files_below(tmp_path / "data") == set(files(*BENCHMARKS))
    monkeypatch.setattr(prepare, "IMAGES", dict.fromkeys(BENCHMARKS, 1))
    monkeypatch.delattr(prepare, "unpack")
    assert prepare.main(options) == 0


@pytest.mark.parametrize("together", [True, False])
def test_lr_images_that_come_apart_from_their_hr_images(
    tmp_path: Path, noise: MakeImage, together: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    high, low = tmp_path / "Set5_HR.zip", tmp_path / "Set5_LR.zip"
    high.write_bytes(zipped({"baby.png": png(noise(16, 20))}))
    low.write_bytes(zipped({"babyx4.png": png(noise(4, 5))}))
    data = tmp_path / "data"
    if not together:
        assert prepare.main(["--benchmarks", str(high), "--data_dir", str(data)]) == 0
    options = ["--benchmarks", str(high), str(low), "--data_dir", str(data)]
    assert prepare.main(options) == (0 if together else 1)
    if not together:
        assert "got one without: move it away" in capsys.readouterr().err
        assert files_below(data) == {"Set5/HR/baby.png"}
        shutil.rmtree(data / "Set5")
        assert prepare.main(options) == 0
    assert files_below(data) == {"Set5/HR/baby.png", "Set5/LR/babyx4.png"}


@pytest.mark.parametrize("harm", ["no set", "no HR", "broken", "LR missing", "in the way"])
def test_benchmark_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, noise: MakeImage, harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    good, small = png(noise(16, 20)), png(noise(4, 5))
    files = {
        "Set5/HR/a.png": good,
        "Set5/HR/b.png": good,
        "Set5/LR/ax4.png": small,
        "Set5/LR/bx4.png": small,
    }
    whole = tmp_path / "whole.zip"
    whole.write_bytes(zipped(files))
    bad = {
        "no set": {"mine/HR/a.png": good},
        "no HR": {"Set5/LR/ax4.png": small},
        "broken": files | {"Set5/HR/b.png": good[:-100]},
        "LR missing": {name: files[name] for name in list(files)[:-1]},
        "in the way": files,
    }[harm]
    source = tmp_path / "bad.zip"
    source.write_bytes(zipped(bad))
    data = tmp_path / "data"
    before = {"Set5/image_SRF_4/notes.txt"} if harm == "in the way" else set()
    lay_out(data, dict.fromkeys(before, b"notes"))
    assert prepare.main(["--benchmarks", str(source), "--data_dir", str(data)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected" in error and "Set5" in error
    assert files_below(data) == before
    shutil.rmtree(data)
    assert prepare.main(["--benchmarks", str(whole), "--data_dir", str(data)]) == 0
    assert files_below(data) == set(files)
