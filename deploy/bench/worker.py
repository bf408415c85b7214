"""A row of the benchmark: one backend in one precision, timed in a process of its own."""

import importlib.util
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from deploy import backends
from models.team23_LKDN import LKDN
from utils import devices, efficiency, evaluate
from utils.command import UserError
from utils.datasets import find
from utils.files import ROOT
from utils.text import first_line
from utils.weights import SHIPPED, load_state, load_weights, read_checkpoint, state_dict_of

PATIENCE_S = 20  # for a process to end by itself
BUSY_MS = 50  # of work before a GPU's time is taken


@dataclass(frozen=True)
class Row:
    """One backend in one precision, of LKDN or of the network that `against` names, which is called
    `network` in tables.

    What is not `prepared` runs on a CPU as torch comes, without utils.devices.prepare_cpu.
    """

    backend: str
    precision: str
    against: str = ""
    prepared: bool = True
    network: str = ""

    @property
    def label(self) -> str:
        """What the row is called in tables."""
        plain = "" if self.prepared else ", torch as it comes"
        return f"{self.network} {self.backend} {self.precision}{plain}".lstrip()


@dataclass(frozen=True)
class Ready:
    """A worker's first message: what runs, and how long it took to prepare."""

    ran: str
    prepare_s: float


@dataclass(frozen=True)
class Refused:
    """A worker's only message, or its answer to a question: why this row cannot run here."""

    reason: str


@dataclass(frozen=True)
class RunImages:
    """A question: run `count` images of one LR size. The answer is a Timing."""

    height: int
    width: int
    count: int


@dataclass(frozen=True)
class Timing:
    """The time of the last image, and the peak memory beyond that of Python and torch."""

    ms: float
    memory_mib: float | None


@dataclass(frozen=True)
class MeasureDrift:
    """A question: how exact the row is. The answer is a difference of PSNRs in dB."""


@contextmanager
def workers(rows: list[Row], device: torch.device) -> Iterator[dict[Row, Connection]]:
    """A fresh process for each row, and the pipe to it: it sends Ready or Refused, then answers
    each RunImages and MeasureDrift, if it can, until the pipe is closed."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = {}, []
    try:
        for row in tqdm(rows, "starting", unit="row", disable=None):
            pipes[row], there = context.Pipe()
            process = context.Process(target=_work, args=(row, device, there), daemon=True)
            process.start()
            there.close()  # so that a process that dies is seen here
            processes.append(process)
            pipes[row].poll(None)  # one after the other: compilers would slow each other down
        yield dict(pipes)
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.join(PATIENCE_S)
            process.terminate()


def _work(row: Row, device: torch.device, pipe: Connection) -> None:
    """A worker's whole life; see `workers`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who closes the pipe
    try:
        if row.prepared:
            devices.prepare_cpu()
        torch.zeros(1, device=device)
        efficiency.reset_peak_memory(device)
        empty = efficiency.peak_memory_mib(device)
        began = time.perf_counter()
        try:
            net = rival(row.against) if row.against else load_shipped()
            backend = backends.make(row.backend, net, row.precision, device)
            with torch.inference_mode():
                backend(torch.rand(1, 3, 64, 72, device=device))
        except Exception as error:  # of a library's, a driver's or a stranger's own kind
            pipe.send(Refused(first_line(error)))
            return
        ran = f"{backend.name} {backend.precision}"
        pipe.send(Ready(ran, time.perf_counter() - began))
        x = torch.empty(0)

        def answer(question: RunImages | MeasureDrift) -> Timing | float:
            nonlocal x
            if isinstance(question, MeasureDrift):
                return _drift(backend, device)
            if x.shape[-2:] != (question.height, question.width):
                generator = torch.Generator().manual_seed(0)
                x = torch.rand(1, 3, question.height, question.width, generator=generator)
                x = x.to(device)
                efficiency.reset_peak_memory(device)
            raise_clock(backend, x)
            ms = [milliseconds(backend, x) for _ in range(question.count)]
            peak = efficiency.peak_memory_mib(device)
            return Timing(ms[-1], None if peak is None or empty is None else peak - empty)

        while True:
            question = pipe.recv()
            try:
                message: Timing | float | Refused = answer(question)
            except Exception as error:
                message = Refused(first_line(error))
            pipe.send(message)
    except (EOFError, BrokenPipeError):
        return


def load_shipped() -> LKDN:
    """LKDN with the weights in model_zoo/."""
    net = LKDN().eval().requires_grad_(False)
    load_weights(net, SHIPPED)
    return net


def rival(against: str) -> nn.Module:
    """The network of FILE.py:Class[:CHECKPOINT].

    Raises:
        UserError: not of this form, no such file, no such class, or one that cannot be made.
        CheckpointError: a checkpoint that is not this network's.
    """
    file, _, rest = against.partition(":")
    name, _, checkpoint = rest.partition(":")
    spec = importlib.util.spec_from_file_location(f"rival {file}", file)
    if not name or spec is None or spec.loader is None or not Path(file).is_file():
        raise UserError(f"expected --against FILE.py:Class[:CHECKPOINT], got {against}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    sys.path.insert(0, str(Path(file).resolve().parent))
    try:
        spec.loader.exec_module(module)
        net = getattr(module, name)().eval().requires_grad_(False)
    except Exception as error:  # whatever a stranger's file raises
        raise UserError(f"cannot make a {name} from {file}: {error!r}") from error
    finally:
        sys.path.pop(0)
    if checkpoint:
        load_state(net, state_dict_of(read_checkpoint(checkpoint), checkpoint), checkpoint)
    return net


@torch.inference_mode()
def milliseconds(run: Callable[[Tensor], Any], x: Tensor) -> float:
    """Time of run(x) on a device that has nothing else to do."""
    devices.wait(x.device)
    return devices.time_run(lambda: run(x), x.device)[1]


def raise_clock(run: Callable[[Tensor], Any], x: Tensor) -> None:
    """Keep a GPU busy until its clock is up; it falls as soon as nothing is to be done."""
    spent = 0.0
    while x.device.type == "cuda" and spent < BUSY_MS:
        spent += milliseconds(run, x)


def _drift(backend: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Y-PSNR on the demo photos minus that of the plain network in float64, dB."""
    exact = load_shipped().double()
    samples = [evaluate.load(pair) for pair in find("demo", ROOT / "data").pairs]
    reference = evaluate.validate(lambda x: exact(x.double()), samples, torch.device("cpu"))
    return evaluate.validate(backend, samples, device).psnr_y - reference.psnr_y
