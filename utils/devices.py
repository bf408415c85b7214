"""A device by name, or the reason why it cannot be had."""

import ctypes
import logging
import platform
import shutil

import torch

NAMES = ("auto", "cpu", "cuda", "mps")

logger = logging.getLogger(__name__)


class DeviceError(ValueError):
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
                torch.__version__, name,
            )  # fmt: skip
    if not available[name]:
        usable = ", ".join(device for device in available if available[device])
        raise DeviceError(f"expected the device {name}, torch {torch.__version__} has only "
                          f"{usable}: give --device {usable.split(', ')[0]}")
    return torch.device(name)


def _cuda_works() -> bool:
    """Whether a kernel runs: a card may be too old for this torch, or its memory full."""
    if not torch.cuda.is_available():
        return False
    try:
        return bool(torch.ones(1, device="cuda") + 1 == 2)
    except RuntimeError as error:
        logger.warning("the CUDA device does not work with this torch: %s",
                       str(error).splitlines()[0])
        return False


def keep_freed_memory() -> None:
    """Let this process keep the memory that tensors free, where the C library is glibc.

    By default glibc hands every freed block of more than a few MiB back to the system, which then
    has to map and clear the same pages again at the next step or image.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    for parameter, value in ((-3, 32 << 20), (-1, 2**31 - 1), (-2, 64 << 20)):
        # M_MMAP_THRESHOLD at its maximum, M_TRIM_THRESHOLD, M_TOP_PAD (malloc.h)
        mallopt(parameter, value)
