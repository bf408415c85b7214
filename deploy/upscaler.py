"""The network for whoever has an image: array in, array of 4 times the size out, in any memory."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deploy import backends, tiling
from deploy.self_ensemble import mean_of_eight
from deploy.tiling import CONTEXT, SMALLEST
from models.team23_LKDN import LKDN
from utils.command import UserError
from utils.datasets import SCALE
from utils.devices import NAMES, DeviceError, prepare_cpu, select_device
from utils.memory import free_memory
from utils.weights import SHIPPED, load_weights

# LR pixels that a CPU is given at once by default: more take no less time each, for they leave its
# caches sooner than the context of more tiles costs.
CPU_PIXELS = 3 << 18
SMALL = 256  # a side of tiles whose context costs much: with it three times their pixels are seen
ASSUMED = 2 << 30  # bytes, where it cannot be found out how much memory is free
ENSEMBLE = 2 * 4 * 3 * SCALE**2  # bytes a LR pixel: the sum, and a result turned back
# LR pixels put around a picture, its own mirrored, and cut off the result: the network pads with
# zeros, which turns the edge of a white picture grey. Of the widths and of other ways to continue a
# picture this costs real photos the least: 0.01 dB of 126 crops of 40x40.
BORDER = 3

logger = logging.getLogger(__name__)


class Upscaler:
    """LKDN with its weights on a backend: `upscaler(image)` is the image of 4 times the size.

    The picture is continued by its own mirror image, BORDER pixels wide, so that its edge is as
    bright as the rest. What does not fit, or is faster so on a CPU, is restored in tiles, equal to
    the whole to the last bits. Threads may share one on eager, native, onnxruntime or openvino.
    After a fork go on with native alone: the others' threads are missing there, and a forked
    process would wait for them.

    Args:
        device: auto, cpu, cuda or mps.
        backend: see deploy/backends.py; auto is the fastest that runs here.
        precision: fp32, fp16 or bf16.
        checkpoint: weights of the inference form; by default the shipped ones.
        tile: side of a tile in LR pixels, without the context around it; by default what fits
            is cut on a CPU alone, where that is faster.
        memory_bytes: what an image may take on the device, a CPU's image itself included; by
            default half of what is free, of which a CPU's network takes no more than is fastest.
        self_ensemble: average over the 8 flips and quarter turns; takes 8 times as long.

    Attributes:
        device: torch.device.
        backend: deploy.backends.Backend, with its name and precision.
        checkpoint: name of the file.
        memory_bytes: the bound that holds.
        progress: whether a bar is shown for each image; False unless set.

    Raises:
        DeviceError, BackendError, CheckpointError: see utils/devices.py, deploy/backends.py and
            utils/weights.py; all are UserErrors, which are ValueErrors.
        UserError: the tile is too small, or memory_bytes for the smallest tile.
        MemoryError: so little is free.
    """

    def __init__(
        self,
        device: str = "auto",
        backend: str = "auto",
        precision: str = "fp32",
        checkpoint: str | Path | None = None,
        tile: int | None = None,
        memory_bytes: int | None = None,
        self_ensemble: bool = False,
    ) -> None:
        if tile is not None and tile < SMALLEST:
            raise UserError(
                f"expected a tile of at least {SMALLEST} LR pixels, got {tile}: most "
                "of a smaller one is context"
            )
        if device not in NAMES:
            raise DeviceError(f"expected a device of {', '.join(NAMES)}, got {device}")
        self.device = select_device(device)
        if self.device.type == "cpu":
            prepare_cpu()
        file = Path(checkpoint or SHIPPED)
        net = LKDN().eval()
        load_weights(net, file)
        self.checkpoint = file.name
        self.backend = backends.make(backend, net, precision, self.device)
        self.tile = tile
        self.self_ensemble = self_ensemble
        self.progress = False
        self._cost = self.backend.memory + (ENSEMBLE if self_ensemble else 0)
        self.memory_bytes = memory_bytes or _default_memory(self.device, self._cost)
        # Bytes that the network takes at least and at most, whatever an image itself takes, which
        # has to be there in any case: by default tiles of a good size.
        self._least, self._most = tiling.least_memory(self._cost), self.memory_bytes
        if memory_bytes is None:
            some = (SMALL + 2 * CONTEXT) ** 2 * self._cost
            self._least = max(self._least, min(some, self.memory_bytes))
            if self.device.type == "cpu":
                self._most = CPU_PIXELS * self._cost
        self._most = int(min(self._most, self.backend.most_pixels * self._cost))
        if tile and (tile + 2 * CONTEXT) ** 2 > self.backend.most_pixels:
            most = math.isqrt(int(self.backend.most_pixels)) - 2 * CONTEXT
            raise UserError(f"expected a tile of at most {most} on {self.backend.name}, got {tile}")
        try:
            tiling.tile_size(self.memory_bytes, self._cost)
        except MemoryError as error:
            if memory_bytes:
                raise UserError(str(error)) from error
            raise

    def __call__(self, image: NDArray) -> NDArray:
        """The image of 4 times the size, rounded to its own depth.

        Args:
            image: (H, W, 3) RGB or (H, W, 1) grey, uint8 or uint16; or a batch of such images,
                (B, H, W, 3) or (B, H, W, 1).

        Returns:
            (4H, 4W, 3), (4H, 4W, 1), (B, 4H, 4W, 3) or (B, 4H, 4W, 1) of the same dtype.

        Raises:
            ValueError: another shape or dtype.
            FloatingPointError: the network gave NaN or infinity.
        """
        _check(image, (np.uint8, np.uint16), (3, 4))
        levels = int(np.iinfo(image.dtype).max)
        kind = torch.uint8 if image.dtype == np.uint8 else torch.int32

        def run(piece: Tensor) -> Tensor:
            y = self._forward(piece.float() / levels)
            return y.clamp_(0, 1).mul_(levels).round_().to(kind).cpu()

        batch = image if image.ndim == 4 else image[None]
        count, height, width, channels = batch.shape
        out = np.empty((count, SCALE * height, SCALE * width, channels), image.dtype)
        seen = count * (height + 2 * BORDER) * (width + 2 * BORDER)
        room = self._room(2 * batch.nbytes + out.nbytes)
        together = count if seen * self._cost <= room else 1
        for i in range(0, count, together):
            self._fill(run, batch[i : i + together], out[i : i + together])
        return out if image.ndim == 4 else out[0]

    def restore(self, rgb: NDArray[np.float32]) -> NDArray[np.float32]:
        """What the network makes of an image, not clamped: (4H, 4W, 3) or (4H, 4W, 1) float32.

        Args:
            rgb: (H, W, 3) RGB or (H, W, 1) grey, float32, 0..1.

        Raises:
            ValueError: another shape or dtype.
            FloatingPointError: the network gave NaN or infinity.
        """
        _check(rgb, (np.float32,), (3,))
        out = np.empty((SCALE * rgb.shape[0], SCALE * rgb.shape[1], rgb.shape[2]), np.float32)
        self._fill(lambda piece: self._forward(piece).cpu(), rgb[None], out[None])
        return out

    def tile_for(self, height: int, width: int, held: int = 0) -> int | None:
        """Side of the tiles in which an image of so many LR pixels is restored, or None for the
        whole at once; `held` bytes of its memory are taken already."""
        height, width = height + 2 * BORDER, width + 2 * BORDER
        if self.tile is not None:
            return self.tile if max(height, width) > self.tile + 2 * CONTEXT else None
        if height * width * self._cost <= self._room(held):
            return None
        room = max(self._least, self._room(held))
        return _best_tile(height, width, tiling.tile_size(room, self._cost))

    def _room(self, held: int) -> int:
        """Bytes that the network may take beside `held` bytes of an image, which are a CPU's."""
        held = held if self.device.type == "cpu" else 0
        return min(self.memory_bytes - held, self._most)

    def _fill(self, net: Callable[[Tensor], Tensor], batch: NDArray, out: NDArray) -> None:
        """Restore (B, H, W, C) into `out`, (B, 4H, 4W, C)."""
        height, width = batch.shape[1:3]
        around = (BORDER, BORDER)
        padded = np.pad(batch, ((0, 0), around, around, (0, 0)), "symmetric")
        held = batch.nbytes + padded.nbytes + out.nbytes
        x = torch.from_numpy(padded).permute(0, 3, 1, 2)
        y = torch.from_numpy(out).permute(0, 3, 1, 2)
        tile = None if len(batch) > 1 and self.tile is None else self.tile_for(height, width, held)
        if tile and tile < CONTEXT and self.tile is None:
            logger.warning(
                "%dx%d pixels in tiles of %d, for little memory: it takes many times as long",
                width,
                height,
                tile,
            )
        how = f"tiles of {tile} pixels" if tile else "whole"
        logger.info("%dx%d to %dx%d: %s", width, height, SCALE * width, SCALE * height, how)
        size = tile or max(x.shape[-2:])
        tiling.restore(net, x, size, y, BORDER, self.progress)

    def _forward(self, piece: Tensor) -> Tensor:
        """(B, 3 or 1, h, w) float32, 0..1 -> (B, 3 or 1, 4h, 4w) on the device, checked."""
        x = piece.to(self.device)
        grey = x.shape[1] == 1
        x = x.expand(-1, 3, -1, -1) if grey else x
        y = mean_of_eight(self.backend, x) if self.self_ensemble else self.backend(x)
        if not y.sum().isfinite():
            raise FloatingPointError(
                "expected finite pixels, got NaN or infinity from the network: try --precision fp32"
            )
        return y.mean(1, keepdim=True) if grey else y


def _check(image: NDArray, dtypes: tuple[type, ...], dimensions: tuple[int, ...]) -> None:
    batches = ", or a batch (B, H, W, 3) or (B, H, W, 1)" if 4 in dimensions else ""
    shapes = f"(H, W, 3) or (H, W, 1){batches}"
    wanted = f"{' or '.join(dtype.__name__ for dtype in dtypes)} of shape {shapes}"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"expected a NumPy array, {wanted}, got {type(image).__name__}")
    if (
        image.dtype not in dtypes
        or image.ndim not in dimensions
        or image.shape[-1] not in (1, 3)
        or not image.size
    ):
        raise ValueError(f"expected {wanted}, got {image.dtype} of shape {image.shape}")


def _default_memory(device: torch.device, cost: int) -> int:
    free = free_memory(device)
    if free is None:
        free = 2 * ASSUMED
    return max(free // 2, min(free, tiling.least_memory(cost)))


def _best_tile(height: int, width: int, largest: int) -> int:
    """Of the tile sizes up to the largest, the one with which the least is computed twice."""

    def count_pixels(size: int) -> int:
        seen = size + 2 * CONTEXT
        return len(tiling.tiles(height, width, size)) * min(height, seen) * min(width, seen)

    return min(range(largest, max(SMALLEST, largest // 2) - 1, -1), key=count_pixels)
