"""The whole network on a CPU, for inference: native.cpp, compiled for the machine at hand.

The tests compare it with the network itself.
"""

import contextlib
import ctypes
import mmap
import os
import threading
import weakref

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.fold import block_names, folded, round_up, scale_of
from kernels.native_library import ARITHMETICS, CompileError, load_library

# What makes six factors of three taps, for F(4, 3): Lavin and Gray, "Fast Algorithms for
# Convolutional Neural Networks", 2016.
WINOGRAD = torch.tensor(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ],
    dtype=torch.float64,
)
SMALL = 1 << 14  # pixels of an image that one thread computes alone where there are others
HUGE_PAGE = 2 << 20  # bytes, on x86-64 and most of the others


class _Call(ctypes.Structure):
    """native_calls.h's InferenceCall."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weights", "lr", "sr", "maps", "scratch")),
        *((name, ctypes.c_int) for name in ("height", "width", "threads")),
    ]


class NativeLKDN:
    """LKDN's inference form on compiled kernels: x (B, 3, H, W) -> (B, 3, 4H, 4W), float32, CPU.

    Runs on as many threads as torch uses when it is made, and keeps the memory that the largest
    batch so far took. Threads that share it take turns, and a forked process may go on with it.

    Args:
        net: models.team23_LKDN.LKDN, of any width, blocks and scale.
        arithmetic: of ARITHMETICS; how matrices are multiplied. With bf16 their inputs are rounded
            to it, and all else, sums of products too, is float32.
        whole: give no image to several threads, so that their number changes no bit.

    Raises:
        CompileError: no C++ compiler, or one that does not know C++20 or this CPU.
    """

    def __init__(self, net: nn.Module, arithmetic: str = "float32", whole: bool = False) -> None:
        weights = folded(net)
        self.whole = whole
        self.threads = torch.get_num_threads()
        self.channels = weights["fea_conv.weight"].shape[1]
        self.scale = scale_of(len(weights["upsampler.0.bias"]), self.channels)
        self.library = load_library(
            "native.cpp",
            CHANNELS=len(weights["fea_conv.bias"]),
            BLOCKS=len(block_names(weights)),
            IMAGE=self.channels,
            SCALE=self.scale,
            **ARITHMETICS[arithmetic],
        )
        if not self.library.lkdn_enable():
            raise CompileError(f"expected a system that lets programs use {arithmetic}")
        for query in ("weights", "scratch", "pitch", "half"):
            getattr(self.library, f"lkdn_{query}").restype = ctypes.c_long
        self.library.lkdn_run.argtypes = [ctypes.POINTER(_Call)]
        self.library.lkdn_run_each.argtypes = [ctypes.POINTER(_Call), ctypes.c_int]
        self.library.lkdn_run.restype = self.library.lkdn_run_each.restype = None
        self.weights = _packed(weights, self.library.lkdn_half(), "bf16" in arithmetic)
        assert len(self.weights) == self.library.lkdn_weights()
        self.memory = torch.empty(0)
        self.lock = threading.Lock()
        _networks.add(self)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W) -> (B, 3, 4H, 4W). Raises ValueError for any other shape or device."""
        if x.ndim != 4 or x.shape[1] != self.channels or x.device.type != "cpu":
            raise ValueError(
                f"expected (B, {self.channels}, H, W) on a CPU, got {tuple(x.shape)} on {x.device}"
            )
        batch, channels, height, width = x.shape
        x = F.pad(x.float(), (1, 1, 1, 1)).contiguous()
        y = x.new_empty(batch, channels, self.scale * height, self.scale * width)
        maps = 3 * height * width * self.library.lkdn_pitch()
        # Small images are a thread's each, as many as come out even: threads that share an image
        # compute some pixels twice and wait for each other.
        even = batch - batch % self.threads if height * width <= SMALL else 0
        each = batch if self.whole else even
        maps *= min(self.threads, each) or 1
        needed = maps + self.threads * self.library.lkdn_scratch()
        with self.lock:
            if len(self.memory) < needed:
                self.memory = torch.empty(0)  # freed before more is taken
                self.memory = zeros(needed)
            call = _Call(
                weights=self.weights.data_ptr(),
                lr=x.data_ptr(),
                sr=y.data_ptr(),
                maps=self.memory.data_ptr(),
                scratch=self.memory[maps:].data_ptr(),
                height=height,
                width=width,
                threads=self.threads,
            )
            self.library.lkdn_run_each(call, each)
            for image, out in zip(x[each:], y[each:], strict=True):
                call.lr, call.sr = image.data_ptr(), out.data_ptr()
                self.library.lkdn_run(call)
        return y


_networks: weakref.WeakSet[NativeLKDN] = weakref.WeakSet()


def _after_fork() -> None:
    """A forked process has none of torch's threads, for which it would wait forever, nor the one
    that may hold a lock. The kernels start threads of their own for each image."""
    torch.set_num_threads(1)
    for network in _networks:
        network.lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def zeros(floats: int) -> Tensor:
    """A float32 vector of zeros, in memory that goes back to the system when it is freed, and in
    huge pages where there are some: it is tens of MB, and finding their ordinary pages takes
    time."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(floats)
    memory = mmap.mmap(-1, 4 * floats + HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.float32)  # which keeps the memory
    first = -whole.data_ptr() % HUGE_PAGE // 4
    return whole[first : first + floats]


def _packed(weights: dict[str, Tensor], half: int, bf16: bool) -> Tensor:
    """All weights in the order and shapes of native.cpp's struct Weights, one float32 vector;
    half: the columns of the last distilled part there."""
    channels = len(weights["fea_conv.bias"])
    distilled = channels // 2
    pitch, wide = round_up(channels, 16), round_up(channels + distilled, 16)
    parts: list[Tensor] = []

    def add(value: Tensor, columns: int) -> None:
        """(rows, up to columns), padded to the right; a vector is one row."""
        value = value.reshape(-1, value.shape[-1])
        parts.append(F.pad(value, (0, columns - value.shape[-1])).flatten().float())

    def multiply_by(matrices: Tensor, columns: int) -> None:
        """(.., K, up to columns): an Operand each, in bf16 of pairs of inputs, as native_bf16.h
        has them."""
        if not bf16:
            return add(matrices, columns)
        inputs, outputs = matrices.shape[-2:]
        padding = (0, columns - outputs, 0, round_up(inputs, 32) - inputs)
        pairs = F.pad(matrices, padding).unflatten(-2, (-1, 2)).transpose(-2, -1)
        parts.append(pairs.bfloat16().contiguous().view(torch.float32).flatten())

    def pointwise(name: str, columns: int) -> None:
        """(O, I, 1, 1) -> an Operand (I, O)."""
        multiply_by(weights[f"{name}.weight"].flatten(1).t(), columns)

    def depthwise(name: str, columns: int) -> None:
        """(C, 1, k, k) -> (k*k, columns) and the bias behind it."""
        add(weights[f"{name}.weight"].flatten(1).t(), columns)
        add(weights[f"{name}.bias"], columns)

    add(weights["fea_conv.weight"].permute(1, 2, 3, 0), pitch)
    add(weights["fea_conv.bias"], pitch)
    for block in block_names(weights):
        for i in "123":
            refined, part = weights[f"{block}.c{i}_r.pw.weight"], weights[f"{block}.c{i}_d.weight"]
            multiply_by(torch.cat((refined, part)).flatten(1).t(), wide)
        for i in "123":
            bias = weights[f"{block}.c{i}_d.bias"]
            add(F.pad(bias, (channels, 0)), wide)
        for i in "123":
            add(weights[f"{block}.c{i}_r.dw.weight"].flatten(1).t(), pitch)
        for i in "123":
            add(weights[f"{block}.c{i}_r.dw.bias"], pitch)
        pointwise(f"{block}.c4.pw", half)
        depthwise(f"{block}.c4.dw", half)
        merge = weights[f"{block}.c5.weight"].flatten(1).t()
        multiply_by(merge.unflatten(0, (4, distilled)), pitch)
        add(weights[f"{block}.c5.bias"], pitch)
        pointwise(f"{block}.atten.pointwise", pitch)
        add(weights[f"{block}.atten.pointwise.bias"], pitch)
        depthwise(f"{block}.atten.depthwise", pitch)
        depthwise(f"{block}.atten.depthwise_dilated", pitch)
        pointwise(f"{block}.c6", pitch)
        add(weights[f"{block}.c6.bias"], pitch)
        add(weights[f"{block}.pixel_norm.weight"], pitch)
        add(weights[f"{block}.pixel_norm.bias"], pitch)
        add(weights[f"{block}.eps"].reshape(1), 16)
        pointwise(f"c1.{block}", pitch)
    add(weights["c1.bias"], pitch)
    pointwise("c2.pw", pitch)
    depthwise("c2.dw", pitch)
    outputs = round_up(len(weights["upsampler.0.bias"]), 16)
    rows = torch.einsum("et,oiyt->yeio", WINOGRAD, weights["upsampler.0.weight"])
    multiply_by(rows, outputs)
    add(weights["upsampler.0.bias"], outputs)
    return torch.cat(parts)
