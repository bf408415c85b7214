// What training needs beside native.h's layers: feature maps with margins, matrices that the layers
// multiply by, and the gradients of weights as sums over pixels.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "native_gelu.h"
#include "native_matrix.h"

namespace {

// A feature map of WIDTH floats a pixel with MARGIN pixels of zeros on every side.
template <int WIDTH, int MARGIN = 0>
struct Map {
    float* at;    // first pixel within the margins
    long stride;  // floats from a row to the next
    float* row(int y) const { return at + y * stride; }
};

// The last ROWS rows of a map, which stay in the second-level cache; `zeros` stands for the rows
// above and below it.
template <int WIDTH, int MARGIN, int ROWS>
struct Ring {
    float *at, *zeros;
    long stride;
    int height;
    float* row(int y) const {
        return y < 0 || y >= height ? zeros : at + y % ROWS * stride;
    }
};

// Memory handed out piece by piece; with no memory behind it, it only counts.
struct Arena {
    float* memory;
    long used = 0;

    float* take(long floats) {
        float* at = memory + used;
        used += (floats + 15) / 16 * 16;
        return at;
    }
    template <int WIDTH, int MARGIN>
    void take(Map<WIDTH, MARGIN>& map, int height, int width) {
        map.stride = long(width + 2 * MARGIN) * WIDTH;
        map.at = take((height + 2 * MARGIN) * map.stride) + MARGIN * (map.stride + WIDTH);
    }
    template <int WIDTH, int MARGIN, int ROWS>
    void take(Ring<WIDTH, MARGIN, ROWS>& ring, int height, int width) {
        ring.stride = long(width + 2 * MARGIN) * WIDTH;
        ring.height = height;
        ring.at = take(ROWS * ring.stride) + MARGIN * WIDTH;
        ring.zeros = take(ring.stride) + MARGIN * WIDTH;
    }
};

// sum (ROWS, N) += x (count, ROWS)^T times g (count, N) in float32, the sums in registers.
// x_next: from x to what a later call will read, to be brought into the cache meanwhile.
template <int ROWS, int N, bool AHEAD = false>
INLINE void outer_rows(int count, const float* x, long x_pitch, const float* g, long g_pitch,
                       float* sum, long x_next = 0) {
    for_column_groups<N>([&](auto vectors, int n) INLINED {
        constexpr int columns = decltype(vectors)::value;
        Vec sums[ROWS][columns];
#pragma GCC unroll 24
        for (int k = 0; k < ROWS; ++k)
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) sums[k][v] = load(sum + k * N + n + v * LANES);
        for (int p = 0; p < count; ++p) {
            if (AHEAD && n == 0) prefetch<PITCH>(x + p * x_pitch + x_next);
            Vec value[columns];
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) value[v] = load(g + p * g_pitch + n + v * LANES);
#pragma GCC unroll 24
            for (int k = 0; k < ROWS; ++k) {
                const Vec factor = broadcast(x[p * x_pitch + k]);
#pragma GCC unroll 8
                for (int v = 0; v < columns; ++v) sums[k][v] += factor * value[v];
            }
        }
#pragma GCC unroll 24
        for (int k = 0; k < ROWS; ++k)
#pragma GCC unroll 8
            for (int v = 0; v < columns; ++v) store(sum + k * N + n + v * LANES, sums[k][v]);
    });
}

#if !defined(BF16)  // else native_bf16.h has it

// sum (K, N) += x (count, K)^T times g (count, N): the gradient of a matrix.
template <int K, int N>
INLINE void outer(int count, const float* x, long x_pitch, const float* g, long g_pitch,
                  float (&sum)[K][N], long x_next = 0) {
    constexpr int most = SUMS / std::min(WIDEST, N / LANES);
    constexpr int passes = (K + most - 1) / most, rows = (K + passes - 1) / passes;
    outer_rows<rows, N, true>(count, x, x_pitch, g, g_pitch, sum[0], x_next);
    int k = rows;
    for (; k + rows <= K; k += rows) outer_rows<rows, N>(count, x + k, x_pitch, g, g_pitch, sum[k]);
    if constexpr (K % rows != 0) outer_rows<K % rows, N>(count, x + k, x_pitch, g, g_pitch, sum[k]);
}

#endif

// sum (N) += the sum of g (count, N) over pixels: the gradient of a bias.
template <int N>
INLINE void sum_pixels(int count, const float* g, float* sum) {
    for (int n = 0; n < N; n += LANES) {
        Vec sums[4] = {load(sum + n)};
        int p = 0;
        for (; p + 4 <= count; p += 4)
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) sums[i] += load(g + (p + i) * N + n);
        for (; p < count; ++p) sums[0] += load(g + p * N + n);
        store(sum + n, (sums[0] + sums[1]) + (sums[2] + sums[3]));
    }
}

// The gradient of a depthwise convolution's taps: sum (SIZE*SIZE, WIDTH) += inputs times g (count,
// WIDTH). row(i): as for depthwise(). ROWS rows of taps at a time have their sums in registers.
template <int WIDTH, int SIZE, int DILATION, int ROWS, class Row>
INLINE void depthwise_rows(int count, int i, Row row, const float* g, float* sum) {
    constexpr int reach = SIZE / 2 * DILATION, pixels = SUMS / 3;
    for (int n = 0; n < WIDTH; n += LANES) {
        Vec sums[ROWS][SIZE];
        const float* rows[ROWS];
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r) {
            rows[r] = row(i + r) - reach * WIDTH + n;
#pragma GCC unroll 5
            for (int j = 0; j < SIZE; ++j) sums[r][j] = load(sum + ((i + r) * SIZE + j) * WIDTH + n);
        }
        int p = 0;
        for (; p + pixels <= count; p += pixels) {
            Vec value[pixels];
#pragma GCC unroll 8
            for (int q = 0; q < pixels; ++q) value[q] = load(g + (p + q) * WIDTH + n);
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; ++r) {
                const float* at = rows[r] + p * WIDTH;
                asm("" : "+r"(at));  // one base for all addresses
#pragma GCC unroll 24
                for (int q = 0; q < pixels + 2 * reach; ++q) {
                    const Vec input = load_once(at + q * WIDTH);
#pragma GCC unroll 5
                    for (int j = 0; j < SIZE; ++j) {
                        const int own = q - j * DILATION;
                        if (own >= 0 && own < pixels) sums[r][j] += input * value[own];
                    }
                }
            }
        }
        for (; p < count; ++p) {
            const Vec value = load(g + p * WIDTH + n);
#pragma GCC unroll 5
            for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 5
                for (int j = 0; j < SIZE; ++j)
                    sums[r][j] += value * load(rows[r] + (p + j * DILATION) * WIDTH);
        }
#pragma GCC unroll 5
        for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 5
            for (int j = 0; j < SIZE; ++j) store(sum + ((i + r) * SIZE + j) * WIDTH + n, sums[r][j]);
    }
}

template <int WIDTH, int SIZE, int DILATION, class Row>
INLINE void depthwise_gradient(int count, Row row, const float* g, float (&sum)[SIZE * SIZE][WIDTH],
                               float* bias) {
    constexpr int together = std::min(3, SUMS / SIZE);
    int i = 0;
    for (; i + together <= SIZE; i += together)
        depthwise_rows<WIDTH, SIZE, DILATION, together>(count, i, row, g, sum[0]);
    if constexpr (SIZE % together != 0)
        depthwise_rows<WIDTH, SIZE, DILATION, SIZE % together>(count, i, row, g, sum[0]);
    sum_pixels<WIDTH>(count, g, bias);
}

// Do stage(row) for every row of every stage, a row of a stage `lag` rows after the same row of the
// first: what a stage reads of an earlier one is still in the cache.
template <class Stage>
struct Lagged {
    int lag;
    Stage stage;
};
template <class Stage>
Lagged(int, Stage) -> Lagged<Stage>;

template <class... Stages>
INLINE void pipeline(int height, Lagged<Stages>... stages) {
    int longest = 0;
    ((longest = std::max(longest, stages.lag)), ...);
    for (int y = 0; y < height + longest; ++y)
        ((y >= stages.lag && y - stages.lag < height ? stages.stage(y - stages.lag) : void()), ...);
}

}  // namespace
