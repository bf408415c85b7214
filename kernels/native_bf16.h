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
#include <numeric>
#include <utility>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif
#if BF16 == 2 && !defined(EMULATE_TILES)
#include <sys/syscall.h>
#include <unistd.h>
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
    return (Words)__builtin_shufflevector(both, both, (I % 2 * 16 + I / 2)...);
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

#if BF16 == 1

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

#else

// The instructions. A tile is 16 rows of 16 words.
#if defined(EMULATE_TILES)
struct EmulatedTile {
    alignas(64) uint32_t word[16][16];
};
thread_local struct {
    bool ready;
    EmulatedTile tile[8];
} tiles;
INLINE EmulatedTile& tile(int number) {
    if (!tiles.ready) __builtin_trap();  // as AMX does
    return tiles.tile[number];
}
INLINE void configure_tiles() { tiles = {true, {}}; }
INLINE void release_tiles() { tiles = {}; }
template <int TILE>
INLINE void zero_tile() { tile(TILE) = {}; }
template <int TILE>
INLINE void load_tile(const void* from, long pitch) {
    for (int i = 0; i < 16; ++i)
        std::memcpy(tile(TILE).word[i], static_cast<const char*>(from) + i * pitch, 64);
}
template <int TILE>
INLINE void store_tile(void* to, long pitch) {
    for (int i = 0; i < 16; ++i)
        std::memcpy(static_cast<char*>(to) + i * pitch, tile(TILE).word[i], 64);
}
INLINE float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
INLINE float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000); }
inline void multiply_tiles(EmulatedTile& sum, const EmulatedTile& a, const EmulatedTile& b) {
    for (int m = 0; m < 16; ++m) {
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < 16; ++k)
            for (int n = 0; n < 16; ++n) {
                even[n] += low(a.word[m][k]) * low(b.word[k][n]);
                odd[n] += high(a.word[m][k]) * high(b.word[k][n]);
            }
        for (int n = 0; n < 16; ++n)
            sum.word[m][n] = std::bit_cast<uint32_t>(std::bit_cast<float>(sum.word[m][n]) +
                                                     (even[n] + odd[n]));
    }
}
template <int SUM, int A, int B>
INLINE void multiply_tiles() { multiply_tiles(tile(SUM), tile(A), tile(B)); }
inline bool enable_bf16() { return true; }
#else
// In assembly: GCC's intrinsics take no template's number for a tile, and say nothing of the memory
// that they read and write.
INLINE void configure_tiles() {
    struct alignas(64) {
        uint8_t palette = 1, start = 0, reserved[14] = {};
        uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
        uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shape;
    asm volatile("ldtilecfg %0" : : "m"(shape));
}
INLINE void release_tiles() { asm volatile("tilerelease"); }
template <int TILE>
INLINE void zero_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(TILE)); }
template <int TILE>
INLINE void load_tile(const void* from, long pitch) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(pitch), "i"(TILE) : "memory");
}
template <int TILE>
INLINE void store_tile(void* to, long pitch) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(pitch), "i"(TILE) : "memory");
}
template <int SUM, int A, int B>
INLINE void multiply_tiles() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}
// Linux gives a process the tiles' registers when asked, if the CPU has them.
inline bool enable_bf16() {
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

// What a thread keeps while it computes.
struct Bf16Thread {
    Bf16Thread() { configure_tiles(); }
    ~Bf16Thread() { release_tiles(); }
    Bf16Thread(const Bf16Thread&) = delete;
};

// body(0), body(1), .. as constants.
template <int COUNT, class Body>
INLINE void unrolled(Body body) {
    [&]<int... I>(std::integer_sequence<int, I...>) INLINED {
        (body(std::integral_constant<int, I>()), ...);
    }(std::make_integer_sequence<int, COUNT>());
}

// Sums over terms in rows of N columns; 16 of those rows begin at home(0), home(16), .. and, to ADD,
// have values already. terms(add) calls add(words, a, pitch, b) with rows of words `pitch` apart and
// b (words, N), words a multiple of 16.
template <int ROWS, int N, bool ADD, class Home, class Terms>
INLINE void tile_rows(Home home, Terms terms) {
    for (int n = 0; n < N; n += 16) {
        unrolled<ROWS>([&](auto r) INLINED {
            if constexpr (ADD) load_tile<r>(home(16 * r) + n, 4 * N);
            else zero_tile<r>();
        });
        terms([&](int words, const uint32_t* a, long pitch, const uint32_t (*b)[N]) INLINED {
            for (int i = 0; i < words; i += 16) {
                load_tile<6>(b[i] + n, 4 * N);
                unrolled<ROWS>([&](auto r) INLINED {
                    load_tile<3 + r>(a + i + 16 * r * pitch, 4 * pitch);
                    multiply_tiles<r, 3 + r, 6>();
                });
            }
        });
        unrolled<ROWS>([&](auto r) INLINED { store_tile<r>(home(16 * r) + n, 4 * N); });
    }
}
// .. of `rows`, or the first 48 of them.
template <int N, bool ADD, class Home, class Terms>
INLINE void sum_in_tiles(int rows, Home home, Terms terms) {
    if (rows <= 16) tile_rows<1, N, ADD>(home, terms);
    else if (rows <= 32) tile_rows<2, N, ADD>(home, terms);
    else tile_rows<3, N, ADD>(home, terms);
}

// keep(pixel, column, bias + the sum over the terms).
template <int N, class Keep, int... K>
INLINE void products(int pixels, const uint32_t* const* x, const float* bias, Keep keep,
                     const Operand<K, N>&... w) {
    alignas(64) float sums[GROUP][N];
    auto home = [&](int p) INLINED { return sums[p]; };
    sum_in_tiles<N, false>(pixels, home, [&](auto add) INLINED {
        int t = 0;
        (add(WORDS<K>, x[t++], WORDS<K>, w.value), ...);
    });
    for (int p = 0; p < pixels; ++p)
#pragma GCC unroll 16
        for (int n = 0; n < N; n += LANES) keep(p, n, load(sums[p] + n) + load(bias + n));
}

// Rows and columns of 16 x 16 words in each other's place: those of blocks of 8 x 8 words, then of
// 4 x 4 in those, ..
template <int SIDE, int... I>
INLINE void exchange(Words (&row)[16], std::integer_sequence<int, I...>) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r)
        if (!(r & SIDE)) {
            const Words a = row[r], b = row[r + SIDE];
            row[r] = __builtin_shufflevector(a, b, (I & SIDE ? 16 + I - SIDE : I)...);
            row[r + SIDE] = __builtin_shufflevector(a, b, (I & SIDE ? 16 + I : I + SIDE)...);
        }
}
template <int FROM, int TO>
INLINE void transpose(const uint32_t (*from)[FROM], uint32_t (*to)[TO], int row, int column) {
    constexpr auto lanes = std::make_integer_sequence<int, 16>();
    Words block[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(&block[i], from[row + i] + column, 64);
    exchange<8>(block, lanes);
    exchange<4>(block, lanes);
    exchange<2>(block, lanes);
    exchange<1>(block, lanes);
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) std::memcpy(to[column + i] + row, &block[i], 64);
}

// sum (K, N) += the products of rows of pairs of pixels.
template <int K, int N>
INLINE void add_outer(int pairs, const uint32_t (&x)[SPAN / 2][up16(K)],
                      const uint32_t (&g)[SPAN / 2][N], float (&sum)[K][N]) {
    constexpr int whole = K / 16 * 16;
    alignas(64) uint32_t across[up16(K)][SPAN / 2];
    alignas(64) float rest[16][N];  // the rows after the last whole tile of sum
    std::memcpy(rest, sum + whole, sizeof *sum * (K - whole));
    for (int i = 0; i < pairs; i += 16)
        for (int k = 0; k < K; k += 16) transpose(x, across, i, k);
    for (int k = 0; k < K; k += 48) {
        auto home = [&](int r) INLINED { return k + r < whole ? sum[k + r] : rest[0]; };
        sum_in_tiles<N, true>(K - k, home,
                              [&](auto add) INLINED { add(pairs, across[k], SPAN / 2, g); });
    }
    std::memcpy(sum + whole, rest, sizeof *sum * (K - whole));
}

#endif

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
