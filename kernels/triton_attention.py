"""The Triton kernels of a block's end: merge its parts, attend to them, normalise, add.

The letters are those of kernels/triton_dense.py.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

import triton
import triton.language as tl

from kernels.triton_tiles import (
    SIZE,
    dense3,
    depthwise5,
    gelu,
    load,
    pair_product,
    row,
    square_product,
    store,
    tile_pixels,
)


@triton.jit(do_not_specialize=SIZE)
def merge_kernel(
    source,
    weight,
    bias,
    parts,
    merge_parts,
    merge_last,
    merge_bias,
    point,
    point_bias,
    attention,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TIMES: tl.constexpr,
    REST: tl.constexpr,
    M: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    PARTS: tl.constexpr,
    Q: tl.constexpr,
    Q_TIMES: tl.constexpr,
    Q_REST: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """The first P columns of parts (.., PARTS) = c5 of parts and of gelu(3x3 of source), with M
    columns; attention = 1x1 of that. A pixel's parts are read by the program that replaces them.
    """
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    dtype = source.dtype.element_ty
    last = dense3(source, weight, y, x, pixel, height, width, P, K, TIMES, REST, M, TH * TW)
    last = gelu(last + row(bias, M)).to(dtype)
    a = tl.zeros((TH * TW, A), tl.float32)
    b = tl.zeros((TH * TW, B if B > 0 else A), tl.float32)
    a, b = pair_product(last, a, b, merge_last, M, A, B)
    for i in tl.static_range(Q_TIMES):
        part = load(parts, pixel, here, i * Q, Q, PARTS, Q)
        a, b = pair_product(part, a, b, merge_parts + i * Q * (A + B), Q, A, B)
    if Q_REST > 0:
        part = load(parts, pixel, here, Q_TIMES * Q, PARTS - Q_TIMES * Q, PARTS, Q_REST)
        a, b = pair_product(part, a, b, merge_parts + Q_TIMES * Q * (A + B), Q_REST, A, B)
    # Not where sums begin: on Hopper Triton 3.6 copies what they begin with into their registers
    # after the fence that products wait for, so that a product may add to what was there before.
    a += row(merge_bias, A)
    if B > 0:
        b += row(merge_bias + A, B)
    a, b = a.to(dtype), b.to(dtype)
    store(parts, a, pixel, here, 0, P, PARTS, A)
    if B > 0:
        store(parts, b, pixel, here, A, P - A, PARTS, B)
    a, b = square_product(a, b, point, A, B, TH * TW)
    store(attention, a + row(point_bias, A), pixel, here, 0, P, P, A)
    if B > 0:
        store(attention, b + row(point_bias + A, B), pixel, here, A, P - A, P, B)


@triton.jit(do_not_specialize=SIZE)
def spread_kernel(
    source,
    weight,
    bias,
    out,
    height,
    width,
    P: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = depthwise 5x5 of source."""
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    total = depthwise5(source, weight, y, x, pixel, height, width, 0, P, A + B, A, 1, TH * TW)
    store(out, total + row(bias, A), pixel, here, 0, P, P, A)
    if B > 0:
        total = depthwise5(source, weight, y, x, pixel, height, width, A, P, A + B, B, 1, TH * TW)
        store(out, total + row(bias + A, B), pixel, here, A, P - A, P, B)


@triton.jit
def _gated(
    source,
    weight,
    bias,
    merged,
    y,
    x,
    pixel,
    here,
    height,
    width,
    START: tl.constexpr,
    P: tl.constexpr,
    W: tl.constexpr,
    BLOCK: tl.constexpr,
    PITCH: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Columns of merged * dilated 5x5 of source, and each pixel's largest number of them."""
    total = depthwise5(source, weight, y, x, pixel, height, width, START, P, W, BLOCK, 3, PIXELS)
    other = load(merged, pixel, here, START, P - START, PITCH, BLOCK).to(tl.float32)
    total = (total + row(bias + START, BLOCK)) * other
    return total, tl.max(tl.abs(total), axis=1)


@triton.jit
def _scaled(
    z,
    norm,
    scale,
    shift,
    features,
    pixel,
    here,
    START: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Columns of features + the norm's outputs."""
    z = z * norm * row(scale + START, BLOCK) + row(shift + START, BLOCK)
    return z + load(features, pixel, here, START, P - START, P, BLOCK).to(tl.float32)


@triton.jit
def _add(
    running,
    value,
    bias,
    pixel,
    here,
    START: tl.constexpr,
    P: tl.constexpr,
    BLOCK: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
):
    """Add to columns of running; FIRST and LAST as below."""
    if FIRST:
        value += row(bias + START, BLOCK)
    else:
        value += load(running, pixel, here, START, P - START, P, BLOCK).to(tl.float32)
    if LAST:
        value = gelu(value)
    store(running, value, pixel, here, START, P - START, P, BLOCK)


@triton.jit(do_not_specialize=SIZE)
def attend_kernel(
    source,
    weight,
    bias,
    merged,
    c6,
    c6_bias,
    scale,
    shift,
    features,
    fusion,
    fusion_bias,
    out,
    running,
    height,
    width,
    channels,
    eps,
    P: tl.constexpr,
    A: tl.constexpr,
    B: tl.constexpr,
    PITCH: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = features + norm(c6(merged * dilated 5x5 of source)); running += 1x1 of out.

    c6 is centred beforehand. Each pixel is divided by its largest number before c6, for half
    precision could not hold the product; the norm does not notice if its eps is divided too.
    FIRST: running starts at fusion_bias. LAST: it gets its GELU, and nobody needs out.
    """
    y, x, pixel, here = tile_pixels(height, width, TH, TW)
    dtype = source.dtype.element_ty
    a, large = _gated(
        source,
        weight,
        bias,
        merged,
        y,
        x,
        pixel,
        here,
        height,
        width,
        0,
        P,
        A + B,
        A,
        PITCH,
        TH * TW,
    )
    b = a
    if B > 0:
        b, other = _gated(
            source,
            weight,
            bias,
            merged,
            y,
            x,
            pixel,
            here,
            height,
            width,
            A,
            P,
            A + B,
            B,
            PITCH,
            TH * TW,
        )
        large = tl.maximum(large, other)
    part = 1 / tl.maximum(large, 1e-15)[:, None]
    a, b = square_product((a * part).to(dtype), (b * part).to(dtype), c6, A, B, TH * TW)
    a += row(c6_bias, A) * part
    square = tl.sum(a * a, axis=1)[:, None]
    if B > 0:
        b += row(c6_bias + A, B) * part
        square += tl.sum(b * b, axis=1)[:, None]
    norm = tl.rsqrt(square / channels + eps * part * part)
    a = _scaled(a, norm, scale, shift, features, pixel, here, 0, P, A).to(dtype)
    if B > 0:
        b = _scaled(b, norm, scale, shift, features, pixel, here, A, P, B).to(dtype)
    if not LAST:
        store(out, a, pixel, here, 0, P, P, A)
        if B > 0:
            store(out, b, pixel, here, A, P - A, P, B)
    a, b = square_product(a, b, fusion, A, B, TH * TW)
    _add(running, a, fusion_bias, pixel, here, 0, P, A, FIRST, LAST)
    if B > 0:
        _add(running, b, fusion_bias, pixel, here, A, P, B, FIRST, LAST)
