// What native_bf16.h multiplies by with AVX512-BF16; it includes this.

#pragma once

#include <numeric>

namespace {

inline bool enable_bf16() { return true; }
struct Bf16Thread {
    Bf16Thread() {}  // so that no compiler finds it unused
};

// sum += the products of rows of words, `pitch` apart, and w (COUNT, .. of w_pitch).
template <int ROWS, int COLUMNS, int COUNT>
INLINE void add_term(const uint32_t* a, long pitch, const uint32_t* w, long w_pitch,
                     __m512 (&sum)[ROWS][COLUMNS]) {
    for (int i = 0; i < COUNT; ++i, w += w_pitch) {
        __m512i value[COLUMNS];
#pragma GCC unroll 8
        for (int v = 0; v < COLUMNS; ++v) value[v] = _mm512_load_si512(w + v * LANES);
#pragma GCC unroll 24
        for (int r = 0; r < ROWS; ++r) {
            const __m512i factor = _mm512_set1_epi32(a[r * pitch + i]);
#pragma GCC unroll 8
            for (int v = 0; v < COLUMNS; ++v)
                sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)factor, (__m512bh)value[v]);
        }
    }
}

// sums (ROWS, N) += the products of a[r * ROW + i * STEP], for row r, and b[i], over `count` i.
template <int ROWS, int ROW, int STEP, int N>
INLINE void add_products(int count, const uint32_t* a, const uint32_t (*b)[N], float* sums) {
    constexpr int vectors = N / LANES, columns = vectors * ROWS <= SUMS ? vectors : 1;
    for (int n = 0; n < N; n += columns * LANES) {
        __m512 sum[ROWS][columns];
#pragma GCC unroll 24
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) sum[r][v] = load(sums + r * N + n + v * LANES);
        for (int i = 0; i < count; ++i) {
            __m512i value[columns];
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) value[v] = _mm512_load_si512(b[i] + n + v * LANES);
#pragma GCC unroll 24
            for (int r = 0; r < ROWS; ++r) {
                const __m512i factor = _mm512_set1_epi32(a[r * ROW + i * STEP]);
#pragma GCC unroll 8
                for (int v = 0; v < columns; ++v)
                    sum[r][v] = _mm512_dpbf16_ps(sum[r][v], (__m512bh)factor, (__m512bh)value[v]);
            }
        }
#pragma GCC unroll 24
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) store(sums + r * N + n + v * LANES, sum[r][v]);
    }
}

// keep(pixel, column, bias + the sum over the terms), the sums in registers. There is room for whole
// groups of rows of x.
template <int N, class Keep, int... K>
INLINE void products(int pixels, const uint32_t* const* x, const float* bias, Keep keep,
                     const Operand<K, N>&... w) {
    constexpr int columns = [] {
        int most = WIDEST;
        while (N / LANES % most) --most;
        return most;
    }();
    constexpr int rows = std::gcd(GROUP, SUMS / columns);
    for (int n = 0; n < N; n += columns * LANES)
        for (int p = 0; p < pixels; p += rows) {
            __m512 sum[rows][columns];
#pragma GCC unroll 24
            for (int r = 0; r < rows; ++r)
#pragma GCC unroll 8
                for (int v = 0; v < columns; ++v) sum[r][v] = load(bias + n + v * LANES);
            int t = 0;
            (add_term<rows, columns, (K + 1) / 2>(x[t++] + p * WORDS<K>, WORDS<K>, w.value[0] + n,
                                                  N, sum), ...);
#pragma GCC unroll 24
            for (int r = 0; r < rows; ++r)
                if (p + r < pixels)
#pragma GCC unroll 8
                    for (int v = 0; v < columns; ++v) keep(p + r, n + v * LANES, sum[r][v]);
        }
}

// sum (K, N) += the products of rows of pairs of pixels.
template <int K, int N>
INLINE void add_outer(int pairs, const uint32_t (&x)[SPAN / 2][up16(K)],
                      const uint32_t (&g)[SPAN / 2][N], float (&sum)[K][N]) {
    constexpr int most = std::max(1, SUMS / (N / LANES));
    constexpr int passes = (K + most - 1) / most, rows = (K + passes - 1) / passes;
    int k = 0;
    for (; k + rows <= K; k += rows)
        add_products<rows, 1, up16(K)>(pairs, x[0] + k, g, sum[k]);
    if constexpr (K % rows != 0) add_products<K % rows, 1, up16(K)>(pairs, x[0] + k, g, sum[k]);
}

}  // namespace
