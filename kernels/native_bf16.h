// Matrices in bfloat16, in place of native_matrix.h's: what is multiplied, features, weights and
// gradients, is rounded to 8 significant bits, and products are summed in float32. BF16 = 1: by
// AVX512-BF16. BF16 = 2: by AMX, in tiles of 16 rows of 64 bytes; EMULATE_TILES puts ordinary
// arithmetic in the place of AMX's instructions, so that any CPU can test the rest.
//
// Numbers are multiplied in pairs, a 32-bit word each: of neighbouring inputs of a pixel, or of an
// input of two neighbouring pixels where it is pixels that are summed over.

#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#include "native_matrix.h"

namespace {

constexpr int GROUP = 48;  // pixels that are multiplied by a matrix at a time
constexpr int SPAN = 64;   // pixels that are summed over at a time,
constexpr int PAIRS = BF16 == 1 ? 1 : 16;  // in a multiple of so many pairs, the last ones zeros
template <int K>
constexpr int WORDS = (K + 31) / 32 * 16;  // of K inputs, with zeros after them
template <int N>
constexpr float NOTHING[N] = {};

typedef uint32_t Words __attribute__((vector_size(64)));
typedef short Halves __attribute__((vector_size(64)));

// The nearest bfloat16, of two the even one.
INLINE uint32_t nearest(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return value != value ? bits >> 16 | 0x40 : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// 16 pairs, of the first COUNT of x[0], x[1], .. (neighbours), or of a[i] and b[i]. What lies behind
// those is not read: it may be NaN, or not ours.
#if defined(__AVX512BF16__)
template <int COUNT>
INLINE __m512 some(const float* x) {
    if constexpr (COUNT <= 0) return _mm512_setzero_ps();
    else if constexpr (COUNT < 16) return _mm512_maskz_loadu_ps((1 << COUNT) - 1, x);
    else return _mm512_loadu_ps(x);
}
template <int COUNT>
INLINE void pair_neighbours(const float* x, uint32_t* to) {
    const auto both = _mm512_cvtne2ps_pbh(some<COUNT - 16>(x + 16), some<COUNT>(x));
    _mm512_store_si512(to, (__m512i)both);
}
template <int... I>
INLINE Words interleave(Halves both, std::integer_sequence<int, I...>) {
    return (Words)shuffled<(I % 2 * 16 + I / 2)...>(both, both);
}
template <int COUNT>
INLINE void pair(const float* a, const float* b, uint32_t* to) {
    const auto both = (Halves)_mm512_cvtne2ps_pbh(some<COUNT>(b), some<COUNT>(a));
    _mm512_store_si512(to, (__m512i)interleave(both, std::make_integer_sequence<int, 32>()));
}
#else
template <int COUNT>
INLINE void pair_neighbours(const float* x, uint32_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = 0;
    for (int k = 0; k < std::min(COUNT, 32); ++k) to[k / 2] |= nearest(x[k]) << k % 2 * 16;
}
template <int COUNT>
INLINE void pair(const float* a, const float* b, uint32_t* to) {
    for (int i = 0; i < 16; ++i) to[i] = i < COUNT ? nearest(a[i]) | nearest(b[i]) << 16 : 0;
}
#endif

// A matrix (inputs K, outputs N) in pairs of inputs, with zeros after the last.
template <int K, int N>
struct Operand {
    alignas(64) uint32_t value[WORDS<K>][N];

    void set(const float (&from)[K][N]) {
        std::memset(value, 0, sizeof value);
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < N; ++n) put(k, n, from[k][n]);
    }
    // Inputs and outputs in each other's place: from (N or fewer, at least K) columns `first` on.
    template <int ROWS, int COLUMNS>
    void set_transposed(const float (&from)[ROWS][COLUMNS], int first_output = 0) {
        std::memset(value, 0, sizeof value);
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < ROWS; ++n) put(k, first_output + n, from[n][k]);
    }
    void put(int k, int n, float weight) { value[k / 2][n] |= nearest(weight) << k % 2 * 16; }
};

// The terms' inputs in pairs of neighbours, one term after the other. Where a term reads what the
// one before it did, but for a pixel, as the taps of a convolution do, their pairs are the same.
struct Inputs {
    uint32_t *free, *latest = nullptr;
    const float* next = nullptr;  // the latest term's second pixel
    long pitch = 0;
    int inputs = 0;

    template <int K>
    INLINE const uint32_t* take(const float* x, long its_pitch, int pixels) {
        const bool shifted = x == next && its_pitch == pitch && K == inputs;
        uint32_t* at = shifted ? latest + WORDS<K> : free;
        for (int p = shifted ? pixels - 1 : 0; p < pixels; ++p)
            [&]<int... I>(std::integer_sequence<int, I...>) INLINED {
                (pair_neighbours<K - 32 * I>(x + p * its_pitch + 32 * I,
                                             at + p * WORDS<K> + 16 * I), ...);
            }(std::make_integer_sequence<int, WORDS<K> / 16>());
        *this = {at + GROUP * WORDS<K>, at, x + its_pitch, its_pitch, K};
        return at;
    }
};

// to[i]: pairs of pixels 2i and 2i + 1, COUNT numbers of each, with zeros after the last pixel.
template <int COUNT>
INLINE void pair_pixels(int pixels, int pairs, const float* x, long pitch,
                        uint32_t (*to)[up16(COUNT)]) {
    constexpr int whole = COUNT / 16 * 16;
    auto row = [&](int p) INLINED { return p < pixels ? x + p * pitch : NOTHING<COUNT>; };
    for (int i = 0; i < pairs; ++i) {
        const float *a = row(2 * i), *b = row(2 * i + 1);
        for (int n = 0; n < whole; n += 16) pair<16>(a + n, b + n, to[i] + n);
        if constexpr (whole < COUNT) pair<COUNT - whole>(a + whole, b + whole, to[i] + whole);
    }
}

}  // namespace

#if BF16 == 1
#include "native_avx512_bf16.h"
#else
#include "native_amx.h"
#endif

namespace {

// `count` pixels of N columns: bias + the sum of x (count, K of pitch) times w over the terms;
// `keep` gets each pixel's vectors as (pixel, column, value).
template <class Keep, int N, int... K>
INLINE void multiply(int count, const float* bias, Keep keep, Term<K, N>... terms) {
    alignas(64) uint32_t memory[GROUP * (WORDS<K> + ...)];
    for (int first = 0; first < count; first += GROUP) {
        const int pixels = std::min(GROUP, count - first);
        Inputs inputs{memory};
        const uint32_t* x[] = {
            inputs.take<K>(terms.x + first * terms.pitch, terms.pitch, pixels)...};
        products(pixels, x, bias, [&](int p, int n, Vec value) INLINED {
            keep(first + p, n, value);
        }, terms.w...);
    }
}

// sum (K, N) += x (count, K)^T times g (count, N): the gradient of a matrix. x_next: from x to what
// a later call will read, to be brought into the cache meanwhile.
template <int K, int N>
void outer(int count, const float* x, long x_pitch, const float* g, long g_pitch,
           float (&sum)[K][N], long x_next = 0) {
    alignas(64) uint32_t xs[SPAN / 2][up16(K)], gs[SPAN / 2][N];
    for (int first = 0; first < count; first += SPAN) {
        const int pixels = std::min(SPAN, count - first);
        const int pairs = (pixels + 2 * PAIRS - 1) / (2 * PAIRS) * PAIRS;
        pair_pixels<K>(pixels, pairs, x + first * x_pitch, x_pitch, xs);
        pair_pixels<N>(pixels, pairs, g + first * g_pitch, g_pitch, gs);
        if (x_next)
            for (int p = first; p < first + pixels; ++p) prefetch<K>(x + p * x_pitch + x_next);
        add_outer(pairs, xs, gs, sum);
    }
}

}  // namespace
