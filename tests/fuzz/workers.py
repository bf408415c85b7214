"""Processes that try inputs, and what watches them: time, memory, and whether they live."""

import contextlib
import faulthandler
import os
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from tests.fuzz.kinds import READ, REFUSED, Kind, Refused, Unfit, check_text

LIMIT_S = 20.0  # of a CPU's time, which other programs on the machine do not make longer
PATIENCE = 10  # times as long it may take by the clock, waiting
LIMIT_MIB = 2048  # resident, of the whole process
START_S = 600.0  # for imports and the files that are damaged
WATCHED_S = 0.05  # between two looks at the memory


@dataclass(frozen=True)
class Result:
    """What became of input `index`: READ, REFUSED or one of WRONG; `said`: the last of it."""

    index: int
    outcome: str
    said: str = ""
    cpu_s: float = 0.0
    peak_mib: int = 0


def try_input(kind: Kind, seed: int, index: int, folder: Path) -> tuple[str, str]:
    """Make an input in an empty folder and read it; what became of it, and what was said."""
    path = kind.make(np.random.default_rng([seed, index]), folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind.attack(path)
    except Refused as error:
        return REFUSED, str(error)
    except kind.refusals as error:
        try:
            check_text(str(error))
        except Unfit as unfit:
            return "wrong", f"{unfit}: {str(error)[:200]!r}"
        return REFUSED, str(error)
    except Unfit as error:
        return "wrong", str(error)
    except Exception:
        return "traceback", traceback.format_exc()
    return READ, ""


def try_all(
    kind: Kind,
    seed: int,
    count: int,
    processes: int,
    keep: Path | None = None,
    limit_s: float = LIMIT_S,
    limit_mib: int = LIMIT_MIB,
) -> Iterator[Result]:
    """Try inputs 0 to `count` in processes, which are replaced where one hangs, dies or grows.

    Args:
        keep: where the inputs go that fail, as KIND-INDEX-OUTCOME/ and what was said beside them.
    """
    waiting = iter(range(count))
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        workers = [_Worker(kind, seed, Path(folder, str(i))) for i in range(min(processes, count))]
        for worker in workers:
            stack.callback(lambda w=worker: w.stop())  # of whatever process it has by then
        while workers:
            for worker in list(workers):
                if worker.index is None and not worker.give(next(waiting, None)):
                    workers.remove(worker)
            for worker in workers:
                if result := worker.look(limit_s, limit_mib):
                    if keep and result.outcome not in (READ, REFUSED):
                        _keep(keep / f"{kind.name}-{result.index}-{result.outcome}", worker, result)
                    worker.go_on(result)
                    yield result
            wait([worker.pipe for worker in workers], WATCHED_S)


class _Worker:
    """A process with its folder; `index`: the input that it is at, none before it has one."""

    def __init__(self, kind: Kind, seed: int, folder: Path) -> None:
        self.kind, self.seed, self.folder = kind, seed, folder
        self.start()

    def start(self) -> None:
        context = get_context("spawn")  # a fork of this process would have its memory
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(self.kind, self.seed, self.folder, other), daemon=True
        )
        self.process.start()
        other.close()
        self.ready, self.index = False, None

    def stop(self) -> None:
        self.pipe.close()  # which ends it, unless it is at an input
        self.process.join(5.0 if self.index is None else 0.0)
        self.process.kill()
        self.process.join()

    def give(self, index: int | None) -> bool:
        """Give it an input; whether there was one."""
        if index is None:
            return False
        self.index, self.since, self.cpu_since = index, time.monotonic(), 0.0
        with contextlib.suppress(OSError):  # where it died, `look` says so
            self.pipe.send(index)
        return True

    def look(self, limit_s: float, limit_mib: int) -> Result | None:
        """What became of its input; None where it is still at it."""
        assert self.index is not None
        took, peak = cpu_s(self.process.pid) - self.cpu_since, peak_mib(self.process.pid)
        waited = time.monotonic() - self.since
        try:
            while self.pipe.poll():
                message = self.pipe.recv()
                if message == "started":
                    self.ready, self.since = True, time.monotonic()
                    self.cpu_since = cpu_s(self.process.pid)
                    took = waited = 0.0
                    continue
                outcome, said, took, peak = message
                if peak > limit_mib:
                    outcome, said = "memory", f"{peak} MiB"
                return Result(self.index, outcome, said, took, peak)
        except (EOFError, OSError):
            self.process.join()
            end = (self.folder / "stderr.txt").read_text(errors="replace")[-4000:]
            said = f"exit code {self.process.exitcode}\n{end}"
            if not self.ready:
                raise RuntimeError(f"expected a process to start, got {said}") from None
            return Result(self.index, "died", said, took, peak)
        if self.ready and peak > limit_mib:
            return Result(self.index, "memory", f"{peak} MiB", took, peak)
        if self.ready and (took > limit_s or waited > PATIENCE * limit_s):
            return Result(
                self.index, "hang", f"{took:.0f} s, {waited:.0f} by the clock", took, peak
            )
        if not self.ready and waited > START_S:
            raise RuntimeError(f"expected a process to start within {START_S:.0f} s")
        return None

    def go_on(self, result: Result) -> None:
        """Be ready for the next input, with a new process where this one is of no more use."""
        if result.outcome in ("hang", "memory", "died"):
            self.stop()
            self.start()
        self.index, self.ready = None, False


def _serve(kind: Kind, seed: int, folder: Path, pipe: Connection) -> None:
    """A worker's loop: an index comes, "started" goes, then what became of the input."""
    folder.mkdir(exist_ok=True)
    errors = (folder / "stderr.txt").open("wb")
    os.dup2(errors.fileno(), 2)  # libraries write to it
    faulthandler.enable(errors)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory ends, this one ends
    kind.make(np.random.default_rng(seed), _emptied(folder / "input"))  # makes what is damaged
    while True:
        try:
            index = pipe.recv()
        except EOFError:
            return
        place = _emptied(folder / "input")
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        pipe.send("started")
        start = time.process_time()
        outcome, said = try_input(kind, seed, index, place)
        pipe.send((outcome, said, time.process_time() - start, peak_mib("self")))


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def peak_mib(process: object) -> int:
    """Most memory that a process had resident at once, of Linux; 0 where that is not known."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) // 1024


def cpu_s(process: object) -> float:
    """The CPU time that a process has taken, of Linux; 0 where that is not known."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _keep(target: Path, worker: _Worker, result: Result) -> None:
    shutil.copytree(worker.folder / "input", target, dirs_exist_ok=True)
    (target / "said.txt").write_text(result.said + "\n", errors="backslashreplace")
