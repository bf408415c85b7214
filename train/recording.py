"""Work on CUDA that is the same at each step, recorded once and replayed with one launch."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch

from utils.text import first_line

WARM_UP = 3  # calls by kernels, in which whatever is made once is made

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass
class Recorder:
    """Whether a step's work can be recorded: all of it or none, for a graph reads what another
    wrote where it was."""

    able: bool = True


def recorded(launch: Callable[[], Result], recorder: Recorder) -> Callable[[], Result]:
    """`launch` as a CUDA graph from its fourth call on.

    It has to read and write the same memory at every call, and to wait for nothing on the device.
    What it returns is overwritten by the next call. Calls belong into `own_stream`. Where recording
    fails, a line says so, and all that is recorded later runs kernel by kernel, too.
    """
    calls = 0
    graph: torch.cuda.CUDAGraph | None = None
    result: Result

    def run() -> Result:
        nonlocal calls, graph, result
        calls += 1
        if graph is None and recorder.able and calls > WARM_UP:
            try:
                graph, result = _record(launch)
            except RuntimeError as error:
                recorder.able = False
                why = first_line(error)
                logger.warning("running without CUDA graphs, which cannot be recorded: %s", why)
        if graph is None:
            return launch()
        graph.replay()
        return result

    return run


def _record(launch: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """A graph, and what will be where when it was replayed."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    try:
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            result = launch()
    except BaseException:
        torch.cuda.set_stream(stream)  # torch leaves it where a recording cannot end
        raise
    return graph, result


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """Work in a stream that can be recorded meanwhile, after all that was asked for before."""
    torch.cuda.synchronize(device)
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.Stream(device)):
        yield
        torch.cuda.synchronize(device)
