"""The weights as the Triton kernels read them: padded to their blocks, taps side by side."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fold import block_names, dense, round_up


@dataclass(frozen=True)
class Blocks:
    """How much a program computes, and how many columns at a time; blocks are powers of two.

    Attributes:
        tile: rows and columns of pixels of a program, what fits into the registers of its warps.
        warps: of a program.
        pitch: columns of features in memory, the channels rounded up to 16.
        columns: two blocks that cover the pitch, the second perhaps 0.
        taps: blocks that cover the 3 * pitch numbers of a row's three taps: the first, how often
            it comes, and the last, perhaps 0.
        wide: block of a product's outputs, of the channels or of them and what is distilled.
        narrow: block of the outputs that are distilled.
        start: the column of a refined block from which on it is kept as a distilled part; those
            before the part itself meet weights of zero.
        count: columns that are kept.
        parts: columns of the three parts in memory.
        part_columns: blocks that cover them, as `taps`.
        stages: how far ahead loads are issued. Copies ahead skip the L1 cache, where eight of nine
            taps are found, so it is 1.
    """

    tile: tuple[int, int]
    warps: int
    pitch: int
    columns: tuple[int, int]
    taps: tuple[int, int, int]
    wide: int
    narrow: int
    start: int
    count: int
    parts: int
    part_columns: tuple[int, int, int]
    stages: int = 1


def choose_blocks(channels: int, dtype: torch.dtype, capability: int) -> Blocks:
    """Blocks for a network of so many channels.

    Args:
        capability: ten times the GPU's compute capability, such as 90.
    """
    distilled = channels // 2
    pitch = round_up(channels, 16)
    start = channels // 8 * 8  # a store of 16 bytes begins at a multiple of 8 halves
    count = round_up(channels + distilled - start, 8)
    parts = 3 * count  # at least the pitch
    half = dtype != torch.float32
    # A float32 number takes two registers in a product, its high bits and its low; on Hopper
    # products read the weights from shared memory.
    most = 128 if half else 32 if capability // 10 == 9 else 16
    return Blocks(
        tile=(8, 16) if half else (4, 16),
        warps=8 if half else 4,
        pitch=pitch,
        columns=split(pitch),
        taps=cover(3 * pitch, most),
        wide=power(max(start + count, pitch)),
        narrow=power(distilled),
        start=start,
        count=count,
        parts=parts,
        part_columns=cover(parts, most),
    )


def split(number: int) -> tuple[int, int]:
    """The largest power of two up to a number, and the least one that holds the rest, or 0."""
    first = 1 << (number.bit_length() - 1)
    return first, power(number - first) if number > first else 0


def cover(number: int, most: int) -> tuple[int, int, int]:
    """A block up to `most`, how often it fits into a number, and the block of the rest, or 0."""
    block = min(most, split(number)[0])
    rest = number % block
    return block, number // block, power(rest) if rest else 0


def power(number: int) -> int:
    """The least power of two that is at least `number` and that a tensor core's 16."""
    return max(16, 1 << (number - 1).bit_length())


def pack(
    weights: Mapping[str, Tensor], blocks: Blocks, dtype: torch.dtype
) -> dict[str, dict[str, Tensor]]:
    """Layer -> name -> tensor: matrices (K, N) and 3x3 (3, K, N), K a row's three taps, in
    `dtype`; what is added, or multiplied without tensor cores, in float32.

    Args:
        weights: kernels.fold.folded of the network.
    """
    channels = len(weights["fea_conv.bias"])
    distilled = channels // 2
    width, narrow, columns = blocks.wide, blocks.narrow, sum(blocks.columns)
    first, times, last = blocks.taps

    def vector(name: str, length: int = columns) -> Tensor:
        return pad(weights[name][None], 1, length)[0].float()

    def matrix(weight: Tensor, rows: int) -> Tensor:
        """(O, I, 1, 1) -> (I, O), padded."""
        return pad(weight[:, :, 0, 0].t(), rows, columns).to(dtype)

    def taps(weight: Tensor, outputs: int) -> Tensor:
        """(O, I, 3, 3) -> (3, taps and their inputs, O), padded."""
        flat = F.pad(weight.permute(2, 3, 1, 0), (0, 0, 0, blocks.pitch - weight.shape[1]))
        return pad(flat.flatten(1, 2), first * times + last, outputs).to(dtype)

    def depthwise(name: str) -> dict[str, Tensor]:
        """(C, 1, 5, 5) -> (25, C), padded."""
        weight = weights[f"{name}.weight"].reshape(channels, 25).t()
        bias = vector(f"{name}.bias")
        return {"weight": pad(weight, 25, columns).float(), "bias": bias}

    def blueprint(name: str) -> Tensor:
        return dense(weights[f"{name}.pw.weight"], weights[f"{name}.dw.weight"])

    shallow = weights["fea_conv.weight"].permute(2, 3, 1, 0).reshape(-1, channels)
    layers = {
        "shallow": {"weight": pad(shallow, 0, columns).float(), "bias": vector("fea_conv.bias")}
    }
    for block in block_names(weights):
        for j in (1, 2, 3):
            # What is distilled sees the pixel itself: a 3x3 whose centre is the 1x1.
            part = F.pad(weights[f"{block}.c{j}_d.weight"], (1, 1, 1, 1))
            biases = weights[f"{block}.c{j}_r.dw.bias"], weights[f"{block}.c{j}_d.bias"]
            layers[f"{block}.{j}"] = {
                "weight": taps(torch.cat((blueprint(f"{block}.c{j}_r"), part)), width),
                "bias": pad(torch.cat(biases)[None], 1, width)[0].float(),
            }
        c5 = weights[f"{block}.c5.weight"]
        # A part's columns begin some before the part, and end behind it.
        before = channels - blocks.start
        behind = blocks.count - before - distilled
        three = c5[:, : 3 * distilled].unflatten(1, (3, distilled))
        three = F.pad(three, (0, 0, 0, 0, before, behind)).flatten(1, 2)
        layers[f"{block}.merge"] = {
            "weight": taps(blueprint(f"{block}.c4"), narrow),
            "narrow_bias": vector(f"{block}.c4.dw.bias", narrow),
            "parts": matrix(
                three, blocks.part_columns[0] * blocks.part_columns[1] + blocks.part_columns[2]
            ),
            "last": matrix(c5[:, 3 * distilled :], narrow),
            "bias": vector(f"{block}.c5.bias"),
            "point": matrix(weights[f"{block}.atten.pointwise.weight"], columns),
            "point_bias": vector(f"{block}.atten.pointwise.bias"),
        }
        layers[f"{block}.spread"] = depthwise(f"{block}.atten.depthwise")
        layers[f"{block}.attend"] = {
            **depthwise(f"{block}.atten.depthwise_dilated"),
            "c6": matrix(weights[f"{block}.c6.weight"], columns),
            "c6_bias": vector(f"{block}.c6.bias"),
            "scale": vector(f"{block}.pixel_norm.weight"),
            "shift": vector(f"{block}.pixel_norm.bias"),
            "fusion": matrix(weights[f"c1.{block}.weight"], columns),
            "fusion_bias": vector("c1.bias"),
        }
    layers["smooth"] = {"weight": taps(blueprint("c2"), width), "bias": vector("c2.dw.bias", width)}
    outputs = power(len(weights["upsampler.0.bias"]))
    layers["enlarge"] = {
        "weight": taps(weights["upsampler.0.weight"], outputs),
        "bias": vector("upsampler.0.bias", outputs),
    }
    return layers


def pad(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Zeros below and to the right, up to the given size."""
    down, right = max(0, rows - matrix.shape[-2]), columns - matrix.shape[-1]
    return F.pad(matrix, (0, right, 0, down))
