"""Files that appear whole or not at all, and stay."""

import errno
import json
import math
import os
import shutil
import stat
import types
from pathlib import Path

import pytest

from utils.files import (
    free_space,
    read_json,
    remove_leftovers,
    whole_file,
    write_all,
    write_bytes,
    write_json,
)

Steps = list[tuple[str, str]]


@pytest.fixture()
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """What is synced, with the bytes that lie under the name then, and what is renamed."""
    done: Steps = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        done.append(("sync folder", path.name) if folder else ("sync", path.read_text()))
        fsync(descriptor)

    def record_replace(source: Path, target: Path) -> None:
        done.append(("rename", Path(target).name))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    return done


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc")
def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_end(
    tmp_path: Path, steps: Steps
) -> None:
    write_bytes(tmp_path / "here.txt", b"whole")
    assert steps == [("sync", "whole"), ("rename", "here.txt"), ("sync folder", tmp_path.name)]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="/proc")
def test_files_are_all_on_the_disk_before_the_first_gets_its_name(
    tmp_path: Path, steps: Steps
) -> None:
    write_all({tmp_path / "1.txt": b"one", tmp_path / "2.txt": b"two"})
    first_rename = next(i for i, (kind, _) in enumerate(steps) if kind == "rename")
    assert steps[:first_rename][:2] == [("sync", "one"), ("sync", "two")]
    assert {name for kind, name in steps if kind == "rename"} == {"1.txt", "2.txt"}


def test_a_folder_that_cannot_be_synced_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    write_bytes(tmp_path / "here.txt", b"whole")
    assert (tmp_path / "here.txt").read_bytes() == b"whole"


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "here.txt"
    write_bytes(path, b"old")
    with pytest.raises(ZeroDivisionError), whole_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] == ["here.txt"] and path.read_bytes() == b"old"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    """Root may rename a file over a device, such as /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match="a folder or device is there"):
            write_bytes(tmp_path / name, b"new")
    assert (tmp_path / "pipe").is_fifo() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_file_is_written(there: bool, tmp_path: Path) -> None:
    """Whole or not at all, in the file's own folder, which has to be there."""
    far, near = tmp_path / "far" / "file.txt", tmp_path / "near"
    near.mkdir()
    (near / "link.txt").symlink_to("../far/file.txt")
    with pytest.raises(FileNotFoundError, match=r"link\.txt"):
        write_bytes(near / "link.txt", b"new")  # a drive that is not there
    far.parent.mkdir()
    if there:
        write_bytes(far, b"old")
    with pytest.raises(ZeroDivisionError), whole_file(near / "link.txt") as file:
        assert Path(file.name).parent == far.parent
        leftover = Path(file.name)
        raise ZeroDivisionError
    assert (far.read_bytes() == b"old") if there else not far.exists()
    write_bytes(near / "link.txt", b"new")
    assert far.read_bytes() == b"new"
    write_all({near / "link.txt": b"newer", near / "plain.txt": b"plain"})
    assert far.read_bytes() == b"newer" and (near / "link.txt").is_symlink()
    leftover.touch()
    remove_leftovers(near / "link.txt")
    assert [path.name for path in far.parent.iterdir()] == ["file.txt"]
    assert sorted(path.name for path in near.iterdir()) == ["link.txt", "plain.txt"]


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    longest = os.pathconf(tmp_path, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255
    path = tmp_path / ("n" * (longest - 4) + ".png")
    write_bytes(path, b"whole")
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_leftovers_of_a_file_are_removed_and_no_others(tmp_path: Path) -> None:
    for name in ("mine.txt", "another.txt"):
        if not (child := os.fork()):
            with whole_file(tmp_path / name):
                os._exit(0)  # as a kill does: nothing is cleaned up
        os.waitpid(child, 0)
    write_bytes(tmp_path / "mine.txt", b"whole")
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    remove_leftovers(tmp_path / "mine.txt", age_s=60)
    assert len(list(tmp_path.glob(".*.tmp"))) == 2
    remove_leftovers(tmp_path / "mine.txt")
    assert len(list(tmp_path.glob(".*.tmp"))) == 1 and (tmp_path / "mine.txt").exists()


@pytest.mark.parametrize("call", ["stat", "unlink"])
def test_a_leftover_that_gets_its_name_meanwhile_is_no_error(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of another process, which renames its file just before this one looks at it or removes it."""
    path, original = tmp_path / "here.txt", getattr(Path, call)
    with whole_file(path) as file:
        leftover = Path(file.name)
    leftover.write_bytes(b"of another")

    def rename_first(self: Path, *arguments: object, **options: object) -> object:
        if self == leftover:
            os.replace(leftover, path)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Path, call, rename_first)
    remove_leftovers(path)
    assert path.read_bytes() == b"of another"


def test_any_name_of_a_file_goes_into_json_and_comes_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"\x82\xa0 \xc3\xbc.png")  # Shift-JIS, then UTF-8
    write_json(tmp_path / "a.json", {name: [name]})
    assert '"\\udc82\\udca0 ü.png"' in (tmp_path / "a.json").read_text("utf-8")
    assert read_json(tmp_path / "a.json") == {name: [name]}


def test_a_disk_that_tells_nothing_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of some programs, on which everything would be refused for want of space."""
    for total, free in ((0, None), (9, 0)):
        usage = types.SimpleNamespace(total=total, free=0)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder, usage=usage: usage)
        assert free_space(tmp_path) == free


def test_json_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [math.inf, {"b": math.nan}], "c": 1.5})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, {"b": None}], "c": 1.5}
