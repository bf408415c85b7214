"""LKDN's layers as fused Triton kernels, each with its launcher.

tests/plain_layers.py has the same functions in plain torch.

Features lie as (B*H*W, P), channels last, P the channels rounded up to 16, those beyond the
network's own zero. A program computes a tile of pixels; sums are kept in float32. What a layer's
weights `w` hold, and in which shapes, kernels/triton_network.py says; every block dimension of
theirs is a power of two, padded with zeros.
"""

# mypy: disable-error-code="no-untyped-def"
# Triton compiles its functions itself; only constants have a type there.

from collections.abc import Mapping

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE_HEIGHT, TILE_WIDTH = 8, 16  # pixels of a program
SIZE = ("height", "width")  # for which no kernel is compiled anew
Weights = Mapping[str, Tensor]
Size = tuple[int, int, int]  # batch, height, width


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _pixels(height, width, TH: tl.constexpr, TW: tl.constexpr):
    """Row, column and index of a tile's pixels, and which of them are in the image."""
    i = tl.arange(0, TH * TW)
    y = tl.program_id(1) * TH + i // TW
    x = tl.program_id(0) * TW + i % TW
    return y, x, tl.program_id(2) * height * width + y * width + x, (y < height) & (x < width)


@triton.jit
def _load(source, pixel, inside, COLUMNS: tl.constexpr, PITCH: tl.constexpr, BLOCK: tl.constexpr):
    """(pixels, BLOCK) of source (.., PITCH), its first COLUMNS; zeros elsewhere."""
    k = tl.arange(0, BLOCK)
    mask = inside[:, None] & (k < COLUMNS)[None, :]
    return tl.load(source + pixel[:, None] * PITCH + k[None, :], mask=mask, other=0.0)


@triton.jit
def _store(
    out, value, pixel, inside, COLUMNS: tl.constexpr, PITCH: tl.constexpr, BLOCK: tl.constexpr
):
    n = tl.arange(0, BLOCK)
    mask = inside[:, None] & (n < COLUMNS)[None, :]
    tl.store(out + pixel[:, None] * PITCH + n[None, :], value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _matrix(weight, K: tl.constexpr, N: tl.constexpr):
    return tl.load(weight + tl.arange(0, K)[:, None] * N + tl.arange(0, N)[None, :])


@triton.jit
def _row(vector, N: tl.constexpr):
    return tl.load(vector + tl.arange(0, N))[None, :]


@triton.jit
def _dense3(
    source,
    weight,
    y,
    x,
    pixel,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    N: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A 3x3 convolution of source (.., P) with weight (9, K, N), on tensor cores, in float32."""
    total = tl.zeros((PIXELS, N), tl.float32)
    for tap in range(9):
        down, right = tap // 3 - 1, tap % 3 - 1
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        value = _load(source, pixel + down * width + right, inside, P, P, K)
        total = tl.dot(value, _matrix(weight + tap * K * N, K, N), total, input_precision="ieee")
    return total


@triton.jit
def _depthwise5(
    source,
    weight,
    y,
    x,
    pixel,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    DILATION: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """A depthwise 5x5 of source (.., P) with weight (25, K)."""
    total = tl.zeros((PIXELS, K), tl.float32)
    for tap in range(25):
        down, right = (tap // 5 - 2) * DILATION, (tap % 5 - 2) * DILATION
        inside = (y + down >= 0) & (y + down < height) & (x + right >= 0) & (x + right < width)
        value = _load(source, pixel + down * width + right, inside, P, P, K)
        total += value.to(tl.float32) * _row(weight + tap * K, K)
    return total


@triton.jit(do_not_specialize=SIZE)
def _shallow(
    image,
    weight,
    bias,
    out,
    height,
    width,
    CHANNELS: tl.constexpr,
    P: tl.constexpr,
    N: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = 3x3 of image (B, CHANNELS, H, W), weight (9*CHANNELS, N)."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    total = tl.zeros((TH * TW, N), tl.float32) + _row(bias, N)
    plane = height * width
    first = tl.program_id(2) * CHANNELS * plane
    for tap in range(9):
        row, column = y + tap // 3 - 1, x + tap % 3 - 1
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        for c in range(CHANNELS):
            at = first + c * plane + row * width + column
            value = tl.load(image + at, mask=inside, other=0.0).to(tl.float32)
            total += value[:, None] * _row(weight + (tap * CHANNELS + c) * N, N)
    _store(out, total, pixel, here, P, P, N)


@triton.jit(do_not_specialize=SIZE)
def _refine(
    source,
    dense_weight,
    dense_bias,
    distil,
    distil_bias,
    out,
    parts,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    D: tl.constexpr,
    M: tl.constexpr,
    PARTS: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = gelu(3x3 of source); D columns of parts = gelu(1x1 of source)."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    centre = _load(source, pixel, here, P, P, K)
    part = tl.dot(centre, _matrix(distil, K, M), input_precision="ieee") + _row(distil_bias, M)
    _store(parts, _gelu(part), pixel, here, D, PARTS, M)
    total = _dense3(source, dense_weight, y, x, pixel, height, width, P, K, K, TH * TW)
    _store(out, _gelu(total + _row(dense_bias, K)), pixel, here, P, P, K)


@triton.jit(do_not_specialize=SIZE)
def _merge(
    source,
    dense_weight,
    dense_bias,
    parts,
    merge_parts,
    merge_last,
    merge_bias,
    point,
    point_bias,
    merged,
    attention,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    M: tl.constexpr,
    PARTS: tl.constexpr,
    USED: tl.constexpr,
    Q: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """merged = c5 of parts and of gelu(3x3 of source); attention = 1x1 of merged."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    last = _dense3(source, dense_weight, y, x, pixel, height, width, P, K, M, TH * TW)
    last = _gelu(last + _row(dense_bias, M)).to(source.dtype.element_ty)
    total = tl.dot(last, _matrix(merge_last, M, K), input_precision="ieee")
    before = _load(parts, pixel, here, USED, PARTS, Q)
    total = tl.dot(before, _matrix(merge_parts, Q, K), total, input_precision="ieee")
    total = (total + _row(merge_bias, K)).to(source.dtype.element_ty)
    _store(merged, total, pixel, here, P, P, K)
    total = tl.dot(total, _matrix(point, K, K), input_precision="ieee") + _row(point_bias, K)
    _store(attention, total, pixel, here, P, P, K)


@triton.jit(do_not_specialize=SIZE)
def _spread(
    source,
    weight,
    bias,
    out,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = depthwise 5x5 of source."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    total = _depthwise5(source, weight, y, x, pixel, height, width, P, K, 1, TH * TW)
    _store(out, total + _row(bias, K), pixel, here, P, P, K)


@triton.jit(do_not_specialize=SIZE)
def _attend(
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
    K: tl.constexpr,
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
    y, x, pixel, here = _pixels(height, width, TH, TW)
    total = _depthwise5(source, weight, y, x, pixel, height, width, P, K, 3, TH * TW)
    gated = (total + _row(bias, K)) * _load(merged, pixel, here, P, P, K).to(tl.float32)
    large = tl.maximum(tl.max(tl.abs(gated), axis=1), 1e-15)
    gated = (gated / large[:, None]).to(source.dtype.element_ty)
    z = tl.dot(gated, _matrix(c6, K, K), input_precision="ieee")
    z += _row(c6_bias, K) / large[:, None]
    z = z * tl.rsqrt(tl.sum(z * z, axis=1) / channels + eps / (large * large))[:, None]
    z = z * _row(scale, K) + _row(shift, K)
    z += _load(features, pixel, here, P, P, K).to(tl.float32)
    z = z.to(source.dtype.element_ty)
    if not LAST:
        _store(out, z, pixel, here, P, P, K)
    total = tl.dot(z, _matrix(fusion, K, K), input_precision="ieee")
    if FIRST:
        total += _row(fusion_bias, K)
    else:
        total += _load(running, pixel, here, P, P, K).to(tl.float32)
    if LAST:
        total = _gelu(total)
    _store(running, total, pixel, here, P, P, K)


@triton.jit(do_not_specialize=SIZE)
def _smooth(
    source,
    weight,
    bias,
    shallow,
    out,
    height,
    width,
    P: tl.constexpr,
    K: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """out = 3x3 of source + shallow."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    total = _dense3(source, weight, y, x, pixel, height, width, P, K, K, TH * TW) + _row(bias, K)
    total += _load(shallow, pixel, here, P, P, K).to(tl.float32)
    _store(out, total, pixel, here, P, P, K)


@triton.jit(do_not_specialize=SIZE)
def _enlarge(
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
    N: tl.constexpr,
    TH: tl.constexpr,
    TW: tl.constexpr,
):
    """image (B, CHANNELS, SCALE*H, SCALE*W) = the 3x3 of source, shuffled into place."""
    y, x, pixel, here = _pixels(height, width, TH, TW)
    total = _dense3(source, weight, y, x, pixel, height, width, P, K, N, TH * TW) + _row(bias, N)
    n = tl.arange(0, N)
    c, row, column = n // (SCALE * SCALE), n // SCALE % SCALE, n % SCALE
    line = (tl.program_id(2) * CHANNELS + c)[None, :] * height * SCALE + y[:, None] * SCALE
    at = (line + row[None, :]) * width * SCALE + x[:, None] * SCALE + column[None, :]
    mask = here[:, None] & (n < CHANNELS * SCALE * SCALE)[None, :]
    tl.store(image + at, total.to(image.dtype.element_ty), mask=mask)


def _grid(size: Size) -> Size:
    batch, height, width = size
    return triton.cdiv(width, TILE_WIDTH), triton.cdiv(height, TILE_HEIGHT), batch


def shallow(w: Weights, image: Tensor, pitch: int, dtype: torch.dtype, size: Size) -> Tensor:
    """(B, channels, H, W) -> features (B*H*W, pitch) of `dtype`."""
    out = image.new_empty(size[0] * size[1] * size[2], pitch, dtype=dtype)
    _shallow[_grid(size)](
        image,
        w["weight"],
        w["bias"],
        out,
        *size[1:],
        image.shape[1],
        pitch,
        w["weight"].shape[1],
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out


def refine(w: Weights, source: Tensor, parts: Tensor, size: Size) -> Tensor:
    """gelu(3x3 of source); what is distilled goes, through its GELU, to `parts`, a view of its
    columns in a (B*H*W, PARTS)."""
    out = torch.empty_like(source)
    _refine[_grid(size)](
        source,
        w["dense"],
        w["dense_bias"],
        w["distil"],
        w["distil_bias"],
        out,
        parts,
        *size[1:],
        source.shape[1],
        w["dense"].shape[1],
        parts.shape[1],
        w["distil"].shape[1],
        parts.stride(0),
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out


def merge(w: Weights, source: Tensor, parts: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """The last part is distilled from source and all are merged: (merged, its attention 1x1)."""
    merged, attention = torch.empty_like(source), torch.empty_like(source)
    _merge[_grid(size)](
        source,
        w["dense"],
        w["dense_bias"],
        parts,
        w["parts"],
        w["last"],
        w["bias"],
        w["point"],
        w["point_bias"],
        merged,
        attention,
        *size[1:],
        source.shape[1],
        w["dense"].shape[1],
        w["dense"].shape[2],
        parts.stride(0),
        parts.shape[1],
        w["parts"].shape[0],
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return merged, attention


def spread(w: Weights, source: Tensor, size: Size) -> Tensor:
    """Depthwise 5x5 of source."""
    out = torch.empty_like(source)
    _spread[_grid(size)](
        source,
        w["weight"],
        w["bias"],
        out,
        *size[1:],
        source.shape[1],
        w["weight"].shape[1],
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out


def attend(
    w: Weights,
    source: Tensor,
    merged: Tensor,
    features: Tensor,
    running: Tensor,
    size: Size,
    channels: int,
    eps: float,
    first: bool,
    last: bool,
) -> Tensor:
    """features + norm(c6(merged * dilated 5x5 of source)), and `running` brought up to date."""
    out = source[:0] if last else torch.empty_like(source)
    _attend[_grid(size)](
        source,
        w["weight"],
        w["bias"],
        merged,
        w["c6"],
        w["c6_bias"],
        w["scale"],
        w["shift"],
        features,
        w["fusion"],
        w["fusion_bias"],
        out,
        running,
        *size[1:],
        channels,
        eps,
        source.shape[1],
        w["weight"].shape[1],
        first,
        last,
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out


def smooth(w: Weights, source: Tensor, features: Tensor, size: Size) -> Tensor:
    """3x3 of source, plus features."""
    out = torch.empty_like(source)
    _smooth[_grid(size)](
        source,
        w["dense"],
        w["dense_bias"],
        features,
        out,
        *size[1:],
        source.shape[1],
        w["dense"].shape[1],
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out


def enlarge(w: Weights, source: Tensor, channels: int, scale: int, size: Size) -> Tensor:
    """3x3 of source, shuffled: (B, channels, scale*H, scale*W) float32."""
    batch, height, width = size
    out = source.new_empty(batch, channels, scale * height, scale * width, dtype=torch.float32)
    _enlarge[_grid(size)](
        source,
        w["dense"],
        w["dense_bias"],
        out,
        height,
        width,
        channels,
        scale,
        source.shape[1],
        *w["dense"].shape[1:],
        TILE_HEIGHT,
        TILE_WIDTH,
    )
    return out
