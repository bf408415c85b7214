"""A lock is its holder's while that lives, and nobody's afterwards."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.command import UserError
from utils.files import ROOT
from utils.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from utils.lock import locked
with locked(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_another_process_is_named_and_one_that_was_killed_blocks_nobody(tmp_path: Path) -> None:
    lock = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"expected the run .* process {holder.pid} on"),
            locked(lock, "the run"),
        ):
            pass
        os.kill(holder.pid, signal.SIGKILL)
    assert lock.exists()  # it could not remove it
    with locked(lock, "the run"):
        assert f"process {os.getpid()} on" in lock.read_text()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), locked(lock, "the run"):
            pass
        assert lock.exists()
    assert not lock.exists()


def test_a_lock_removed_by_its_last_holder_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next process would lock another file of the same name, beside us."""
    lock, opened = tmp_path / ".lock", []
    open_file = Path.open

    def open_late(path: Path, *args: str, **options: str) -> object:
        file = open_file(path, *args, **options)  # type: ignore[call-overload]
        opened.append(path)
        if len(opened) == 1:
            path.unlink()
        return file

    monkeypatch.setattr(Path, "open", open_late)
    with locked(lock, "the run"):
        assert len(opened) == 2 and lock.exists()
