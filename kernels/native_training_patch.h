// One patch: what a thread keeps of it, and the steps there and back.

#pragma once

#include "native_training.h"
#include "native_training_weights.h"

namespace {

enum Loss { L1, L2, PSNR };  // as kernels/native_training.py numbers them

// What a block keeps for the way back. Writing and reading it takes as long as some of the
// arithmetic, so of a GELU only what it is applied to is kept, and not even that behind a 3x3
// depthwise convolution, which is computed again.
struct Kept {
    Map<PITCH> features;  // its input
    Map<PITCH, 1> up[3];
    Map<PART> part[3];
    Map<HALF, 1> last;
    Map<PITCH> merged;
    Map<PITCH, 2> point;
    Map<PITCH, 6> spread;
    Map<PITCH> attention, normal;
    Map<1> factor;  // by which the norm multiplies
};

// A thread's memory: one patch there and back.
struct Memory {
    Map<1, 1> lr[IMAGE];
    Kept kept[BLOCKS];
    Map<PITCH> features;  // the last block's output
    Map<PITCH> running;
    Map<PITCH, 1> smooth, total;
    Map<OUT, 1> error;  // SR - HR, then its gradient
    // Gradients, g_x that of x.
    Map<PITCH, 1> g_total;
    Map<PITCH> g_running, g_features;
    Ring<PITCH, 0, 9> g_merged;
    Ring<PITCH, 6, 13> g_attention;
    Ring<PITCH, 2, 5> g_spread;
    Ring<PART, 0, 5> g_part[3];
    Ring<HALF, 1, 3> g_part4;
    Ring<PITCH, 1, 3> g_refined[3];
    float* rows[8];  // of WIDE floats a pixel

    Memory(Arena& arena, int height, int width) {
        auto take = [&](auto&... maps) { (arena.take(maps, height, width), ...); };
        for (auto& map : lr) take(map);
        for (Kept& k : kept) {
            for (int i = 0; i < 3; ++i) take(k.up[i], k.part[i]);
            take(k.features, k.last, k.merged, k.point, k.spread, k.attention, k.normal,
                 k.factor);
        }
        take(features, running, smooth, total, error);
        for (int i = 0; i < 3; ++i) take(g_refined[i], g_part[i]);
        take(g_total, g_running, g_features, g_merged, g_part4, g_attention, g_spread);
        for (float*& row : rows) row = arena.take(long(width) * WIDE);
    }
};

struct Patch {
    const unsigned char *lr, *hr;  // (height, width, IMAGE), (SCALE*height, SCALE*width, IMAGE)
    int height, width;
};

// As into(), but for each value's gelu; and its slope.
template <int WIDTH>
INLINE auto into_gelu(float* row) {
    return [=](int i, int n, Vec value) INLINED { store(row + i * WIDTH + n, gelu(value)); };
}
template <int WIDTH>
INLINE auto into_gelu(float* row, float* slope) {
    return [=](int i, int n, Vec value) INLINED {
        const Gelu both = gelu_and_slope(value);
        store(row + i * WIDTH + n, both.value);
        store(slope + i * WIDTH + n, both.slope);
    };
}

INLINE void activate(long count, const float* x, float* value) {
#pragma GCC unroll 4
    for (long i = 0; i < count; i += LANES) store(value + i, gelu(load(x + i)));
}
// .. and its slope; x of the next row is brought into the cache meanwhile.
INLINE void activate(long count, const float* x, float* value, float* slope) {
    for (long i = 0; i < count; i += LANES) {
        if (i % 16 == 0) prefetch<16>(x + i + count);
        const Gelu both = gelu_and_slope(load(x + i));
        store(value + i, both.value);
        store(slope + i, both.slope);
    }
}

struct Task {
    const Weights& w;
    const Operands& o;
    Memory& m;
    Patch patch;

    int height() const { return patch.height; }
    int width() const { return patch.width; }

    // Have row y of each map brought into the second-level cache, a stage before the one that is the
    // first to read them on the way back. A row earlier is too early: they would be gone again.
    template <int... WIDTH, int... MARGIN>
    INLINE void prefetch_rows(int y, const Map<WIDTH, MARGIN>&... maps) {
        auto one = [&](const float* row, long floats) INLINED {
            for (long i = 0; i < floats; i += 16) prefetch<16>(row + i);
        };
        if (y >= 0 && y < height()) (one(maps.row(y), maps.stride), ...);
    }

    // A 3x3 over all channels of row y of a map.
    template <int WIDTH, int K, int N, class Keep>
    INLINE void taps(const Map<WIDTH, 1>& map, int y, const float* bias,
                     const Operand<K, N> (&by)[9], Keep keep) {
        const float *a = map.row(y - 1) - WIDTH, *b = map.row(y) - WIDTH,
                    *c = map.row(y + 1) - WIDTH;
        multiply(width(), bias, keep, term(a, WIDTH, by[0]), term(a + WIDTH, WIDTH, by[1]),
                 term(a + 2 * WIDTH, WIDTH, by[2]), term(b, WIDTH, by[3]),
                 term(b + WIDTH, WIDTH, by[4]), term(b + 2 * WIDTH, WIDTH, by[5]),
                 term(c, WIDTH, by[6]), term(c + WIDTH, WIDTH, by[7]),
                 term(c + 2 * WIDTH, WIDTH, by[8]));
    }

    void read();
    void forward(int block);
    void normalise(const Block& b, const float* z, float* normal, float* factors,
                   const float* features, float* out);
    void enlarge();
    double loss(Loss kind, float share);
    void enlarge_back(Weights& g);
    void backward(int block, Block& g);
    void normalise_back(const Block& b, Block& g, const float* out, const float* normal,
                        const float* factors, float* z);
    void read_back(Weights& g);
    double run(Loss kind, float share, Weights& g);
};

}  // namespace
