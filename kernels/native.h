// The network's dimensions, and layers on rows of pixels, channels last, in registers of whatever
// width this CPU has: the parts that native.cpp and native_training.cpp are built of. Pixels are a
// constant number of floats apart, a multiple of 16. CHANNELS, BLOCKS, IMAGE (channels of the image)
// and SCALE are defined by whoever compiles.

#pragma once

#include <algorithm>
#include <type_traits>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

constexpr int up16(int n) { return (n + 15) / 16 * 16; }

constexpr int C = CHANNELS, D = C / 2;    // channels, distilled channels
constexpr int PITCH = up16(C);            // floats of a pixel's features
constexpr int HALF = up16(D);             // .. of its last distilled part
constexpr int WIDE = up16(C + D);         // columns of a 1x1 that refines and distils at once
constexpr int FIRST_PART = C / 16 * 16;   // .. of which those from here on are kept as the part,
constexpr int PART = WIDE - FIRST_PART;   // so many,
constexpr int OFFSET = C - FIRST_PART;    // with the distilled channels from here on
constexpr int OUT = up16(IMAGE * SCALE * SCALE);
constexpr float ZEROS[std::max(PITCH, OUT)] = {};  // the bias of a 1x1 that has none

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 24, WIDEST = 5;  // floats of a register; registers for sums
#elif defined(__AVX__)
constexpr int LANES = 8, SUMS = 12, WIDEST = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, SUMS = 24, WIDEST = 4;
#else
constexpr int LANES = 4, SUMS = 12, WIDEST = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))

INLINE Vec load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
INLINE void store(float* at, Vec value) { *reinterpret_cast<Loose*>(at) = value; }
INLINE Vec broadcast(float value) { return value - Vec{}; }

// Have what is wanted later brought into the cache.
template <int FLOATS>
INLINE void prefetch(const float* at) {
#pragma GCC unroll 32
    for (int n = 0; n < FLOATS; n += 16) __builtin_prefetch(at + n, 0, 2);
}

// The sum of a register's lanes.
INLINE float horizontal_sum(Vec value) {
    float lanes[LANES];
    store(lanes, value);
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2)
#pragma GCC unroll 8
        for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
    return lanes[0];
}

// The exact GELU, x * (0.5 + erf(x / sqrt(2)) / 2). With t = sqrt(2) * x / END, the second term is
// t times a polynomial in t*t - 1, which lies in -1..1 up to x = END, where the term is taken to
// reach a half; fitted for the least largest error of the GELU, 6.6e-7.
INLINE Vec gelu(Vec x) {
    constexpr float ROOT2 = 1.41421356f, END = 5.2f;
    constexpr float FIT[] = {
        4.99881834e-01f, -2.49089450e-01f, 1.83958590e-01f, -1.46862298e-01f, 1.17322095e-01f,
        -9.04300809e-02f, 6.76099062e-02f, -4.81764339e-02f, 2.77810320e-02f, -1.28942030e-02f,
        1.05049722e-02f, -9.20517091e-03f, 3.15261888e-03f};
    Vec t = x * broadcast(ROOT2 / END);
    t = t > broadcast(ROOT2) ? broadcast(ROOT2) : t;
    t = t < broadcast(-ROOT2) ? broadcast(-ROOT2) : t;
    const Vec s = t * t - broadcast(1);
    Vec half = broadcast(FIT[12]);  // of erf, a t-th
#pragma GCC unroll 12
    for (int i = 11; i >= 0; --i) half = half * s + broadcast(FIT[i]);
    return x * (t * half + broadcast(0.5f));
}

// body(size, first, skip) for groups of `size` pixels that cover 0..count; the last may begin
// early, and its first `skip` pixels are done already.
template <int SIZE, class Body>
INLINE void for_pixel_groups(int count, Body body) {
    int i = 0;
    for (; i + SIZE <= count; i += SIZE) body(std::integral_constant<int, SIZE>(), i, 0);
    if (i < count && count >= SIZE)
        body(std::integral_constant<int, SIZE>(), count - SIZE, i - (count - SIZE));
    else
        for (; i < count; ++i) body(std::integral_constant<int, 1>(), i, 0);
}

// `count` pixels of N columns: bias + the products that `terms` adds; `keep` gets each pixel's
// vectors as (pixel, column, value). terms(first, add) calls add(K, x, pitch, weight) with x at
// pixel `first` of inputs (.., pitch) and weight (K, N).
template <int N, class Terms, class Keep>
INLINE void matrix(int count, const float* bias, Terms terms, Keep keep) {
    constexpr int vectors = N / LANES;
    constexpr int columns = [] {
        int most = WIDEST;
        while (vectors % most) --most;
        return most;
    }();
    for (int n = 0; n < N; n += columns * LANES)
        for_pixel_groups<SUMS / columns>(count, [&](auto size, int first, int skip) INLINED {
            constexpr int pixels = decltype(size)::value;
            Vec sum[pixels][columns];
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v)
#pragma GCC unroll 24
                for (int p = 0; p < pixels; ++p) sum[p][v] = load(bias + n + v * LANES);
            terms(first, [&](auto inputs, const float* x, long pitch, const float* w) INLINED {
                w += n;
                for (int k = 0; k < decltype(inputs)::value; ++k, w += N) {
                    Vec weight[columns];
#pragma GCC unroll 8
                    for (int v = 0; v < columns; ++v) weight[v] = load(w + v * LANES);
#pragma GCC unroll 24
                    for (int p = 0; p < pixels; ++p) {
                        Vec value = broadcast(x[p * pitch + k]);
#pragma GCC unroll 8
                        for (int v = 0; v < columns; ++v) sum[p][v] += value * weight[v];
                    }
                }
            });
#pragma GCC unroll 24
            for (int p = 0; p < pixels; ++p)
                if (p >= skip)
#pragma GCC unroll 8
                    for (int v = 0; v < columns; ++v) keep(first + p, n + v * LANES, sum[p][v]);
        });
}

template <int K>
constexpr std::integral_constant<int, K> inputs{};

// A depthwise SIZE x SIZE of WIDTH columns, bias included. row(i): what tap row i reads, at the
// first pixel. Every input is loaded once a row of taps.
template <int WIDTH, int SIZE, int DILATION, class Row, class Keep>
INLINE void depthwise(int count, const float* w, const float* bias, Row row, Keep keep) {
    constexpr int reach = SIZE / 2 * DILATION;
    const float* rows[SIZE];
    for (int i = 0; i < SIZE; ++i) rows[i] = row(i) - reach * WIDTH;
    for_pixel_groups<8>(count, [&](auto size, int first, int skip) INLINED {
        constexpr int pixels = decltype(size)::value;
        for (int n = 0; n < WIDTH; n += LANES) {
            Vec sum[pixels];
#pragma GCC unroll 8
            for (int p = 0; p < pixels; ++p) sum[p] = load(bias + n);
#pragma GCC unroll 5
            for (int i = 0; i < SIZE; ++i) {
                const float* at = rows[i] + first * WIDTH + n;
                asm("" : "+r"(at));  // one base for all addresses
                Vec tap[SIZE];
#pragma GCC unroll 5
                for (int j = 0; j < SIZE; ++j) tap[j] = load(w + (i * SIZE + j) * WIDTH + n);
#pragma GCC unroll 24
                for (int q = 0; q < pixels + 2 * reach; ++q) {
                    Vec value = load(at + q * WIDTH);
#pragma GCC unroll 5
                    for (int j = 0; j < SIZE; ++j) {
                        const int p = q - j * DILATION;
                        if (p >= 0 && p < pixels) sum[p] += value * tap[j];
                    }
                }
            }
#pragma GCC unroll 8
            for (int p = 0; p < pixels; ++p)
                if (p >= skip) keep(first + p, n, sum[p]);
        }
    });
}

// Numbers below 1e-38 are taken for zero while this lives.
struct Flushed {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Flushed() { _mm_setcsr(before | 0x8040); }
    ~Flushed() { _mm_setcsr(before); }
#endif
};

}  // namespace
