// What native_bf16.h multiplies by with AMX, or with ordinary arithmetic in its place; it includes
// this.

#pragma once

#if !defined(EMULATE_TILES)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

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
            row[r] = shuffled<(I & SIDE ? 16 + I - SIDE : I)...>(a, b);
            row[r + SIDE] = shuffled<(I & SIDE ? 16 + I : I + SIDE)...>(a, b);
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

}  // namespace
