"""The Triton kernels around a dense 3x3: a program computes a tile of TH x TW pixels.

P is the pitch of the features, A and B the blocks of their columns, N the block of a 3x3's; K, as
often as TIMES says, and REST are those of what it sums. kernels/triton_weights.py says what the
weights hold, kernels/triton_layers.py launches.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

import triton
import triton.language as tl

from kernels.triton_tiles import SIZE, dense3, gelu, load, row, store, tile_pixels


@triton.jit
def _shallow_columns(
    image,
    weight,
    bias,
    y,
    x,
    height,
    width,
    START: tl.constexpr,
    CHANNELS: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    PIXELS: tl.constexpr,
):
    total = tl.zeros((PIXELS, BLOCK), tl.float32) + row(bias + START, BLOCK)
    plane = height * width
    first = tl.program_id(2) * CHANNELS * plane
    for tap in tl.static_range(9):
        down, right = y + tap // 3 - 1, x + tap % 3 - 1
        inside = (down >= 0) & (down < height) & (right >= 0) & (right < width)
        for c in tl.static_range(CHANNELS):
            at = first + c * plane + down * width + right
            value = tl.load(image + at, mask=inside, other=0.0)
            total += value[:, None] * row(weight + (tap * CHANNELS + c) * W + START, BLOCK)
    return total


@triton.jit(do_not_specialize=SIZE)
def shallow_kernel(
    image,
    weight,
    bias,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = 3x3 of image (B, CHANNELS, H, W) float32, weight (9*CHANNELS, A + B)."""
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    total = _shallow_columns(
        image, weight, bias, y, x, height, width, 0, CHANNELS, A + B, A, TH * TW
    )
    store(out, total, pixel, here, 0, P, P, A)
    if B > 0:
        total = _shallow_columns(
            image, weight, bias, y, x, height, width, A, CHANNELS, A + B, B, TH * TW
        )
        store(out, total, pixel, here, A, P - A, P, B)


@triton.jit(do_not_specialize=SIZE)
def refine_kernel(
    source,
    weight,
    bias,
    out,
    parts,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TIMES: tl.constexpr,
    REST: tl.constexpr,
    N: tl.constexpr,
    START: tl.constexpr,
    COUNT: tl.constexpr,
    PARTS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """gelu(3x3 of source): the first P columns to out, COUNT from START to parts (.., PARTS)."""
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    total = dense3(source, weight, y, x, pixel, height, width, P, K, TIMES, REST, N, TH * TW)
    total = gelu(total + row(bias, N)).to(source.dtype.element_ty)
    store(out, total, pixel, here, 0, P, P, N)
    n = tl.arange(0, N) - START
    mask = here[:, None] & ((n >= 0) & (n < COUNT))[None, :]
    tl.store(parts + pixel[:, None] * PARTS + n[None, :], total, mask=mask)


@triton.jit(do_not_specialize=SIZE)
def smooth_kernel(
    source,
    weight,
    bias,
    shallow,
    out,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TIMES: tl.constexpr,
    REST: tl.constexpr,
    N: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = 3x3 of source + shallow."""
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    total = dense3(source, weight, y, x, pixel, height, width, P, K, TIMES, REST, N, TH * TW)
    total += row(bias, N) + load(shallow, pixel, here, 0, P, P, N).to(tl.float32)
    store(out, total, pixel, here, 0, P, P, N)


@triton.jit(do_not_specialize=SIZE)
def enlarge_kernel(
    source,
    weight,
    bias,
    image,
    height,
    width,
    CHANNELS: tl.constexpr,
    SCALE: tl.constexpr,
    P: tl.constexpr,
    K: tl.constexpr,
    TIMES: tl.constexpr,
    REST: tl.constexpr,
    N: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """image (B, CHANNELS, SCALE*H, SCALE*W) float32 = the 3x3 of source, shuffled into place."""
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    total = dense3(source, weight, y, x, pixel, height, width, P, K, TIMES, REST, N, TH * TW)
    total += row(bias, N)
    n = tl.arange(0, N)
    c, down, right = n // (SCALE * SCALE), n // SCALE % SCALE, n % SCALE
    line = (tl.program_id(2) * CHANNELS + c)[None, :] * height * SCALE + y[:, None] * SCALE
    at = (line + down[None, :]) * width * SCALE + x[:, None] * SCALE + right[None, :]
    mask = here[:, None] & (n < CHANNELS * SCALE * SCALE)[None, :]
    tl.store(image + at, total, mask=mask)
