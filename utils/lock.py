"""One process at a time: a file that is locked while its process lives, and names it."""

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from utils.command import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BYTE = 1 << 30  # the one that Windows locks, behind the text, which others may read


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold a lock on `path`, a file that is there for nothing else and is removed at the end.

    The system frees the lock of a process that ends in whatever way; the file that is left then
    locks nobody out. Where the file system knows no locks, or the file cannot be made, nothing is
    locked.

    Args:
        path: the file; its folder is there.
        what: what is locked, for the message.

    Raises:
        UserError: another process holds it; the message says which.
    """
    while True:
        try:
            file = path.open("a+", encoding="utf-8")
        except OSError:  # what cannot be written then is said by who writes it
            yield
            return
        if not _lock(file):
            with file:
                file.seek(0)
                holder = file.read(200).strip() or "another process"
            raise UserError(
                f"expected {what} for this process alone, found it in use by {holder}: wait until "
                "that has ended, or name another folder"
            )
        if _is_there(path, file):
            break
        file.close()  # its last holder removed it between our opening and locking it
    with file:
        try:
            with contextlib.suppress(OSError):  # a lock without a name is one, too
                file.truncate(0)
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows removes no open file
                path.unlink()


def _lock(file: IO[str]) -> bool:
    """Whether the lock is ours now, or there are no locks."""
    try:
        if sys.platform == "win32":
            file.seek(BYTE)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _is_there(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
