"""data/prepare.py --lsdir: the first images by name from the parts that people have."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mirror import MakeImage, files_below, lay_out, png, tarred, zipped

from data import prepare
from utils.imaging.images import read_rgb


@pytest.fixture()
def lsdir(noise: MakeImage) -> dict[str, bytes]:
    """Numbered images 1 .. 6 in two parts, with what is not for training."""
    numbers = {f"train/000{n % 2}/000000{n}.png": png(noise(16, 20, n)) for n in range(1, 7)}
    others = {"X4/000/0000001x4.png": b"LR", "val1/HR/0000000.png": b"validation", "a.txt": b"-"}
    return numbers | others


def split(files: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Every second image in a part of its own."""
    odd = {name: content for name, content in files.items() if "0001/" in name}
    return odd, {name: content for name, content in files.items() if name not in odd}


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "zip", "mixed"])
def test_first_of_lsdir_by_name_from_all_parts(
    tmp_path: Path,
    lsdir: dict[str, bytes],
    noise: MakeImage,
    kind: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sources = []
    for number, files in enumerate(split(lsdir)):
        path = tmp_path / f"shard-0{number}{'' if kind in ('folder', 'mixed') else '.' + kind}"
        if kind == "folder" or (kind == "mixed" and number):
            lay_out(path, files)
        elif kind == "zip":
            path.write_bytes(zipped(files))
        else:
            path.write_bytes(tarred(files, "w:gz" if kind == "tar.gz" else "w"))
        sources.append(str(path))
    options = ["--lsdir", *sources, "--first", "4", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    target = tmp_path / "data" / "LSDIR"
    assert files_below(tmp_path / "data") == {f"LSDIR/000000{n}.png" for n in range(1, 5)}
    for number in range(1, 5):
        picture = target / f"000000{number}.png"
        np.testing.assert_array_equal(read_rgb(picture), noise(16, 20, number))
        assert kind != "folder" or picture.stat().st_nlink == 2  # it takes no room

    assert prepare.main(options) == 0
    assert "complete already" in capsys.readouterr().out
    options[options.index("4")] = "5"
    assert prepare.main(options) == 1
    assert str(target) in capsys.readouterr().err
    assert len(files_below(target)) == 4


def test_lsdir_is_copied_where_it_cannot_be_linked(
    tmp_path: Path, lsdir: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    source = lay_out(tmp_path / "LSDIR", lsdir)
    options = ["--lsdir", str(source), "--first", "6", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    for number in range(1, 7):
        name = f"000000{number}.png"
        assert (tmp_path / "data/LSDIR" / name).read_bytes() == lsdir[
            f"train/000{number % 2}/{name}"
        ]


@pytest.mark.parametrize("harm", ["too few", "broken", "climbs", "link", "cut", "no archive"])
def test_lsdir_that_cannot_be_had_leaves_nothing(
    tmp_path: Path, lsdir: dict[str, bytes], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict(lsdir)
    if harm == "too few":
        del files["train/0001/0000003.png"]
    elif harm == "broken":
        files["train/0001/0000003.png"] = files["train/0001/0000003.png"][:-400]
    elif harm in ("climbs", "link"):
        files = {"../../evil.png" if harm == "climbs" else "evil.png": b"->"} | files
    content = b"no archive" if harm == "no archive" else tarred(files, "w:gz")
    source = tmp_path / "part.tar.gz"
    source.write_bytes(content[:-200] if harm == "cut" else content)
    options = ["--lsdir", str(source), "--first", "6", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 1
    error = capsys.readouterr().err
    assert "expected" in error and ("0000003.png" if harm == "broken" else str(source)) in error
    assert files_below(tmp_path / "data") == set()
    assert list(tmp_path.rglob("*evil*")) == []
    source.write_bytes(tarred(lsdir, "w:gz"))
    assert prepare.main(options) == 0
    assert len(files_below(tmp_path / "data")) == 6


def test_a_part_of_what_is_for_validation_is_not_taken(
    tmp_path: Path, lsdir: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    val = lay_out(tmp_path / "val1" / "HR", {"0000000.png": lsdir["train/0001/0000001.png"]})
    options = ["--first", "1", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(["--lsdir", str(val), *options]) == 1
    assert "got 0" in capsys.readouterr().err
    assert not (tmp_path / "data" / "LSDIR").exists()


def test_a_link_in_the_way_is_said_before_the_work(
    tmp_path: Path, lsdir: dict[str, bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("data", "large disk"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data" / "LSDIR").symlink_to(tmp_path / "large disk", target_is_directory=True)
    source = lay_out(tmp_path / "train", lsdir)
    options = ["--lsdir", str(source), "--first", "6", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 1
    assert "got something else: move it away" in capsys.readouterr().err


def test_command_works_from_another_directory(
    tmp_path: Path, lsdir: dict[str, bytes], python: Callable, root: Path
) -> None:
    (tmp_path / "part.tar").write_bytes(tarred(lsdir))
    options = ("--lsdir", "part.tar", "--data_dir", "my data", "--first")
    done = python(tmp_path, root / "data" / "prepare.py", *options, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/my data/LSDIR: 2 images, 0000001.png to 0000002.png\n"
    done = python(tmp_path, root / "data" / "prepare.py", *options, 7)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
