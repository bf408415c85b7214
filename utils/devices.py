"""A device by name, or the reason why it cannot be had."""

import contextlib
import ctypes
import logging
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from utils.command import UserError
from utils.shared import Context, shared
from utils.text import first_line

COMPILERS = ("g++", "clang++", "c++", "cl")  # of C++, which torch.compile looks for
NAMES = ("auto", "cpu", "cuda", "mps")

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class DeviceError(UserError):
    """A device that this torch cannot use here."""


def select_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, then Apple's MPS, then the CPU, and says so when
    there is an NVIDIA card that this torch cannot use.

    Raises:
        DeviceError: the device was asked for and is not there, or does not work.
    """
    available = {"cuda": _cuda_works(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device in available if available[device])
        if name != "cuda" and shutil.which("nvidia-smi"):
            logger.warning(
                "an NVIDIA card seems to be here, but torch %s cannot use it: running on %s. "
                "See https://pytorch.org/get-started for a build that fits the driver.",
                torch.__version__,
                name,
            )
    if not available[name]:
        usable = ", ".join(device for device in available if available[device])
        raise DeviceError(
            f"expected the device {name}, torch {torch.__version__} has only "
            f"{usable}: give --device {usable.split(', ')[0]}"
        )
    return torch.device(name)


def _cuda_works() -> bool:
    """Whether a kernel runs: a card may be too old for this torch, or its memory full."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool(torch.ones(1, device="cuda") + 1 == 2)
    except RuntimeError as error:
        logger.warning("the CUDA device does not work with this torch: %s", first_line(error))
        return False


def is_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, without a GPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def wait(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def time_run(run: Callable[[], Result], device: torch.device) -> tuple[Result, float]:
    """What run() returns, and the milliseconds that the device took for it.

    CUDA events on a CUDA device, as the challenge has it; the wall clock elsewhere.
    """
    if device.type == "cuda":
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        result = run()
        end.record()
        wait(device)
        return result, start.elapsed_time(end)
    wait(device)
    began = time.perf_counter()
    result = run()
    wait(device)
    return result, 1000 * (time.perf_counter() - began)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use `count` CPU threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _without(switch: str) -> Context:
    """A context in which one of cuDNN's switches, which are the process's, is off."""

    @shared
    @contextlib.contextmanager
    def off() -> Iterator[None]:
        before = getattr(torch.backends.cudnn, switch)
        setattr(torch.backends.cudnn, switch, False)
        try:
            yield
        finally:
            setattr(torch.backends.cudnn, switch, before)

    return off


without_tf32 = _without("allow_tf32")  # float32 is multiplied as float32
without_search = _without("benchmark")  # kernels by rule, not by trying all at each new size


def prepare_cpu(keep_memory: bool = True) -> None:
    """Make this process's work on a CPU fast; to be called before the first tensor is computed,
    for the threads that torch starts later inherit the mode.

    Numbers below 1e-38 become zero: GELU's tails are full of them in a trained network, which
    takes twice as long with them, forward and backward. And glibc keeps the memory that tensors
    free, instead of handing it back to the system, which would map and clear the same pages again
    at the next step. Without `keep_memory` it hands all back at once, so that a process has no
    more than its tensors: slower, but its peak is the same each time.
    """
    torch.set_flush_denormal(True)
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        # M_MMAP_THRESHOLD, here at its maximum, M_TRIM_THRESHOLD, M_TOP_PAD (malloc.h)
        keeping = ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20))
        for parameter, value in keeping if keep_memory else ((-3, 64 << 10),):
            mallopt(parameter, value)


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler, CXX' if that is set."""
    own = os.environ.get("CXX", "").split()[:1]
    return device.type != "cpu" or any(map(shutil.which, own or COMPILERS))
