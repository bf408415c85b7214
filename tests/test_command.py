"""How every command ends: its exit code, and one line in place of a traceback."""

import argparse
import errno
import importlib
import io
import math
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from utils import command
from utils.command import UserError
from utils.devices import DeviceError
from utils.imaging.images import ImageError
from utils.weights import CheckpointError


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("give --a"), 2),
        (DeviceError("give --a"), 2),
        (CheckpointError("give --a"), 2),
        (ImageError("give --a"), 2),  # of this command's `wrong`
        (FloatingPointError("give --a"), 1),  # of its `failures`
        (OSError("give --a"), 1),
    ],
)
def test_an_error_is_one_line_and_its_code(
    error: Exception, code: int, capsys: pytest.CaptureFixture
) -> None:
    def work() -> None:
        raise error

    wrong, failures = (ImageError,), (FloatingPointError,)
    assert command.run("a.py", work, wrong, failures) == code
    assert capsys.readouterr().err == "a.py: give --a\n"


def test_a_failure_of_this_command_comes_before_its_kind(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        raise DeviceError("gone")

    assert command.run("a.py", work, failures=(DeviceError,)) == command.FAILED


def test_ctrl_c_says_what_remains(capsys: pytest.CaptureFixture) -> None:
    def work() -> None:
        raise KeyboardInterrupt

    assert command.run("a.py", work, interrupted="half is kept") == command.FAILED
    assert capsys.readouterr().err == "a.py: half is kept\n"


def test_a_signal_that_comes_again_does_not_end_the_ending(capsys: pytest.CaptureFixture) -> None:
    """As from a scheduler, to each process of a group and to the group."""
    ended = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            for number in (signal.SIGTERM, signal.SIGHUP):
                os.kill(os.getpid(), number)
            ended.append("what was begun")

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_DFL) for number in numbers]
    try:
        assert command.run("a.py", work, interrupted="half is kept") == command.FAILED
        assert [signal.getsignal(number) for number in numbers] == [signal.SIG_DFL] * 2
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    assert ended and capsys.readouterr().err == "a.py: half is kept\n"


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    """Another program that has the same terminal or pipe may have made it so."""

    class Counting(io.FileIO):
        tries = 0

        def write(self, data: object) -> int | None:  # type: ignore[override]
            Counting.tries += 1
            return super().write(data)  # type: ignore[arg-type]

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    said, got = os.urandom(1 << 19), bytearray()  # a pipe holds an eighth of it

    def read() -> None:
        time.sleep(0.1)
        while part := os.read(reader, 1 << 16):
            got.extend(part)

    thread = threading.Thread(target=read)
    thread.start()
    raw = command._Courtesy(Counting(writer, "w"))
    try:
        with io.BufferedWriter(raw) as stream:
            stream.write(said)
    finally:
        raw.raw.close()
        thread.join()
        os.close(reader)
    assert got == said and raw.lost is None
    assert Counting.tries < 1000  # and not tried all the time


def test_work_decides_its_code_and_mistakes_of_ours_are_seen() -> None:
    assert [command.run("a.py", lambda code=code: code) for code in (None, 0, 1)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        command.run("a.py", lambda: 1 // 0)


def test_help_has_defaults_that_say_something() -> None:
    parser = argparse.ArgumentParser(formatter_class=command.HelpFormatter)
    defaults = {
        "size": 3,
        "file": None,
        "names": [],
        "minutes": math.inf,
        "sides": [(2, 3), (4, 5)],
    }
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", default=default, help=f"a {name}")
    text = parser.format_help()
    assert "a size (default: 3)" in text and "a sides (default: 2x3 4x5)" in text
    assert text.count("default:") == 2


def test_a_folder_that_cannot_be_is_wrong_usage_and_a_failing_disk_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name in ("n" * 300, "loop/x", "file", "file/x"):
        with pytest.raises(command.UserError, match="cannot write to"):
            command.make_folder(tmp_path / name)
    with monkeypatch.context() as here:  # a superuser may write everywhere
        here.setattr(command.os, "access", lambda place, mode: place != tmp_path)
        with pytest.raises(command.UserError, match="cannot write to .*this user's"):
            command.make_folder(tmp_path)
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "mkdir", lambda *_, **__: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match="No space left") as caught:
        command.make_folder(tmp_path / "new")
    assert not isinstance(caught.value, command.UserError)


@pytest.mark.parametrize(
    "module",
    [
        *("deploy.bench.__main__", "deploy.bench.large", "deploy.bench.modelled"),
        *("deploy.onnx_export", "train.agreement", "train.export", "train.throughput"),
        *("utils.report.page", "utils.report.pictures"),
    ],
)
def test_a_folder_or_device_for_a_file_is_refused_before_the_work(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    os.mkfifo(tmp_path / "pipe")  # as /dev/null, which this is not to try
    for output in (str(tmp_path), ".", str(tmp_path / "pipe")):
        with pytest.raises(SystemExit, match="2"):
            importlib.import_module(module).main(["-o", output])
        said = f"expected a file to write, got a folder or device: {output}"
        assert said in capsys.readouterr().err


def test_a_link_to_where_no_file_can_be_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "file" / "x.json")
    with pytest.raises(argparse.ArgumentTypeError, match="link: .*file is a file"):
        command.file(str(tmp_path / "link"))
    (tmp_path / "drive").symlink_to(tmp_path / "no" / "drive" / "x.json")
    with pytest.raises(argparse.ArgumentTypeError, match="a link into .*no/drive, which is not"):
        command.file(str(tmp_path / "drive"))
