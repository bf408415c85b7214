"""data/prepare.py: archives, disks and users that leave data whole or not at all."""

import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from mirror import (
    HR,
    LR,
    SIZE,
    Fetch,
    MakeImage,
    Site,
    assert_complete,
    files_below,
    png,
    publish,
    zipped,
)

from data import prepare
from train.packing import pack
from utils import download
from utils.lock import locked

Usage = namedtuple("Usage", "total used free")


def linked(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


HARMFUL: dict[str, dict[str | zipfile.ZipInfo, bytes]] = {
    "climbs": {"../evil.png": b"evil"},
    "climbs inside": {"DIV2K_valid_HR/../../evil.png": b"evil"},
    "climbs on Windows": {"DIV2K_valid_HR\\..\\..\\evil.png": b"evil"},
    "absolute": {"/evil.png": b"evil"},
    "drive": {"C:evil.png": b"evil"},
    "link": {linked("DIV2K_valid_HR/evil.png"): b"../../evil.png"},
    "bomb": {"zeros.txt": bytes(21 * SIZE)},
    "no image": {"DIV2K_valid_HR/0801.png": b"no image"},
    "empty image": {"DIV2K_valid_HR/0801.png": b""},
    "one too many": {"DIV2K_valid_HR/0804.png": png(np.zeros((8, 8, 3), np.uint8))},
}


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("harm", [*HARMFUL, "cut image", "no zip", "cut zip", "one missing"])
def test_archive_that_is_not_as_it_should_be_leaves_nothing(
    site: Site,
    fetch: Fetch,
    hr: dict[str, bytes],
    tmp_path: Path,
    noise: MakeImage,
    harm: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = site.files[HR]
    pictures = hr | HARMFUL.get(harm, {})
    if harm == "cut image":
        pictures["DIV2K_valid_HR/0802.png"] = pictures["DIV2K_valid_HR/0802.png"][:-500]
    elif harm == "one missing":
        del pictures["DIV2K_valid_HR/0802.png"]
    bad = {"no zip": bytes(SIZE), "cut zip": good[:9000] + bytes(SIZE - 9000)}
    site.files[HR] = bad.get(harm) or zipped(pictures)
    publish(monkeypatch, sha256=None)
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected" in error and HR in error and "run this again" in error
    if any("evil.png" in getattr(name, "filename", name) for name in HARMFUL.get(harm, {})):
        assert "evil.png" in error
    assert files_below(tmp_path / "data") == set()
    assert list(tmp_path.rglob("*evil*")) == [] and not Path("/evil.png").exists()
    site.files[HR] = good
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_disk_without_room_is_said_before_download_and_before_unpacking(
    site: Site,
    fetch: Fetch,
    tmp_path: Path,
    noise: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free = [SIZE, 3 * SIZE, 100]
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda folder: Usage(1, 0, free.pop(0)))
        assert fetch() == 1
        assert site.asked == [] and files_below(tmp_path / "data") == set()
        assert fetch() == 1
    assert capsys.readouterr().err.count("GB free") == 2
    assert files_below(tmp_path / "data") == {HR}
    assert fetch() == 0
    assert site.asked == [(HR, None), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("where", ["download", "unpack"])
def test_interrupt_is_one_sentence_and_the_next_run_completes(
    site: Site,
    fetch: Fetch,
    tmp_path: Path,
    noise: MakeImage,
    where: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "download":
            site.cut, site.cuts = 4000, 1
            patch.setattr(download.time, "sleep", interrupt)
        else:
            patch.setattr(download.shutil, "copyfileobj", interrupt)
        assert fetch() == 1
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    left = {f"{HR}.part", f"{HR}.part.json"} if where == "download" else {HR}
    assert files_below(tmp_path / "data") == left
    assert fetch() == 0
    assert site.asked[1:] == [*[(HR, "bytes=4000-")] * (where == "download"), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_what_a_killed_run_left_is_removed(fetch: Fetch, tmp_path: Path, noise: MakeImage) -> None:
    (tmp_path / "data" / ".prepare.x" / "half").mkdir(parents=True)
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_one_process_at_a_time(
    site: Site, fetch: Fetch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two would write their parts of a download behind each other."""
    (tmp_path / "data").mkdir()
    with locked(tmp_path / "data" / ".lock", "it"):
        assert fetch() == 2
    assert "in use by process" in capsys.readouterr().err and site.asked == []
    assert fetch() == 0


@pytest.mark.usefixtures("published")
def test_pack_decodes_what_train_takes(
    fetch: Fetch, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    assert fetch("--pack") == 1  # nothing to train on
    assert str(data) in capsys.readouterr().err.splitlines()[-1]
    (data / "DIV2K_train_HR").mkdir()
    (data / "DIV2K_train_HR" / "0001.png").write_bytes(png(noise(16, 20)))
    assert fetch("--pack") == 0
    assert "1 training images" in capsys.readouterr().out
    before = {path: path.stat() for path in (data / "packed").iterdir()}
    assert [image.name for image in pack([data], data / "packed").images] == ["0001.png"]
    assert {path: path.stat() for path in (data / "packed").iterdir()} == before


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["DIV2K_test"],
        ["--lsdir", "absent.tar"],
        ["--benchmarks", "absent"],
        ["--lsdir"],
        ["--lsdir", ""],
        ["--benchmarks", "a" * 300],
        ["--pack", "--first", "1"],
        ["--pack", "--keep"],
        ["--pack", "--url", "https://127.0.0.1/"],
        ["DIV2K_valid", "--first", "0"],
        ["DIV2K_valid", "--url", "ftp://127.0.0.1/"],
    ],
)
def test_wrong_usage_is_two(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        prepare.main([*options, "--data_dir", str(tmp_path / "data")])
    assert ended.value.code == 2
    assert "expected" in (error := capsys.readouterr().err) or "DIV2K_valid" in error
    assert not (tmp_path / "data").exists()


def test_a_folder_that_cannot_be_made_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert prepare.main(["DIV2K_valid", "--data_dir", str(tmp_path / "file" / "data")]) == 2
    assert f"cannot write to {tmp_path / 'file' / 'data'}" in capsys.readouterr().err


def test_published_table_is_whole() -> None:
    archives = [archive for pair in prepare.DIV2K.values() for archive in pair]
    assert [archive.images for archive in archives] == [100, 100, 800, 800]
    assert all(archive.sha256 and len(bytes.fromhex(archive.sha256)) == 32 for archive in archives)
    assert len({archive.sha256 for archive in archives}) == 4
