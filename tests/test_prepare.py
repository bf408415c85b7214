"""Data arrive whole or not at all, whatever server, archive, disk or user do in between."""

import hashlib
import io
import os
import shutil
import tarfile
import threading
import time
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from data import prepare
from train.packing import pack
from utils import download
from utils.datasets import find
from utils.images import read_rgb

Image = NDArray[np.uint8]
MakeImage = Callable[..., Image]
Run = Callable[..., CompletedProcess[str]]
Usage = namedtuple("Usage", "total used free")
SIZE = 20_000  # every archive here is filled up to it, so that one can take another's place
HR, LR = "DIV2K_valid_HR.zip", "DIV2K_valid_LR_bicubic_X4.zip"


@dataclass
class Site:
    """What the server has, how it misbehaves, and what it was asked."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    tag: str | None = '"one"'
    modified: str | None = None
    honours_range: bool = True
    cut: int | None = None  # bytes of a response after which the connection is closed ..
    cuts: int = 0  # .. so many times
    refusals: list[int] = field(default_factory=list)  # status codes of the next responses
    longer: int = 0  # than true is Content-Length
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture()
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    site = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name, span = self.path.removeprefix("/mirror/"), self.headers["Range"]
            site.asked.append((name, span))
            refusal = site.refusals.pop(0) if site.refusals else 0
            if refusal or name not in site.files:
                return self.send_error(refusal or 404)
            content, start = site.files[name], 0
            if span and site.honours_range:
                start = int(span.removeprefix("bytes=").removesuffix("-"))
                if start >= len(content):
                    return self.send_error(416)
                self.send_response(206)
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
            else:
                self.send_response(200)
            self.send_header("Content-Length", str(len(content) - start + site.longer))
            for header, value in (("ETag", site.tag), ("Last-Modified", site.modified)):
                if value:
                    self.send_header(header, value)
            self.end_headers()
            end = len(content)
            if site.cuts:
                site.cuts -= 1
                end = start + site.cut
            self.wfile.write(content[start:end])

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "WAITS_S", (0, 0))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    site.url = f"http://127.0.0.1:{server.server_port}/mirror"
    yield site
    server.shutdown()
    server.server_close()
    thread.join()


def png(rgb: Image, suffix: str = ".png") -> bytes:
    return cv2.imencode(suffix, rgb[..., ::-1])[1].tobytes()


def zipped(files: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
    """A zip of SIZE bytes."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return filled(buffer.getvalue(), SIZE)


def filled(archive: bytes, size: int) -> bytes:
    """A zip with a comment that makes it `size` bytes; it may have one already."""
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        bare = len(archive) - len(file.comment)
    assert bare <= size
    return archive[: bare - 2] + (size - bare).to_bytes(2, "little") + b" " * (size - bare)


def tarred(files: dict[str, bytes], mode: str = "w") -> bytes:
    """A tar; a file whose content is b"->" is a link out of it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if content == b"->":
                info.type, info.linkname, info.size = tarfile.SYMTYPE, "../../evil.png", 0
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture()
def hr(noise: MakeImage) -> dict[str, bytes]:
    """What is in the archive of HR images, a folder and a hidden file among them."""
    pictures = {f"DIV2K_valid_HR/080{n}.png": png(noise(32, 40, n)) for n in (1, 2, 3)}
    return {"DIV2K_valid_HR/": b"", "DIV2K_valid_HR/._0801.png": b"no image", **pictures}


@pytest.fixture()
def published(
    site: Site, hr: dict[str, bytes], noise: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three pairs in place of DIV2K; of the LR images no checksum is known."""
    low = {f"DIV2K_valid_LR_bicubic/X4/080{n}x4.png": png(noise(8, 10, 10 + n)) for n in (1, 2, 3)}
    site.files = {HR: zipped(hr), LR: zipped(low)}
    publish(monkeypatch, sha256=hashlib.sha256(site.files[HR]).hexdigest())


def publish(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Publish the HR archive with other size, number of images or checksum."""
    archive = replace(prepare.DIV2K["DIV2K_valid"][0], images=3, size=SIZE, **changes)
    other = prepare.Archive(LR, "DIV2K_valid_LR_bicubic/X4", 3, SIZE, None)
    monkeypatch.setattr(prepare, "DIV2K", {"DIV2K_valid": (archive, other)})


@pytest.fixture()
def fetch(site: Site, tmp_path: Path) -> Callable[..., int]:
    """Run prepare.py DIV2K_valid into data/; the exit code."""

    def run(*options: object) -> int:
        arguments = ["DIV2K_valid", "--url", site.url, "--data_dir", tmp_path / "data", *options]
        return prepare.main(list(map(str, arguments)))

    return run


def files_below(folder: Path) -> set[str]:
    """All files, hidden ones too, and empty folders."""
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir() or not any(path.iterdir())
    }


COMPLETE = {f"DIV2K_valid_HR/080{n}.png" for n in (1, 2, 3)} | {
    f"DIV2K_valid_LR_bicubic/X4/080{n}x4.png" for n in (1, 2, 3)
}


def assert_complete(folder: Path, noise: MakeImage, seed: int = 0) -> None:
    """The three pairs are there, and nothing else."""
    assert files_below(folder) == COMPLETE
    for number, pair in enumerate(find("DIV2K_valid", folder).pairs, 1):
        assert pair.hr and pair.lr
        np.testing.assert_array_equal(read_rgb(pair.hr), noise(32, 40, seed + number))
        np.testing.assert_array_equal(read_rgb(pair.lr), noise(8, 10, 10 + number))


@pytest.mark.usefixtures("published")
def test_downloads_unpacks_and_then_leaves_alone(
    site: Site, fetch: Run, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("DIV2K_valid_HR: 3 images, sha256 as published")
    assert second.endswith("X4: 3 images, sha256 not verified, none is known")
    assert site.asked == [(HR, None), (LR, None)]

    stamps = {path: path.stat() for path in (tmp_path / "data").rglob("*")}
    assert fetch() == 0
    assert len(site.asked) == 2
    assert {path: path.stat() for path in (tmp_path / "data").rglob("*")} == stamps
    assert capsys.readouterr().out.count("complete already") == 2


@pytest.mark.usefixtures("published")
def test_archives_are_kept_on_demand_and_used_again(site: Site, fetch: Run, tmp_path: Path) -> None:
    assert fetch("--keep") == 0
    assert files_below(tmp_path / "data") == COMPLETE | {HR, LR}
    assert (tmp_path / "data" / HR).read_bytes() == site.files[HR]
    shutil.rmtree(tmp_path / "data" / "DIV2K_valid_HR")
    assert fetch() == 0
    assert len(site.asked) == 2
    assert files_below(tmp_path / "data") == COMPLETE | {LR}


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("layout", ["DIV2K/DIV2K_valid_HR", "DIV2K_valid_LR"])
def test_set_in_another_layout_is_not_downloaded(
    site: Site, fetch: Run, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "data" / layout
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").touch()
    assert fetch() == 0
    assert [name for name, _ in site.asked] == [HR if layout.endswith("LR") else LR]


@pytest.mark.usefixtures("published")
def test_folder_with_other_content_is_not_touched(
    site: Site, fetch: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "data" / "DIV2K_valid_HR" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert fetch() == 1
    assert str(mine.parent) in capsys.readouterr().err
    assert (mine.read_text(), site.asked) == ("mine", [])


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("honours_range", [True, False])
def test_broken_transfer_goes_on(
    site: Site, fetch: Run, tmp_path: Path, noise: MakeImage, honours_range: bool
) -> None:
    site.cut, site.cuts, site.honours_range = 4000, 1, honours_range
    assert fetch() == 0
    assert site.asked == [(HR, None), (HR, "bytes=4000-"), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_next_run_continues_what_broke_each_time(
    site: Site, fetch: Run, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    site.cut, site.cuts = 4000, 3
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "20000 bytes" in error and "12000" in error and "run this again" in error
    assert files_below(tmp_path / "data") == {f"{HR}.part", f"{HR}.part.json"}
    assert (tmp_path / "data" / f"{HR}.part").read_bytes() == site.files[HR][:12000]
    site.asked.clear()
    assert fetch() == 0
    assert site.asked == [(HR, "bytes=12000-"), (LR, None)]
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("change", ["tag", "modified", "size", "note lost", "shorter"])
def test_file_that_changed_in_between_is_downloaded_anew(
    site: Site,
    fetch: Run,
    tmp_path: Path,
    noise: MakeImage,
    change: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site.cut, site.cuts = 15000, 1
    monkeypatch.setattr(download, "WAITS_S", ())
    assert fetch() == 1
    monkeypatch.setattr(download, "WAITS_S", (0, 0))
    other = zipped({f"0/080{n}.png": png(noise(32, 40, 20 + n)) for n in (1, 2, 3)})
    site.files[HR] = other
    publish(monkeypatch, sha256=None)
    if change == "tag":
        site.tag = '"two"'
    elif change == "modified":
        site.modified = "Sat, 01 Jan 2022 00:00:00 GMT"
    elif change == "note lost":
        (tmp_path / "data" / f"{HR}.part.json").unlink()
    else:
        size = 19000 if change == "size" else 14000
        site.files[HR] = filled(other, size)
        archive, low = prepare.DIV2K["DIV2K_valid"]
        table = {"DIV2K_valid": (replace(archive, size=size), low)}
        monkeypatch.setattr(prepare, "DIV2K", table)
    assert fetch() == 0
    assert (HR, None) in site.asked[1:]
    assert_complete(tmp_path / "data", noise, seed=20)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("longer", [10, -10])
def test_file_of_another_size_is_refused_before_it_is_downloaded(
    site: Site,
    fetch: Run,
    tmp_path: Path,
    noise: MakeImage,
    longer: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.longer = longer
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(SIZE) in error and str(SIZE + longer) in error and HR in error
    assert files_below(tmp_path / "data") == set()
    site.longer = 0
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_missing_file_is_an_error_at_once_and_a_busy_server_is_asked_again(
    site: Site, fetch: Run, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
) -> None:
    site.refusals = [404]
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "404" in error and f"{site.url}/{HR}" in error
    assert len(site.asked) == 1 and files_below(tmp_path / "data") == set()
    site.refusals = [503, 429]
    assert fetch() == 0
    assert_complete(tmp_path / "data", noise)


@pytest.mark.usefixtures("published")
def test_server_that_is_not_there_is_one_sentence(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["DIV2K_valid", "--url", "http://127.0.0.1:1/", "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 1
    assert "in 3 attempts" in capsys.readouterr().err.splitlines()[-1]
    assert files_below(tmp_path / "data") == set()


@pytest.mark.usefixtures("published")
def test_wrong_checksum_is_removed_and_downloaded_anew(
    site: Site,
    fetch: Run,
    tmp_path: Path,
    noise: MakeImage,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = site.files[HR]
    site.files[HR] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    assert fetch() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert HR in error and hashlib.sha256(good).hexdigest() in error
    assert hashlib.sha256(site.files[HR]).hexdigest() in error
    assert files_below(tmp_path / "data") == set()
    site.files[HR] = good
    site.asked.clear()
    assert fetch() == 0
    assert site.asked == [(HR, None), (LR, None)]
    assert_complete(tmp_path / "data", noise)


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
    fetch: Run,
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
    fetch: Run,
    tmp_path: Path,
    noise: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    free = [SIZE, 3 * SIZE, 100]
    with monkeypatch.context() as patch:
        patch.setattr(download.shutil, "disk_usage", lambda folder: Usage(0, 0, free.pop(0)))
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
    fetch: Run,
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
def test_what_a_killed_run_left_is_removed(fetch: Run, tmp_path: Path, noise: MakeImage) -> None:
    old, new = (tmp_path / "data" / f".prepare.{age}" for age in ("old", "new"))
    for folder in (old, new):
        (folder / "half").mkdir(parents=True)
    os.utime(old, (time.time() - 7200,) * 2)
    assert fetch() == 0
    assert not old.exists() and new.exists()


@pytest.mark.usefixtures("published")
def test_pack_decodes_what_train_takes(
    fetch: Run, tmp_path: Path, noise: MakeImage, capsys: pytest.CaptureFixture[str]
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


@pytest.fixture()
def lsdir(noise: MakeImage) -> dict[str, bytes]:
    """Numbered images 1 .. 6 in two parts, with what is not for training."""
    numbers = {f"train/000{n % 2}/000000{n}.png": png(noise(16, 20, n)) for n in range(1, 7)}
    others = {"X4/000/0000001x4.png": b"LR", "val1/HR/0000000.png": b"validation", "a.txt": b"-"}
    return numbers | others


def place(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


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
            place(path, files)
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
    source = place(tmp_path / "LSDIR", lsdir)
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


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
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
    source = tmp_path / "from" / (given if kind == "folder" else f"{given}.{kind}")
    if kind == "folder":
        place(source, files)
    else:
        source.parent.mkdir()
        source.write_bytes(zipped(files) if kind == "zip" else tarred(files))
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
    assert "complete already" in capsys.readouterr().out
    assert {path: path.stat() for path in (tmp_path / "data" / name).rglob("*")} == before


def test_several_benchmarks_at_once_and_then_none_is_opened(
    tmp_path: Path, noise: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = png(noise(16, 20))
    one = place(
        tmp_path / "one",
        {"Set5/HR/a.png": picture, "Set14/HR/a.png": picture, "B100/HR/a.png": picture},
    )
    two = tmp_path / "two.zip"
    two.write_bytes(zipped({"x/Urban100/HR/a.png": picture, "x/Manga109/HR/a.png": picture}))
    options = ["--benchmarks", str(one), str(two), "--data_dir", str(tmp_path / "data")]
    assert prepare.main(options) == 0
    assert files_below(tmp_path / "data") == {
        f"{name}/HR/a.png" for name in ("Set5", "Set14", "B100", "Urban100", "Manga109")
    }
    monkeypatch.delattr(prepare, "unpack")
    assert prepare.main(options) == 0


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
    place(data, dict.fromkeys(before, b"notes"))
    assert prepare.main(["--benchmarks", str(source), "--data_dir", str(data)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "expected" in error and "Set5" in error
    assert files_below(data) == before
    shutil.rmtree(data)
    assert prepare.main(["--benchmarks", str(whole), "--data_dir", str(data)]) == 0
    assert files_below(data) == set(files)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["DIV2K_test"],
        ["--lsdir", "absent.tar"],
        ["--benchmarks", "absent"],
        ["--lsdir"],
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


def test_published_table_is_whole() -> None:
    archives = [archive for pair in prepare.DIV2K.values() for archive in pair]
    assert [archive.images for archive in archives] == [100, 100, 800, 800]
    assert all(archive.sha256 and len(bytes.fromhex(archive.sha256)) == 32 for archive in archives)
    assert len({archive.sha256 for archive in archives}) == 4


def test_command_works_from_another_directory(
    tmp_path: Path, lsdir: dict[str, bytes], python: Run, root: Path
) -> None:
    (tmp_path / "part.tar").write_bytes(tarred(lsdir))
    options = ("--lsdir", "part.tar", "--data_dir", "my data", "--first")
    done = python(tmp_path, root / "data" / "prepare.py", *options, 2)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path}/my data/LSDIR: 2 images, 0000001.png to 0000002.png\n"
    done = python(tmp_path, root / "data" / "prepare.py", *options, 7)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
