"""A command again and again, each time with the next of its calls to the disk failing.

python faults.py FOLDER STRIDE COMMAND ARGUMENTS: runs COMMAND, a module of the repository with a
main(), in a fresh copy of FOLDER for each STRIDE-th call that it makes below out/, until there is
none to fail. Prints a JSON of what came of each: `call`, the call that failed, `code`, the exit
code, `said`, what stood on stderr, and `place`, the copy.
"""

import builtins
import errno
import importlib
import io
import json
import os
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

ERRORS = (errno.ENOSPC, errno.EIO, errno.EACCES)


class Faults:
    """Counts the calls that write into a folder, and lets the n-th fail."""

    def __init__(self, folder: Path, n: int) -> None:
        self.folder, self.n, self.calls, self.failed = str(folder.resolve()), n, 0, ""

    def count(self, call: str, path: Any) -> None:
        if path is not None and not os.path.abspath(path).startswith(self.folder):
            return
        self.calls += 1
        if self.calls == self.n:
            number = ERRORS[self.n % len(ERRORS)]
            self.failed = f"{call} {os.strerror(number)} {path}"
            raise OSError(number, os.strerror(number), None if path is None else str(path))

    def install(self) -> None:
        for name, at in (("fsync", None), ("mkdir", 0), ("replace", 1), ("rename", 1)):
            setattr(os, name, self._counted(name, getattr(os, name), at))
        opened = io.open

        def open_counted(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, *rest, **named)
            self.count("open", file)
            return Written(opened(file, mode, *rest, **named), self, file)

        builtins.open = io.open = open_counted  # type: ignore[assignment]

    def _counted(self, name: str, call: Any, at: int | None) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count(name, None if at is None else arguments[at])
            return call(*arguments, **named)

        return counted


class Written:
    """An open file whose writing may fail."""

    def __init__(self, file: Any, faults: Faults, path: Any) -> None:
        self.file, self.faults, self.path = file, faults, path

    def write(self, data: Any) -> int:
        self.faults.count("write", self.path)
        return int(self.file.write(data))

    def __enter__(self) -> "Written":
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


def run(place: Path, n: int, command: str, arguments: list[str]) -> dict[str, Any]:
    """The command in a process of its own, in `place`."""
    said, note = place / "stderr", place / "call"
    if not (child := os.fork()):
        for number, file in ((1, os.devnull), (2, said)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
        os.chdir(place)
        faults = Faults(place / "out", n)
        code = 99
        try:
            main = importlib.import_module(command).main
            faults.install()
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        descriptor = os.open(note, os.O_WRONLY | os.O_CREAT)
        os.write(descriptor, faults.failed.encode())
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"call": note.read_text(), "code": code, "said": said.read_text(), "place": str(place)}


def main(folder: str, stride: str, command: str, *arguments: str) -> None:
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    module: Any = importlib.import_module(command)
    # Without threads in this process, for which its children would wait without end.
    torch.set_num_threads(1)
    if command == "test_demo":  # what it costs is most of the time, and not what is tested
        counted = module.efficiency.count(module.select_model(23, torch.device("cpu")).net)
        module.efficiency.count = lambda net: counted
        module.peak_memory.memory_alone = lambda *_: {"memory_mib": 1.0}
    outcomes: list[dict[str, Any]] = []
    while not outcomes or outcomes[-1]["call"]:
        n = 1 + int(stride) * len(outcomes)
        place = Path(f"{folder}.{n}").resolve()
        shutil.copytree(folder, place)
        outcomes.append(run(place, n, command, list(arguments)))
    sys.stdout.write(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
