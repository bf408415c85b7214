"""Depthwise convolution with both gradients in Triton, for channels_last tensors.

In channels_last an image row is one contiguous line of width*C numbers in which a step to the
right is a shift by C. So every load here is contiguous for any C (42 is no multiple of anything
a GPU likes), and no lane idles. Sums are kept in float32 whatever the images' dtype.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 512  # numbers of a row one program computes, forward
GRADIENT_BLOCK = 128  # .. and for the weight gradient, times its 16 or 32 taps
GRADIENT_PROGRAMS = 2048  # about as many for the weight gradient as keep a large GPU busy


@triton.jit
def _convolve(
    x,
    kernel,
    bias,
    out,
    height,
    width,
    channels,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """out[row, e] = bias + sum over the taps of kernel * x shifted; one program a part of a row."""
    row = tl.program_id(0)
    length = width * channels
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y = row % height + 0 * e  # a vector: Triton 3.9's interpreter cannot mask by a scalar
    inside = e < length
    channel = e % channels
    start = row * length
    total = tl.zeros((BLOCK,), tl.float32)
    if BIAS:
        total += tl.load(bias + channel, mask=inside, other=0.0)
    for i in tl.static_range(SIZE):
        down = (i - SIZE // 2) * DILATION
        row_inside = inside & (y + down >= 0) & (y + down < height)
        for j in tl.static_range(SIZE):
            shifted = e + (j - SIZE // 2) * DILATION * channels
            mask = row_inside & (shifted >= 0) & (shifted < length)
            value = tl.load(x + start + down * length + shifted, mask=mask, other=0.0)
            weight = tl.load(kernel + (i * SIZE + j) * channels + channel, mask=inside, other=0.0)
            total += value.to(tl.float32) * weight
    tl.store(out + start + e, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _correlate(
    x,
    grad,
    partial,
    rows,
    height,
    width,
    channels,
    ROWS: tl.constexpr,
    SIZE: tl.constexpr,
    DILATION: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """partial[program, tap, e] = sum over ROWS rows of grad * x shifted by the tap."""
    length = width * channels
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tap = tl.arange(0, TAPS)
    down = (tap // SIZE - SIZE // 2) * DILATION
    shifted = e[None, :] + ((tap % SIZE - SIZE // 2) * DILATION * channels)[:, None]
    column_inside = (e < length)[None, :] & (shifted >= 0) & (shifted < length)
    column_inside = column_inside & (tap < SIZE * SIZE)[:, None]
    total = tl.zeros((TAPS, BLOCK), tl.float32)
    for i in range(ROWS):  # a constant: Triton 3.6's interpreter counts to no other
        row = tl.program_id(0) * ROWS + i
        y = row % height
        start = row * length
        there = (e < length) & (row + 0 * e < rows)
        upstream = tl.load(grad + start + e, mask=there, other=0.0).to(tl.float32)
        row_inside = (y + down >= 0) & (y + down < height) & (row + 0 * down < rows)
        mask = column_inside & row_inside[:, None]
        value = tl.load(x + start + down[:, None] * length + shifted, mask=mask, other=0.0)
        total += value.to(tl.float32) * upstream[None, :]
    place = (tl.program_id(0) * SIZE * SIZE + tap) * length
    mask = (tap < SIZE * SIZE)[:, None] & (e < length)[None, :]
    tl.store(partial + place[:, None] + e[None, :], total, mask=mask)


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
    if x.numel() >= 2**31:
        raise ValueError(f"expected fewer than 2**31 numbers, got {x.numel()}: fewer images")
    if x.dtype == torch.float64:
        raise ValueError("expected float32, float16 or bfloat16, got float64: sums are float32")
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
    rows, blocks = batch * height, triton.cdiv(width * channels, GRADIENT_BLOCK)
    rows_a_program = max(1, triton.cdiv(rows * blocks, GRADIENT_PROGRAMS))
    programs = triton.cdiv(rows, rows_a_program)
    partial = x.new_empty(programs, taps, width, channels, dtype=torch.float32)
    launch(
        _correlate,
        (programs, blocks),
        x,
        grad,
        partial,
        rows,
        height,
        width,
        channels,
        rows_a_program,
        size,
        dilation,
        triton.next_power_of_2(taps),
        GRADIENT_BLOCK,
    )
    weight_gradient = partial.sum((0, 2)).t().contiguous().view(weight.shape)
    bias_gradient = grad.sum((0, 2, 3), dtype=torch.float32)
    return _run(grad, weight.flip(2, 3), None, dilation), weight_gradient, bias_gradient


def launch(kernel: Any, grid: tuple[int, ...], x: Tensor, *arguments: Any) -> None:
    """Run a kernel on x's device, products and sums fused as always until Triton 3.9."""
    with torch.cuda.device_of(x):  # Triton launches on the current device
        kernel[grid](x, *arguments, enable_fp_fusion=True)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    size = weight.shape[-1]
    kernel = weight.detach().float().reshape(channels, -1).t().contiguous()  # (taps, C)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    grid = (batch * height, triton.cdiv(width * channels, BLOCK))
    launch(
        _convolve,
        grid,
        x,
        kernel,
        kernel if bias is None else bias.detach().float(),
        out,
        height,
        width,
        channels,
        size,
        dilation,
        bias is not None,
        BLOCK,
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
