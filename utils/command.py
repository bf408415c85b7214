"""One way in for every command: streams that cannot fail, and one line and a code for what can."""

import argparse
import contextlib
import errno
import io
import logging
import math
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from utils.files import behind_link, is_writable_as_file, longest_name, lost_link, refusal_of
from utils.text import in_terminal

GOOD, FAILED, WRONG_USAGE = 0, 1, 2  # exit codes


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """--help with defaults, but not with those that say nothing: None, no items, no limit."""

    def _get_help_string(self, action: argparse.Action) -> str | None:  # as argparse's own do
        if action.default in (None, math.inf) or action.default == []:
            return action.help
        if isinstance(action.default, list) and isinstance(action.default[0], tuple):
            sizes = " ".join(f"{height}x{width}" for height, width in action.default)
            return f"{action.help} (default: {sizes})"
        return super()._get_help_string(action)


def parser(about: str | None, module: str | None = None) -> argparse.ArgumentParser:
    """The parser of a command's options.

    Args:
        about: what its module says of itself; --help begins with the first paragraph.
        module: the module, where the command is `python -m` of it.
    """
    return argparse.ArgumentParser(
        module and f"python -m {module}",
        description=(about or "").partition("\n\n")[0],
        formatter_class=HelpFormatter,
    )


def size(text: str) -> tuple[int, int]:
    """The two numbers of an option such as 340x510, pixels; the option says which is the width.
    Records hold sides below a million."""
    if not (sides := re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text)):
        raise argparse.ArgumentTypeError(
            f"expected a size such as 340x510, of at most 999999 a side, got {text}"
        )
    return int(sides[1]), int(sides[2])


def path(text: str) -> Path:
    """The file or folder that an option names; nothing, as of an unset variable, names none."""
    if not text:
        raise argparse.ArgumentTypeError("expected the name of a file or folder, got none")
    return Path(text)


def file(text: str) -> Path:
    """The file to write that an option names: refused before the work if there can be none, or a
    folder or device is there, in whose place the file would be."""
    named = path(text)
    target = behind_link(named)
    too_long = len(os.fsencode(target.name)) > longest_name(target.parent)
    reason = "its name is too long" if too_long else refusal_of(target.parent) or lost_link(named)
    if reason:
        raise argparse.ArgumentTypeError(f"expected a file to write, got {named}: {reason}")
    if not is_writable_as_file(named):
        raise argparse.ArgumentTypeError(
            f"expected a file to write, got a folder or device: {named}"
        )
    return named


class UserError(ValueError):
    """Something that the user has to change; the message says what was expected and what to do."""


DISK = (errno.EIO, errno.ENOSPC, errno.EDQUOT)  # what is no mistake of the user's


def make_folder(folder: Path) -> None:
    """Make the folder that an option names.

    Raises:
        UserError: there cannot be one, or this user may not make it or write to it.
        OSError: the disk fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in DISK:
            raise
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {folder}: it is not this user's to write")


class _Lines(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:  # logging names it so
        return in_terminal(super().formatMessage(record))


def show_log(level: int = logging.INFO) -> None:
    """Show log messages as lines on stderr, without control characters of files' names in them."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Lines())
    logging.basicConfig(level=level, handlers=[handler])


def run(
    program: str,
    work: Callable[[], int | None],
    wrong: tuple[type[Exception], ...] = (),
    failures: tuple[type[Exception], ...] = (),
    interrupted: str = "interrupted",
) -> int:
    """Do a command's work and return its exit code, with one line on stderr, not a traceback.

    Args:
        program: what the line begins with.
        work: the command behind its arguments; returns the exit code, or None if all is good.
        wrong: exceptions that are the user's, besides UserError.
        failures: exceptions that mean that the work failed, besides OSError.
        interrupted: what to say after Ctrl-C, SIGTERM or the end of the terminal.
    """
    users: tuple[type[Exception], ...] = (UserError, *wrong)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold what it cannot print
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _signals_as_ctrl_c():
            return work() or GOOD
    except failures as error:
        message, code = str(error), FAILED
    except users as error:
        message, code = str(error), WRONG_USAGE
    except OSError as error:
        message, code = str(error), FAILED
    except KeyboardInterrupt:
        message, code = interrupted, FAILED
    print(f"{program}: {in_terminal(message)}", file=sys.stderr)
    return code


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end the work as Ctrl-C does, so that what was done is told of
    and what was begun is ended. Where somebody else handles them, they still do."""
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP")]
    ours = [n for n in numbers if n is not None and signal.getsignal(n) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        for other in ours:  # they often come twice, and must not end the ending
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def start(main: Callable[[], int]) -> NoReturn:
    """Run a command as this process and leave with its exit code, whatever its streams are.

    What a command prints beside its work is a courtesy: where stdout or stderr is closed, full, or
    a pipe that nobody reads, the work goes on, and the exit code says whether it was done.
    """
    _open_streams()
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # as entry points have it meanwhile
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code: Any = main()
    except SystemExit as stopped:  # of argparse: --help, which is all of its work, or a mistake
        code = stopped.code
        if not code:
            code = run("--help", print_answer)
    sys.stdout.flush()
    lost = _lost(sys.stdout)
    if not code and lost and lost.errno != errno.EBADF:
        print(f"not all could be written to stdout: {lost.strerror}", file=sys.stderr)
    sys.exit(code)


def print_answer(*answer: object) -> None:
    """Print what is all of a command's work. Raises OSError where it cannot be written."""
    print(*answer, end="\n" * bool(answer), flush=True)
    if lost := _lost(sys.stdout):
        raise OSError(f"cannot write to stdout: {lost.strerror}")


class _Courtesy(io.RawIOBase):
    """A stream's lowest layer that drops what it cannot write, and keeps why."""

    def __init__(self, raw: io.RawIOBase, lost: OSError | None = None) -> None:
        self.raw, self.lost = raw, lost

    def write(self, data: Any) -> int:
        try:
            while (written := self.raw.write(data)) is None:  # made non-blocking by someone else
                select.select([], [self.raw], [])
        except OSError as error:
            if error.errno != errno.EPIPE:  # who reads no further wants no more
                self.lost = self.lost or error
            return len(data)
        return written

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.raw.fileno()

    def isatty(self) -> bool:
        return self.raw.isatty()


def _lost(stream: TextIO) -> OSError | None:
    """Why something of a stream was not written, where that is so."""
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.lost if isinstance(raw, _Courtesy) else None


def _open_streams() -> None:
    """Make stdout and stderr streams on which nothing fails, nor any character of a text."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # the next file to be opened would become the stream of every library
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets this number
    if sys.stdout is sys.__stdout__:  # not where a caller has put something else
        sys.stdout = _courteous(sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _courteous(sys.stderr)


def _courteous(stream: Any) -> TextIO:
    """The same stream, which drops what it cannot write; Python has None for a closed one."""
    if stream is None:
        closed = OSError(errno.EBADF, os.strerror(errno.EBADF))
        raw = _Courtesy(io.FileIO(os.devnull, "w"), closed)
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace")
    with contextlib.suppress(OSError):
        stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Courtesy(getattr(stream.buffer, "raw", stream.buffer))),
        stream.encoding,
        "backslashreplace",
        line_buffering=stream.line_buffering or stream.write_through,
    )
