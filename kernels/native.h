// The network's dimensions, and layers on rows of pixels, channels last, in registers of whatever
// width this CPU has: the parts that native.cpp and native_training.cpp are built of. Pixels are a
// constant number of floats apart, a multiple of a register's. CHANNELS, BLOCKS, IMAGE (channels of
// the image) and SCALE are defined by whoever compiles.

#pragma once

#include <algorithm>
#include <iterator>
#include <type_traits>
#include <utility>

namespace {

constexpr int up16(int n) { return (n + 15) / 16 * 16; }

constexpr int C = CHANNELS, D = C / 2;    // channels, distilled channels
constexpr int PITCH = up16(C);            // floats of a pixel's features
constexpr int WIDE = up16(C + D);         // columns of a 1x1 that refines and distils at once
constexpr int OUTS = IMAGE * SCALE * SCALE, OUT = up16(OUTS);  // values of a pixel's SR

#if defined(__AVX512F__)
constexpr int LANES = 16, SUMS = 24, WIDEST = 5;  // floats of a register; registers for sums
#elif defined(__AVX__)
constexpr int LANES = 8, SUMS = 12, WIDEST = 2;
#elif defined(__aarch64__)
constexpr int LANES = 4, SUMS = 24, WIDEST = 4;
#else
constexpr int LANES = 4, SUMS = 12, WIDEST = 2;
#endif

#if defined(BF16)
constexpr int UNIT = 16;  // columns that a matrix has a multiple of
#else
constexpr int UNIT = LANES;
#endif
constexpr int HALF = (D + UNIT - 1) / UNIT * UNIT;  // floats of a pixel's last distilled part
constexpr int FIRST_PART = C / UNIT * UNIT;  // columns from here on are kept as the distilled part,
constexpr int PART = WIDE - FIRST_PART;      // so many,
constexpr int OFFSET = C - FIRST_PART;       // with the distilled channels from here on
constexpr float ZEROS[std::max({PITCH, OUT, PART})] = {};  // the bias of a product that has none

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef float Loose __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

#define INLINE inline __attribute__((always_inline))
#define INLINED __attribute__((always_inline))

INLINE Vec load(const float* at) { return *reinterpret_cast<const Loose*>(at); }
INLINE void store(float* at, Vec value) { *reinterpret_cast<Loose*>(at) = value; }
INLINE Vec broadcast(float value) { return value - Vec{}; }
// load() into a register: compilers would read memory again for each use, and reading would be what
// the arithmetic waits for.
INLINE Vec load_once(const float* at) {
    Vec value = load(at);
#if defined(__x86_64__)
    asm("" : "+v"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#endif
    return value;
}

// Have what is wanted later brought into the cache.
template <int FLOATS>
INLINE void prefetch(const float* at) {
#pragma GCC unroll 32
    for (int n = 0; n < FLOATS; n += 16) __builtin_prefetch(at + n, 0, 2);
}

// The lanes I of two registers, counted through both.
template <int... I, class Register>
INLINE Register shuffled(Register a, Register b) {
#if defined(__clang__) || __GNUC__ >= 12
    return __builtin_shufflevector(a, b, I...);
#else
    return __builtin_shuffle(a, b, decltype(a == b){I...});
#endif
}

// The sum of a register's lanes: of its two halves, theirs, and so on.
template <int... LANE>
INLINE float horizontal_sum(Vec value, std::integer_sequence<int, LANE...>) {
#pragma GCC unroll 4
    for (int half = LANES / 2; half; half /= 2) {
        if (half == 8) value += shuffled<(LANE ^ 8) % LANES...>(value, value);
        if (half == 4) value += shuffled<(LANE ^ 4) % LANES...>(value, value);
        if (half == 2) value += shuffled<(LANE ^ 2)...>(value, value);
        if (half == 1) value += shuffled<(LANE ^ 1)...>(value, value);
    }
    return value[0];
}
INLINE float horizontal_sum(Vec value) {
    return horizontal_sum(value, std::make_integer_sequence<int, LANES>());
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

// body(vectors, first) for groups of at most WIDEST vectors, as even as can be, that cover N columns.
template <int N, int FIRST = 0, class Body>
INLINE void for_column_groups(Body body) {
    constexpr int left = (N - FIRST) / LANES, groups = (left + WIDEST - 1) / WIDEST;
    if constexpr (left > 0) {
        constexpr int vectors = (left + groups - 1) / groups;
        body(std::integral_constant<int, vectors>(), FIRST);
        for_column_groups<N, FIRST + vectors * LANES>(body);
    }
}

// `count` pixels of N columns: bias + the products that `terms` adds; `keep` gets each pixel's
// vectors as (pixel, column, value). terms(first, add) calls add(K, x, pitch, weight) with x at
// pixel `first` of inputs (.., pitch) and weight (K, N).
template <int N, class Terms, class Keep>
INLINE void matrix(int count, const float* bias, Terms terms, Keep keep) {
    for_column_groups<N>([&](auto vectors, int n) INLINED {
        constexpr int columns = decltype(vectors)::value;
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
    });
}

// For `keep`: writes a row of pixels.
template <int WIDTH>
INLINE auto into(float* row) {
    return [=](int i, int n, Vec value) INLINED { store(row + i * WIDTH + n, value); };
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
                    const Vec value = load_once(at + q * WIDTH);
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

}  // namespace
