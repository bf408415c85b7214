"""What the Triton kernels have in common: a tile of pixels, its loads and stores, convolutions.

Features lie as (B*H*W, P), channels last, P the channels rounded up to 16. What a block has beyond
a power of two is a second, smaller block beside it: 48 columns are 32 and 16, none is computed for
nothing. Sums are float32.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

import torch
import triton
import triton.language as tl
from torch import Tensor

SIZE = ("height", "width")  # arguments for which no kernel is compiled anew


@triton.jit
def gelu(x):
    """max(x, 0) - |x| 2**p(|x|): the error of the exact GELU is 6.4e-7 at most, for one
    exponential where erf takes thirty instructions."""
    a = tl.abs(x)
    p = -0.00047329 * a + 0.00708446
    p = p * a - 0.05182717
    p = p * a - 0.45999265
    p = p * a - 1.15078771
    p = p * a - 1.00003767
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def tile_pixels(height, width, TH: tl.constexpr, TW: tl.constexpr):
    """Row, column and index of a tile's pixels, and which of them are in the image."""
    i = tl.arange(0, TH * TW)
    y = tl.program_id(1) * TH + i // TW
    x = tl.program_id(0) * TW + i % TW
    return y, x, tl.program_id(2) * height * width + y * width + x, (y < height) & (x < width)


@triton.jit
def load(
    source,
    pixel,
    inside,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """(pixels, BLOCK): COUNT columns of source (.., PITCH) from START on, zeros behind them."""
    k = tl.arange(0, BLOCK)
    mask = inside[:, None] & (k < COUNT)[None, :]
    return tl.load(source + pixel[:, None] * PITCH + (START + k)[None, :], mask=mask, other=0.0)


@triton.jit
def store(
    out,
    value,
    pixel,
    inside,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    PITCH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first COUNT columns of value (pixels, BLOCK) to those of out (.., PITCH) from START."""
    n = tl.arange(0, BLOCK)
    mask = inside[:, None] & (n < COUNT)[None, :]
    at = out + pixel[:, None] * PITCH + (START + n)[None, :]
    tl.store(at, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def matrix(weight, K: tl.constexpr, N: tl.constexpr, PITCH: tl.constexpr):
    """K rows and N columns of a weight (.., PITCH)."""
    return tl.load(weight + tl.arange(0, K)[:, None] * PITCH + tl.arange(0, N)[None, :])


@triton.jit
def row(vector, N: tl.constexpr):
    """A vector (N,) as (1, N), to be added to or multiplied with every pixel."""
    return tl.load(vector + tl.arange(0, N))[None, :]


@triton.jit
def product(a, b, total):
    """total + a @ b on tensor cores; float32 as three products of TF32, near to its own order."""
    return tl.dot(a, b, total, input_precision="tf32x3")


@triton.jit
def pair_product(x, first, second, weight, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr):
    """first (pixels, A) and second (pixels, B) plus the columns of x @ weight (K, A + B).

    B may be 0; then second is returned as it came. Triton 3.6's assembler gave the narrow product
    the weights of another place where it came after the wide one (ptxas 12.8, Hopper, merge_kernel
    in halves); tests/test_triton_compile.py reads where each product's weights are.
    """
    if B > 0:
        second = product(x, matrix(weight + A, K, B, A + B), second)
    first = product(x, matrix(weight, K, A, A + B), first)
    return first, second


@triton.jit
def square_product(a, b, weight, A: tl.constexpr, B: tl.constexpr, PIXELS: tl.constexpr):
    """The columns of a (pixels, A) beside b (pixels, B) @ weight (A + B, A + B), as such a pair."""
    first = tl.zeros((PIXELS, A), tl.float32)
    second = tl.zeros((PIXELS, B if B > 0 else A), tl.float32)
    first, second = pair_product(a, first, second, weight, A, A, B)
    if B > 0:
        first, second = pair_product(b, first, second, weight + A * (A + B), B, A, B)
    return first, second


@triton.jit
def _taps(
    source, x, pixel, row_inside, width, START: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr
):
    """(pixels, BLOCK): the numbers of the pixel to the left, the pixel and the one to the right,
    which lie side by side, from START on; zeros outside of the image and behind the three."""
    k = START + tl.arange(0, BLOCK)
    column = x[:, None] * P + k[None, :] - P
    mask = row_inside[:, None] & (column >= 0) & (column < width * P) & (k < 3 * P)[None, :]
    return tl.load(source + pixel[:, None] * P + k[None, :] - P, mask=mask, other=0.0)


@triton.jit
def dense3(
    source,
    weight,
    y,
    x,
    pixel,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TIMES: tl.constexpr,
    REST: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A 3x3 convolution of source (.., P) with weight (3, K*TIMES + REST, N).

    The three taps of a row are one product over 3P numbers, TIMES blocks of K and one of REST.
    """
    total = tl.zeros((PIXELS, N), tl.float32)
    for tap in range(3):
        down = tap - 1
        inside = (y + down >= 0) & (y + down < height) & (x < width)
        near = pixel + down * width
        w = weight + tap * (K * TIMES + REST) * N
        for i in tl.static_range(TIMES):
            value = _taps(source, x, near, inside, width, i * K, P, K)
            total = product(value, matrix(w + i * K * N, K, N, N), total)
        if REST > 0:
            value = _taps(source, x, near, inside, width, TIMES * K, P, REST)
            total = product(value, matrix(w + TIMES * K * N, REST, N, N), total)
    return total


@triton.jit
def depthwise5(
    source,
    weight,
    y,
    x,
    pixel,
    height,
    width,
    START: tl.constexpr,
    P: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    DILATION: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A depthwise 5x5 of BLOCK columns of source (.., P) from START on, with weight (25, W)."""
    total = tl.zeros((PIXELS, BLOCK), tl.float32)
    for i in range(5):
        down = (i - 2) * DILATION
        row_inside = (y + down >= 0) & (y + down < height)
        for j in tl.static_range(5):
            right = (j - 2) * DILATION
            inside = row_inside & (x + right >= 0) & (x + right < width)
            near = pixel + down * width + right
            value = load(source, near, inside, START, P - START, P, BLOCK)
            total += value.to(tl.float32) * row(weight + (i * 5 + j) * W + START, BLOCK)
    return total


@triton.jit
def _multiply_kernel(
    a,
    b,
    c,
    out,
    PITCH: tl.constexpr,
    M: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    LAST: tl.constexpr,
):
    i, k = tl.arange(0, M), tl.arange(0, K)
    rows = tl.load(a + i[:, None] * K + k[None, :])
    total = product(rows, matrix(b, K, N, PITCH), tl.zeros((M, N), tl.float32))
    total = total.to(a.dtype.element_ty)
    total = product(total, matrix(c, N, LAST, PITCH), tl.zeros((M, LAST), tl.float32))
    tl.store(out + i[:, None] * LAST + tl.arange(0, LAST)[None, :], total)


def multiply(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """(M, K) @ (K, N), rounded to their dtype, @ (N, L) as two `product`s of one program, float32;
    to be compared with torch's.

    All sizes are powers of two from 16 up; b and c may be some columns of matrices equally wide.
    """
    (rows, inner), (columns, last) = a.shape, c.shape
    out = torch.empty(rows, last, device=a.device)
    half = a.dtype != torch.float32
    _multiply_kernel[(1,)](
        *(a, b, c, out, b.stride(0), rows, inner, columns, last),
        num_warps=8 if half else 4,
        num_stages=1,
    )
    return out
