"""A device by name, or the reason why it cannot be had."""

import logging
import shutil

import torch

NAMES = ("auto", "cpu", "cuda", "mps")

log = logging.getLogger(__name__)


class DeviceError(ValueError):
    """A device that this torch cannot use here."""


def select_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, then Apple's MPS, then the CPU.

    Says so when there is an NVIDIA card that this torch cannot use.

    Raises:
        DeviceError: the device was asked for and is not there.
    """
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(device for device in available if available[device])
        if name != "cuda" and shutil.which("nvidia-smi"):
            log.warning(
                "an NVIDIA card seems to be here, but torch %s cannot use it: running on %s. "
                "See https://pytorch.org/get-started for a build that fits the driver.",
                torch.__version__, name,
            )  # fmt: skip
    if not available.get(name):
        usable = ", ".join(device for device in available if available[device])
        raise DeviceError(f"expected the device {name}, torch {torch.__version__} has only "
                          f"{usable}: give --device {usable.split(', ')[0]}")
    return torch.device(name)
