"""upscale.py on folders: broken files in them, disks and rights."""

import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_files import mutated, names, opened, photo, small_files
from PIL import Image

from deploy import pipeline
from deploy.photos import folders
from utils.imaging import decode
from utils.imaging.images import ImageError


def test_broken_files_are_named_and_the_others_made(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
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

    assert enlarge("in", "-o", "in/out", "--recursive", "--jobs", 3) == 1

    assert names(folder / "out") == sorted(
        f"{'sub/' if i % 3 == 0 else ''}{i:02}_x4.png" for i in range(30)
    )
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "LKDN x4 on cpu, eager fp32, weights random.pth"
    assert lines[0] == "30 of 37 images written to in/out, 7 failed:"
    bad = ["cut.png", "empty.webp", "loop.png", "pipe.png", "sub/folder.png", "sub/gone.tif"]
    bad.append("text.jpg")
    for line, name in zip(lines[1:], bad, strict=True):
        assert line.startswith(f"  in/{name}: ") and line.count(name) == 1

    assert enlarge("in", "-o", "in/out", "--recursive", "--skip_existing") == 1
    assert "0 of 7 images written, 30 were there, 7 failed:" in capsys.readouterr().out


def test_shards_are_disjoint_and_complete(enlarge: Callable, tmp_path: Path) -> None:
    for i in range(7):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(photo(4, 5, i)).save(tmp_path / "in" / f"{i}.png")
    assert (
        enlarge("in", "-o", "1", "--shard", "1/2")
        == enlarge("in", "-o", "2", "--shard", "2/2")
        == 0
    )
    assert names(tmp_path / "1") == [f"{i}_x4.png" for i in (0, 2, 4, 6)]
    assert names(tmp_path / "2") == [f"{i}_x4.png" for i in (1, 3, 5)]
    assert enlarge("in", "-o", "3", "--shard", "9/9") == 0 and not (tmp_path / "3").exists()


def test_what_cannot_be_stored_is_said_before_it_is_made(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(pipeline, "LARGE", 1)
    pixels = 32 * 36 * 3
    disk = type("usage", (), {"total": 9, "free": pixels // 8 - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: disk)
    said = "a.png: expected at least 0 MiB free for the result in new/out, got 0"
    for ext in ("png", "tif", "bmp"):
        assert enlarge("a.png", "-o", "new/out", "--ext", ext) == 1
        assert said in capsys.readouterr().out
    assert names(tmp_path) == ["a.png"]
    assert enlarge("a.png", "-o", "new/out", "--ext", "jpg") == 0  # which takes much less
    disk.total = disk.free = 0  # as file systems say that do not know
    assert enlarge("a.png", "-o", "new/out") == 0
    assert names(tmp_path) == ["a.png", "new/out/a_x4.jpg", "new/out/a_x4.png"]


def test_a_folder_that_cannot_be_read_is_a_failure(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    (tmp_path / "in" / "locked").mkdir(parents=True)
    Image.fromarray(photo(8, 9)).save(tmp_path / "in" / "a.png")
    scandir = os.scandir

    def locked(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    assert enlarge("in", "-o", "out", "--recursive") == 1
    assert "  in/locked: Permission denied" in capsys.readouterr().out
    assert names(tmp_path / "out") == ["a_x4.png"]


def test_an_output_that_may_not_be_written(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    monkeypatch.setattr(folders.os, "access", lambda path, mode: False)
    assert enlarge("a.png") == 2
    said = "expected a folder to write to, got .: . is not this user's to write: give another -o"
    assert said in capsys.readouterr().err


def test_a_folder_that_may_not_be_written_costs_only_its_images(
    enlarge: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    for name in ("a.png", "sub/b.png", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    assert enlarge("sub/b.png") == 0
    may = folders.os.access
    monkeypatch.setattr(
        folders.os, "access", lambda path, mode: Path(path).name != "sub" and may(path, mode)
    )
    assert enlarge(".", "--recursive", "--skip_existing") == 1
    assert names(tmp_path) == ["a.png", "a_x4.png", "sub/b.png", "sub/b_x4.png", "sub/c.png"]
    said = capsys.readouterr().out
    assert "1 of 2 images written" in said and ", 1 were there, 1 failed:" in said
    assert "sub/c.png: expected a folder to write to, got sub: sub is not this user's" in said
    assert enlarge("sub") == 2


def test_an_output_that_leads_nowhere_is_refused_before_the_work(
    enlarge: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """A link to a drive that is not there."""
    Image.fromarray(photo(8, 9)).save(tmp_path / "a.png")
    (tmp_path / "large").symlink_to(tmp_path / "drive" / "large")
    (tmp_path / "round").symlink_to("round")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "a link.png").symlink_to(tmp_path / "drive" / "b.png")
    for output, why in (
        ("large", "large is a link to nothing that is there"),
        ("large/sub/sub", "large is a link to nothing that is there"),
        ("round", "round is a link to nothing that is there"),
        ("file/sub", "file is a file"),
        ("a link.png", f"it is a link into {tmp_path}/drive, which is not there"),
    ):
        assert enlarge("a.png", "-o", output) == 2
        assert f"got {output}: " in (said := capsys.readouterr().err)
        assert said.count(why) == 1


def test_formats_of_inputs_out_of_reach_cost_only_these(
    tmp_path: Path, enlarge: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that may be listed and not entered: asking for its files raises."""
    (tmp_path / "in" / "locked").mkdir(parents=True)
    for name in ("in/a.jpg", "in/locked/b.jpg"):
        Image.fromarray(photo(8, 9)).save(tmp_path / name)
    stat = os.stat

    def locked(path: object, *args: object, **rest: object) -> os.stat_result:
        if str(path).endswith("b.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **rest)  # type: ignore[arg-type, call-overload]

    monkeypatch.setattr(os, "stat", locked)
    monkeypatch.setattr(decode.io, "FileIO", _refuse_b)
    assert enlarge("in", "-o", "out", "--recursive", "--ext", "auto") == 1
    assert names(tmp_path / "out") == ["a_x4.jpg"]


class _refuse_b(io.FileIO):
    def __init__(self, path: Path) -> None:
        if str(path).endswith("b.jpg"):
            raise PermissionError(13, "Permission denied", str(path))
        super().__init__(path)


def test_damaged_files_give_whole_results_or_one_line(
    tmp_path: Path, enlarge: Callable, capsys: pytest.CaptureFixture
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
    assert enlarge("in", "-o", "out") == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err
    good = {name: size for name, size in sizes.items() if size}
    assert names(tmp_path / "out") == sorted(f"{Path(name).stem}_x4.png" for name in good)
    for name, size in good.items():
        assert opened(tmp_path / "out" / f"{Path(name).stem}_x4.png").size == size
    failed = [line for line in printed.out.splitlines() if line.startswith("  ")]
    assert sorted(Path(line.split(":")[0].strip()).name for line in failed) == sorted(
        set(sizes) - set(good)
    )
    assert good and failed
