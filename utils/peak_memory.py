"""What a network needs of memory on a CPU: a process of its own restores one image and tells."""

import logging
import math
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import efficiency, evaluate
from utils.datasets import SCALE
from utils.imaging.images import BAD_IMAGE
from utils.measure import Model
from utils.text import first_line

logger = logging.getLogger(__name__)


def memory_of(models: Sequence[Model], size: tuple[int, int], device: torch.device) -> float:
    """MiB that this process has needed after restoring an LR image of (width, height).

    Raises:
        OSError: it cannot be restored, or the system does not tell.
    """
    width, height = size
    try:
        lr = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        for model in models:
            evaluate.restore(model.run, lr, device, model.data_range)
    except (*BAD_IMAGE, ValueError) as error:
        reason = first_line(error)
        raise OSError(f"cannot restore {width}x{height} pixels: {reason}") from error
    if (peak := efficiency.peak_memory_mib(device)) is None:
        raise OSError("expected a system that tells the memory of a process, got none")
    return peak


def memory_alone(
    run: dict[str, Any], command: Sequence[str | Path]
) -> dict[str, float | str | None]:
    """The memory of a run on a CPU, for its record: what a process of its own needs at most.

    Whatever this process did before, it has memory from it still, and would count it.

    Args:
        run: its largest image is restored.
        command: a program that, given --memory_of WxH behind, prints the MiB that it needed for an
            LR image of this size.
    """
    width, height = max((image["size"] for image in run["images"]), key=math.prod)
    size = f"{width // SCALE}x{height // SCALE}"
    whole = [*map(str, command), "--memory_of", size]
    try:
        done = subprocess.run(whole, capture_output=True, text=True, errors="replace", check=True)
        memory_mib = float(done.stdout.split()[-1])
    except subprocess.CalledProcessError as error:  # memory ran out, as a rule
        reason = (error.stderr.strip().splitlines() or [f"exit {error.returncode}"])[-1]
    except (OSError, ValueError, IndexError) as error:
        reason = str(error)
    else:
        return {"memory_mib": memory_mib, "memory_of": f"a process of its own that restores {size}"}
    logger.warning("the memory of %s was not measured: %s", run["model"], reason)
    return {"memory_mib": None}
