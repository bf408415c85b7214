"""Depthwise convolution with both gradients in Triton, for channels_last tensors.

In channels_last a pixel's channels lie side by side, and a step right or down is a shift by C or
width*C numbers. A program has all taps of a block of channels, whose weights it reads once for many
pixels; where C is a multiple of 16 each load takes eight numbers. Sums are kept in float32
whatever the images' dtype.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PIXELS = 32  # that one program computes, forward
CHANNELS = 64  # .. and of how many channels
TOGETHER = 2  # pixels at once for the weight gradient
GRADIENT_PROGRAMS = 2048  # about as many for the weight gradient as keep a large GPU busy


@triton.jit
def _convolve(
    x,
    kernel,
    bias,
    out,
    pixels,
    height,
    width,
    channels,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    BIAS: tl.constexpr,
    TURNED: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """out[n, c] = bias + sum over the taps of kernel * x shifted; TURNED by half a turn, as for the
    gradient of x. One program has some pixels of some channels."""
    n = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    real = c < channels
    column = n % width
    row = n // width % height
    total = tl.zeros((PIXELS, CHANNELS), tl.float32)
    if BIAS:
        total += tl.load(bias + c, mask=real, other=0.0)[None, :]
    for i in range(SIZE):  # row by row, so that no more loads are under way than registers
        down = (i - SIZE // 2) * DILATION
        row_inside = (n < pixels) & (row + down >= 0) & (row + down < height)
        for j in tl.static_range(SIZE):
            right = (j - SIZE // 2) * DILATION
            inside = row_inside & (column + right >= 0) & (column + right < width)
            place = (n + down * width + right)[:, None] * channels + c[None, :]
            value = tl.load(x + place, mask=inside[:, None] & real[None, :], other=0.0)
            tap = i * SIZE + j
            if TURNED:
                tap = SIZE * SIZE - 1 - tap
            weight = tl.load(kernel + tap * channels + c, mask=real, other=0.0)
            total += value.to(tl.float32) * weight[None, :]
    place = n[:, None] * channels + c[None, :]
    mask = (n < pixels)[:, None] & real[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _correlate(
    x,
    grad,
    partial,
    pixels,
    height,
    width,
    channels,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    TAPS: tl.constexpr,
    TOGETHER: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """partial[program, tap, c] = sum over COUNT times TOGETHER pixels of grad * x shifted by the
    tap; for the tap behind the last one, of grad."""
    c = (tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS))[None, None, :]
    real = c < channels
    tap = tl.arange(0, TAPS)[None, :, None]
    down = (tap // SIZE - SIZE // 2) * DILATION
    right = (tap % SIZE - SIZE // 2) * DILATION
    total = tl.zeros((TOGETHER, TAPS, CHANNELS), tl.float32)
    for i in range(COUNT):  # a constant: Triton 3.6's interpreter counts to no other
        n = ((tl.program_id(0) * COUNT + i) * TOGETHER + tl.arange(0, TOGETHER))[:, None, None]
        column = n % width + right
        row = n // width % height + down
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        inside = inside & (tap < SIZE * SIZE) & (n < pixels)
        place = (n + down * width + right) * channels + c
        value = tl.load(x + place, mask=inside & real, other=0.0).to(tl.float32)
        value = tl.where(tap == SIZE * SIZE, 1.0, value)
        # Read for every tap, as x is: else Triton would hand it around at each turn.
        upstream = tl.load(grad + n * channels + 0 * tap + c, mask=real & (n < pixels), other=0.0)
        total += value * upstream.to(tl.float32)
    place = (tl.program_id(0) * (SIZE * SIZE + 1) + tap) * channels + c
    sums = tl.sum(total, 0)[None, :, :]
    tl.store(partial + place, sums, mask=(tap <= SIZE * SIZE) & real)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int = 1) -> Tensor:
    """Each channel convolved with its own kernel; zeros around, equal size in and out.

    Under autocast `x` is taken to its dtype. Differentiable in all tensors; works under
    torch.compile, as one opaque operator.

    Args:
        x: (B, C, H, W) float32, float16 or bfloat16, on a CUDA device, or, with
            TRITON_INTERPRET=1, on the CPU. Other layouts than channels_last are copied.
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.
        dilation: pixels from tap to tap.

    Returns:
        (B, C, H, W) of x's dtype, channels_last.

    Raises:
        ValueError: shapes or dtypes that this cannot do.
    """
    if x.ndim != 4 or weight.shape != (x.shape[1], 1, *weight.shape[2:]) or weight.ndim != 4:
        raise ValueError(
            f"expected x (B, C, H, W) and weight (C, 1, k, k), got "
            f"{tuple(x.shape)} and {tuple(weight.shape)}"
        )
    if weight.shape[2] != weight.shape[3] or not weight.shape[2] % 2:
        raise ValueError(f"expected a square kernel of odd size, got {tuple(weight.shape[2:])}")
    if bias is not None and bias.shape != x.shape[1:2]:
        raise ValueError(f"expected a bias ({x.shape[1]},), got {tuple(bias.shape)}")
    if x.numel() >= 2**31:
        raise ValueError(f"expected fewer than 2**31 numbers, got {x.numel()}: fewer images")
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"expected float32, float16 or bfloat16, got {x.dtype}: convert x")
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    return torch.ops.lkdn.depthwise(x, weight, bias, dilation)


@torch.library.custom_op("lkdn::depthwise", mutates_args=())
def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return _run(x, weight, bias, dilation)


@torch.library.custom_op("lkdn::depthwise_backward", mutates_args=())
def _depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, dilation: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias; those of weight and bias are float32."""
    grad, x = (t.contiguous(memory_format=torch.channels_last) for t in (grad, x))
    batch, channels, height, width = x.shape
    size = weight.shape[-1]
    taps = size * size
    pixels, blocks = batch * height * width, triton.cdiv(channels, CHANNELS)
    count = max(1, triton.cdiv(pixels * blocks, GRADIENT_PROGRAMS * TOGETHER))
    programs = triton.cdiv(pixels, count * TOGETHER)
    partial = x.new_empty(programs, taps + 1, channels, dtype=torch.float32)
    launch(
        _correlate,
        (programs, blocks),
        x,
        grad,
        partial,
        pixels,
        height,
        width,
        channels,
        count,
        size,
        dilation,
        triton.next_power_of_2(taps + 1),
        TOGETHER,
        CHANNELS,
    )
    sums = partial.sum(0)  # (taps + 1, C)
    gradient = _run(grad, weight, None, dilation, turned=True)
    return gradient, sums[:taps].t().contiguous().view(weight.shape), sums[taps].clone()


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any) -> None:
    """Run a kernel on x's device, products and sums fused as always until Triton 3.9."""
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[grid](x, *arguments, enable_fp_fusion=True)


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int, turned: bool = False
) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    size, pixels = weight.shape[-1], batch * height * width
    kernel = weight.detach().float().reshape(channels, -1).t().contiguous()  # (taps, C)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    launch(
        _convolve,
        (triton.cdiv(pixels, PIXELS), triton.cdiv(channels, CHANNELS)),
        x,
        kernel,
        kernel if bias is None else bias.detach().float().contiguous(),
        out,
        pixels,
        height,
        width,
        channels,
        size,
        dilation,
        bias is not None,
        turned,
        PIXELS,
        CHANNELS,
    )
    return out


@_depthwise.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_depthwise_backward.register_fake
def _(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        torch.empty_like(x, memory_format=torch.channels_last),
        weight.new_empty(weight.shape, dtype=torch.float32),
        weight.new_empty(len(weight), dtype=torch.float32),
    )


def _save(ctx, inputs, output) -> None:
    x, weight, bias, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    gradients = torch.ops.lkdn.depthwise_backward(grad, x, weight, ctx.dilation)
    bias_gradient = None if ctx.bias_dtype is None else gradients[2].to(ctx.bias_dtype)
    return gradients[0], gradients[1].to(weight.dtype), bias_gradient, None


_depthwise.register_autograd(_backward, setup_context=_save)
