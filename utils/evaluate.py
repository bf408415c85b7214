"""Restore and score the pairs of a set: the same code for the challenge and while training."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.bicubic import Convention, downscale, upscale
from utils.datasets import SCALE, Pair
from utils.devices import time_run
from utils.imaging.images import BAD_IMAGE, ImageError, mod_crop, read_rgb, to_tensor, to_uint8
from utils.metrics import psnr, ssim, to_y
from utils.text import first_line

BORDER = 4  # HR pixels left out of every score

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One pair in memory. lr: (H, W, 3) uint8; hr: (4H, 4W, 3) uint8, or None if not public."""

    name: str
    lr: NDArray[np.uint8]
    hr: NDArray[np.uint8] | None


@dataclass(frozen=True)
class Scores:
    """dB on RGB (the challenge's) and on luma (the papers'); SSIM where it was asked for."""

    psnr: float
    psnr_y: float
    ssim: float | None = None
    ssim_y: float | None = None


def load(pair: Pair, convention: Convention = "double") -> Sample:
    """Read a pair; HR is mod-cropped, LR is made from it where there is no file.

    Raises:
        ImageError: unreadable, too small to score, or LR and HR that do not fit.
    """
    hr = None if pair.hr is None else mod_crop(read_rgb(pair.hr), SCALE, pair.hr)
    if pair.lr is not None:
        lr = read_rgb(pair.lr)
    elif hr is not None:
        lr = downscale(hr, SCALE, convention)
    else:
        raise ImageError(f"expected an LR or HR image, got neither: {pair.name}")
    if hr is not None:
        if hr.shape[:2] != (lr.shape[0] * SCALE, lr.shape[1] * SCALE):
            raise ImageError(
                f"expected HR of {SCALE} times the LR size, got {_size(hr)} and {_size(lr)}: "
                f"{pair.hr}, {pair.lr}"
            )
        if min(hr.shape[:2]) <= 2 * BORDER:
            raise ImageError(
                f"expected HR of more than {2 * BORDER} pixels a side, got {_size(hr)}: {pair.hr}"
            )
    return Sample(pair.name, lr, hr)


def _size(rgb: NDArray) -> str:
    return f"{rgb.shape[1]}x{rgb.shape[0]}"


@torch.inference_mode()
def restore(
    net: Callable[[Tensor], Tensor],
    lr: NDArray[np.uint8],
    device: torch.device,
    data_range: float = 1.0,
) -> tuple[NDArray[np.uint8], float]:
    """Super-resolve (H, W, 3) uint8 -> (4H, 4W, 3) uint8, and the forward's time in ms.

    `net` takes and gives RGB in 0..data_range.

    The clock stands around the forward alone, as the challenge's does, see utils.devices.time_run;
    uploading, rounding and downloading are not in it.

    Raises:
        FloatingPointError: the network gave NaN or infinity.
        MemoryError, RuntimeError: as torch raises them.
        ImageError: the network raised anything else, or gave no image of 4 times the size.
    """
    x = to_tensor(lr, device)
    if data_range != 1:
        x = x * data_range
    try:
        y, runtime_ms = time_run(lambda: net(x), device)
    except BAD_IMAGE:
        raise
    except Exception as error:  # whatever a network raises that does not take this size
        logger.info("a network's error", exc_info=True)
        raise ImageError(
            f"expected a network that restores {_size(lr)} pixels, got {type(error).__name__}: "
            f"{first_line(error)}"
        ) from error
    wanted = (1, 3, SCALE * lr.shape[0], SCALE * lr.shape[1])
    if not isinstance(y, Tensor) or y.shape != wanted:
        got = f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ImageError(f"expected a tensor of shape {wanted} from the network, got {got}")
    return to_uint8(y / data_range), runtime_ms


def score(
    sr: NDArray[np.uint8], hr: NDArray[np.uint8], rgb_ssim: bool = False, y_ssim: bool = False
) -> Scores:
    """Score (H, W, 3) uint8 against the HR image of equal size, 4 pixels left out all round.

    Raises:
        ValueError: the sizes differ.
        ImageError: too small for a score, or for SSIM's window where SSIM is asked for.
    """
    sr_y, hr_y = to_y(sr), to_y(hr)
    return Scores(
        psnr(sr, hr, BORDER),
        psnr(sr_y, hr_y, BORDER),
        ssim(sr, hr, BORDER) if rgb_ssim else None,
        ssim(sr_y, hr_y, BORDER) if y_ssim else None,
    )


def measured(
    sample: Sample, sr: NDArray[np.uint8], runtime_ms: float, rgb_ssim: bool, y_ssim: bool
) -> dict[str, Any]:
    """One image's part of the record; no scores where the HR image is not public."""
    image: dict[str, Any] = {
        "name": sample.name,
        "size": [sr.shape[1], sr.shape[0]],
        "runtime_ms": runtime_ms,
        **dict.fromkeys(("psnr", "psnr_y", "ssim", "ssim_y", "psnr_bicubic", "psnr_y_bicubic")),
    }
    if sample.hr is not None:
        bicubic = score(upscale(sample.lr), sample.hr)
        image |= {
            **asdict(score(sr, sample.hr, rgb_ssim, y_ssim)),
            "psnr_bicubic": bicubic.psnr,
            "psnr_y_bicubic": bicubic.psnr_y,
        }
    return image


def mean_of(images: Sequence[dict[str, Any]], key: str) -> float | None:
    """Mean of what was measured; None where nothing was. A restored copy of HR is infinity."""
    values = [image[key] for image in images if image[key] is not None]
    return float(np.mean(values)) if values else None


def validate(
    net: Callable[[Tensor], Tensor], samples: Sequence[Sample], device: torch.device
) -> Scores:
    """Mean PSNR of a network over pairs in memory, every one of them with HR."""
    scores = []
    for sample in samples:
        if sample.hr is None:
            raise ImageError(f"expected an HR image to validate on, got none: {sample.name}")
        sr, _ = restore(net, sample.lr, device)
        scores.append(score(sr, sample.hr))
    return Scores(
        float(np.mean([s.psnr for s in scores])), float(np.mean([s.psnr_y for s in scores]))
    )
