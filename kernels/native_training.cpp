// LKDN's loss on a batch of patches and the gradient of every plain kernel, on a CPU; compiled for
// the machine it runs on by kernels/native_training.py, which defines what native.h names.
//
// A patch is a task, and a thread takes the next one: it runs the patch forward, keeping in its own
// memory what the way back needs, and back, leaving the patch's gradients in memory of their own.
// Those are added in the order of the patches, so a step gives the same bits however many threads
// there are and whatever else the machine does.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <system_error>
#include <thread>
#include <vector>

#include "native_training.h"

namespace {

constexpr int OUTS = IMAGE * SCALE * SCALE;

enum Loss { L1, L2, PSNR };  // as kernels/native_training.py numbers them

// The plain kernels in float32, or their gradients: matrices (inputs, outputs), padded with zeros.
struct Block {
    float refine[3][C][WIDE], refine_bias[3][WIDE];
    float depthwise[3][9][PITCH], depthwise_bias[3][PITCH];
    float last[C][HALF], last_depthwise[9][HALF], last_bias[HALF];
    float merge[4][D][PITCH], merge_bias[PITCH], point[C][PITCH], point_bias[PITCH];
    float spread[25][PITCH], spread_bias[PITCH], large[25][PITCH], large_bias[PITCH];
    float c6[C][PITCH], c6_bias[PITCH], scale[PITCH], shift[PITCH];
    float fusion[C][PITCH];
};
struct Weights {
    float first[9 * IMAGE][PITCH], first_bias[PITCH];
    Block blocks[BLOCKS];
    float fusion_bias[PITCH];
    float smooth[C][PITCH], smooth_depthwise[9][PITCH], smooth_bias[PITCH];
    float enlarge[9][C][OUT], enlarge_bias[OUT];
    float eps;  // of the norms
};

// move(element of w, element of flat) for every number, flat in the order and layout of the
// network's state dict, with the first blueprint pair as one convolution.
template <class Move>
void each(Weights& w, float* flat, Move move) {
    auto vector = [&](float* inside, int count) {
        for (int i = 0; i < count; ++i) move(inside[i], *flat++);
    };
    // (outputs, inputs) to a matrix of `columns` columns whose first is `inside`.
    auto matrix = [&](float* inside, int columns, int outputs, int inputs) {
        for (int o = 0; o < outputs; ++o)
            for (int i = 0; i < inputs; ++i) move(inside[i * columns + o], *flat++);
    };
    matrix(w.first[0], PITCH, C, 9 * IMAGE);
    vector(w.first_bias, C);
    for (Block& b : w.blocks) {
        for (int i = 0; i < 3; ++i) {
            matrix(b.refine[i][0] + C, WIDE, D, C);
            vector(b.refine_bias[i] + C, D);
            matrix(b.refine[i][0], WIDE, C, C);
            matrix(b.depthwise[i][0], PITCH, C, 9);
            vector(b.depthwise_bias[i], C);
        }
        matrix(b.last[0], HALF, D, C);
        matrix(b.last_depthwise[0], HALF, D, 9);
        vector(b.last_bias, D);
        matrix(b.merge[0][0], PITCH, C, 4 * D);
        vector(b.merge_bias, C);
        matrix(b.point[0], PITCH, C, C);
        vector(b.point_bias, C);
        matrix(b.spread[0], PITCH, C, 25);
        vector(b.spread_bias, C);
        matrix(b.large[0], PITCH, C, 25);
        vector(b.large_bias, C);
        matrix(b.c6[0], PITCH, C, C);
        vector(b.c6_bias, C);
        vector(b.scale, C);
        vector(b.shift, C);
    }
    for (int o = 0; o < C; ++o)
        for (Block& b : w.blocks)
            for (int i = 0; i < C; ++i) move(b.fusion[i][o], *flat++);
    vector(w.fusion_bias, C);
    matrix(w.smooth[0], PITCH, C, C);
    matrix(w.smooth_depthwise[0], PITCH, C, 9);
    vector(w.smooth_bias, C);
    for (int o = 0; o < OUTS; ++o)
        for (int i = 0; i < C; ++i)
            for (int t = 0; t < 9; ++t) move(w.enlarge[t][i][o], *flat++);
    vector(w.enlarge_bias, OUTS);
}

// What the layers multiply by on the way there and back.
struct BlockOperands {
    Operand<C, WIDE> refine[3];
    Operand<C, HALF> last;
    Operand<D, PITCH> merge[4];
    Operand<C, PITCH> point, c6, fusion;
    Operand<C + D, PITCH> refine_back[3];
    Operand<D, PITCH> last_back;
    Operand<C, PART> merge_back[3];
    Operand<C, HALF> merge_back4;
    Operand<C, PITCH> point_back, c6_back, fusion_back;
    float depthwise_back[3][9][PITCH], last_depthwise_back[9][HALF];
    float spread_back[25][PITCH], large_back[25][PITCH];
};
struct Operands {
    BlockOperands blocks[BLOCKS];
    Operand<C, PITCH> smooth, smooth_back;
    float smooth_depthwise_back[9][PITCH];
    Operand<C, OUT> enlarge[9];
    Operand<OUTS, PITCH> enlarge_back[9];
};

template <int TAPS, int WIDTH>
void flip(float (&back)[TAPS][WIDTH], const float (&taps)[TAPS][WIDTH]) {
    for (int t = 0; t < TAPS; ++t) std::memcpy(back[t], taps[TAPS - 1 - t], sizeof back[t]);
}

// Take from each row of a matrix, or of its gradient, the mean of its outputs: what is normalised
// has no use for it.
template <int COLUMNS>
void centre(float* matrix, int rows) {
    for (float* row = matrix; row < matrix + rows * COLUMNS; row += COLUMNS) {
        const float mean = std::accumulate(row, row + C, 0.0f) / C;
        for (int n = 0; n < C; ++n) row[n] -= mean;
    }
}

void prepare(Operands& to, Weights& w) {
    std::memset(static_cast<void*>(&to), 0, sizeof to);
    for (int n = 0; n < BLOCKS; ++n) {
        BlockOperands& o = to.blocks[n];
        Block& b = w.blocks[n];
        centre<PITCH>(b.c6[0], C);
        centre<PITCH>(b.c6_bias, 1);
        for (int i = 0; i < 3; ++i) {
            o.refine[i].set(b.refine[i]);
            o.refine_back[i].set_transposed(b.refine[i]);
            o.merge_back[i].set_transposed(b.merge[i], OFFSET);
            flip(o.depthwise_back[i], b.depthwise[i]);
        }
        o.last.set(b.last);
        o.last_back.set_transposed(b.last);
        for (int i = 0; i < 4; ++i) o.merge[i].set(b.merge[i]);
        o.merge_back4.set_transposed(b.merge[3]);
        o.point.set(b.point);
        o.point_back.set_transposed(b.point);
        o.c6.set(b.c6);
        o.c6_back.set_transposed(b.c6);
        o.fusion.set(b.fusion);
        o.fusion_back.set_transposed(b.fusion);
        flip(o.last_depthwise_back, b.last_depthwise);
        flip(o.spread_back, b.spread);
        flip(o.large_back, b.large);
    }
    to.smooth.set(w.smooth);
    to.smooth_back.set_transposed(w.smooth);
    flip(to.smooth_depthwise_back, w.smooth_depthwise);
    for (int t = 0; t < 9; ++t) {
        to.enlarge[t].set(w.enlarge[t]);
        to.enlarge_back[t].set_transposed(w.enlarge[8 - t]);
    }
}

// What a block keeps for the way back. Writing and reading it takes as long as some of the
// arithmetic, so of a GELU only what it is applied to is kept.
struct Kept {
    Map<PITCH> features;  // its input
    Map<PITCH, 1> up[3];
    Map<PITCH> refined[3];
    Map<PART> part[3];
    Map<HALF, 1> last;
    Map<HALF> part4;
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
            for (int i = 0; i < 3; ++i)
                take(k.up[i], k.refined[i], k.part[i]);
            take(k.features, k.last, k.part4, k.merged, k.point, k.spread, k.attention,
                 k.normal, k.factor);
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

// As into(), and each value's gelu.
template <int WIDTH>
INLINE auto into_with_gelu(float* row, float* activated) {
    return [=](int i, int n, Vec value) INLINED {
        store(row + i * WIDTH + n, value);
        store(activated + i * WIDTH + n, gelu(value));
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
    INLINE void fetch(int y, const Map<WIDTH, MARGIN>&... maps) {
        auto one = [&](const float* row, long floats) INLINED {
            for (long i = 0; i < floats; i += 16) prefetch<16>(row + i);
        };
        if (y >= 0 && y < height()) (one(maps.row(y), maps.stride), ...);
    }

    void read() {
        for (int c = 0; c < IMAGE; ++c)
            for (int y = 0; y < height(); ++y)
                for (int x = 0; x < width(); ++x)
                    m.lr[c].row(y)[x] = patch.lr[(long(y) * width() + x) * IMAGE + c] / 255.0f;
        for (int y = 0; y < height(); ++y)
            matrix<PITCH>(width(), w.first_bias, [&](int first, auto add) INLINED {
                for (int c = 0; c < IMAGE; ++c)
                    for (int i = 0; i < 3; ++i)
                        add(inputs<3>, m.lr[c].row(y + i - 1) - 1 + first, 1,
                            w.first[(c * 3 + i) * 3]);
            }, into<PITCH>(m.kept[0].features.row(y)));
    }

    void forward(int block) {
        const Block& b = w.blocks[block];
        const BlockOperands& operands = o.blocks[block];
        Kept& k = m.kept[block];
        const Map<PITCH>& out = block + 1 < BLOCKS ? m.kept[block + 1].features : m.features;
        auto refine = [&](int i, const float* source, int y) INLINED {
            float *up = k.up[i].row(y), *part = k.part[i].row(y);
            multiply(width(), b.refine_bias[i], [=](int p, int n, Vec value) INLINED {
                if (n < PITCH) store(up + p * PITCH + n, value);
                if (n >= FIRST_PART) store(part + p * PART + n - FIRST_PART, value);
            }, term(source, PITCH, operands.refine[i]));
        };
        float* refined = m.rows[0];
        auto gather = [&](int i, int y) INLINED {
            depthwise<PITCH, 3, 1>(width(), b.depthwise[i][0], b.depthwise_bias[i],
                                   [&](int t) INLINED { return k.up[i].row(y + t - 1); },
                                   into_with_gelu<PITCH>(k.refined[i].row(y), refined));
        };
        pipeline(
            height(), Lagged{0, [&](int y) { refine(0, k.features.row(y), y); }},
            Lagged{1, [&](int y) {
                gather(0, y);
                refine(1, refined, y);
            }},
            Lagged{2, [&](int y) {
                gather(1, y);
                refine(2, refined, y);
            }},
            Lagged{3, [&](int y) {
                gather(2, y);
                multiply(width(), ZEROS, into<HALF>(k.last.row(y)),
                         term(refined, PITCH, operands.last));
            }},
            Lagged{4, [&](int y) {
                float** parts = m.rows;
                for (int i = 0; i < 3; ++i)
                    activate(long(width()) * PART, k.part[i].row(y), parts[i]);
                depthwise<HALF, 3, 1>(width(), b.last_depthwise[0], b.last_bias,
                                      [&](int t) INLINED { return k.last.row(y + t - 1); },
                                      into_with_gelu<HALF>(k.part4.row(y), parts[3]));
                multiply(width(), b.merge_bias, into<PITCH>(k.merged.row(y)),
                         term(parts[0] + OFFSET, PART, operands.merge[0]),
                         term(parts[1] + OFFSET, PART, operands.merge[1]),
                         term(parts[2] + OFFSET, PART, operands.merge[2]),
                         term(parts[3], HALF, operands.merge[3]));
                multiply(width(), b.point_bias, into<PITCH>(k.point.row(y)),
                         term(k.merged.row(y), PITCH, operands.point));
            }},
            Lagged{6, [&](int y) {
                depthwise<PITCH, 5, 1>(width(), b.spread[0], b.spread_bias,
                                       [&](int t) INLINED { return k.point.row(y + t - 2); },
                                       into<PITCH>(k.spread.row(y)));
            }},
            Lagged{12, [&](int y) {
                const float* merged = k.merged.row(y);
                float *attention = k.attention.row(y), *gated = m.rows[0], *z = m.rows[1];
                depthwise<PITCH, 5, 3>(
                    width(), b.large[0], b.large_bias,
                    [&](int t) INLINED { return k.spread.row(y + 3 * t - 6); },
                    [=](int p, int n, Vec value) INLINED {
                        store(attention + p * PITCH + n, value);
                        store(gated + p * PITCH + n, value * load(merged + p * PITCH + n));
                    });
                multiply(width(), b.c6_bias, into<PITCH>(z), term(gated, PITCH, operands.c6));
                normalise(b, z, k.normal.row(y), k.factor.row(y), k.features.row(y), out.row(y));
                float* running = m.running.row(y);
                multiply(width(), w.fusion_bias, [=, this](int p, int n, Vec value) INLINED {
                    if (block > 0)
                        value += load(running + p * PITCH + n) - load(w.fusion_bias + n);
                    store(running + p * PITCH + n, value);
                }, term(out.row(y), PITCH, operands.fusion));
            }});
    }

    // The norm of z over a pixel's channels, its scale and shift, and the block's input added. The
    // matrix before it is centred, so the mean of z is zero.
    void normalise(const Block& b, const float* z, float* normal, float* factors,
                   const float* features, float* out) {
        for (int p = 0; p < width(); ++p) {
            Vec squares = {};
            for (int n = 0; n < PITCH; n += LANES)
                squares += load(z + p * PITCH + n) * load(z + p * PITCH + n);
            factors[p] = horizontal_sum(squares);
        }
        for (int p = 0; p < width(); ++p) factors[p] = 1 / std::sqrt(factors[p] / C + w.eps);
        for (int p = 0; p < width(); ++p)
            for (int i = p * PITCH, n = 0; n < PITCH; n += LANES, i += LANES) {
                const Vec value = load(z + i) * broadcast(factors[p]);
                store(normal + i, value);
                store(out + i, value * load(b.scale + n) + load(b.shift + n) + load(features + i));
            }
    }

    // From the running sum to SR - HR.
    void enlarge() {
        pipeline(
            height(), Lagged{0, [&](int y) {
                float* fused = m.rows[0];
                activate(long(width()) * PITCH, m.running.row(y), fused);
                multiply(width(), ZEROS, into<PITCH>(m.smooth.row(y)),
                         term(fused, PITCH, o.smooth));
            }},
            Lagged{1, [&](int y) {
                const float* shallow = m.kept[0].features.row(y);
                float* total = m.total.row(y);
                depthwise<PITCH, 3, 1>(width(), w.smooth_depthwise[0], w.smooth_bias,
                                       [&](int t) INLINED { return m.smooth.row(y + t - 1); },
                                       [=](int p, int n, Vec value) INLINED {
                                           value += load(shallow + p * PITCH + n);
                                           store(total + p * PITCH + n, value);
                                       });
            }},
            Lagged{2, [&](int y) {
                float* error = m.error.row(y);
                taps(m.total, y, w.enlarge_bias, o.enlarge, into<OUT>(error));
                for (int c = 0; c < IMAGE; ++c)
                    for (int r = 0; r < SCALE; ++r) {
                        const long line = (long(y) * SCALE + r) * SCALE * width();
                        for (int i = 0; i < SCALE * width(); ++i)
                            error[i / SCALE * OUT + (c * SCALE + r) * SCALE + i % SCALE] -=
                                patch.hr[(line + i) * IMAGE + c] / 255.0f;
                    }
            }});
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

    // The loss, a sum over the patch's values of which each counts `share`; the error becomes its
    // gradient.
    double loss(Loss kind, float share) {
        const long values = long(width()) * OUT;
        double sum = 0;
        for (int y = 0; y < height(); ++y) {
            float* error = m.error.row(y);
            Vec row = {};
            for (long i = 0; i < values; i += LANES) {
                const Vec value = load(error + i);
                if (kind == L1) {
                    row += value < Vec{} ? -value : value;
                    store(error + i, value > Vec{}   ? broadcast(share)
                                     : value < Vec{} ? broadcast(-share)
                                                     : Vec{});
                } else {
                    row += value * value;
                    store(error + i, value * broadcast(2 * share));
                }
            }
            sum += horizontal_sum(row);
        }
        if (kind != PSNR) return sum;
        // -PSNR, 10 / log(10) * log(mean square), as NAFNet's authors have it, for each value.
        const double count = double(height()) * width() * OUTS, mean = sum / count + 1e-8;
        const float slope = float(10 / std::log(10.0) / mean);
        for (int y = 0; y < height(); ++y) {
            float* error = m.error.row(y);
            for (long i = 0; i < values; i += LANES)
                store(error + i, load(error + i) * broadcast(slope));
        }
        return 10 / std::log(10.0) * std::log(mean) * count;
    }

    void enlarge_back(Weights& g) {
        pipeline(
            height(), Lagged{1, [&](int y) {
                const float* error = m.error.row(y);
                taps(m.error, y, ZEROS, o.enlarge_back, into<PITCH>(m.g_total.row(y)));
                for (int t = 0; t < 9; ++t)
                    outer(width(), m.total.row(y + t / 3 - 1) + (t % 3 - 1) * PITCH, PITCH, error,
                          OUT, g.enlarge[t]);
                sum_pixels<OUT>(width(), error, g.enlarge_bias);
            }},
            Lagged{2, [&](int y) {
                depthwise_gradient<PITCH, 3, 1>(
                    width(), [&](int t) INLINED { return m.smooth.row(y + t - 1); },
                    m.g_total.row(y), g.smooth_depthwise, g.smooth_bias);
                float *smooth = m.rows[0], *fused = m.rows[1], *slope = m.rows[2];
                float* running = m.g_running.row(y);
                activate(long(width()) * PITCH, m.running.row(y), fused, slope);
                depthwise<PITCH, 3, 1>(width(), o.smooth_depthwise_back[0], ZEROS,
                                       [&](int t) INLINED { return m.g_total.row(y + t - 1); },
                                       into<PITCH>(smooth));
                outer(width(), fused, PITCH, smooth, PITCH, g.smooth);
                multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                    store(running + p * PITCH + n, value * load(slope + p * PITCH + n));
                }, term(smooth, PITCH, o.smooth_back));
                sum_pixels<PITCH>(width(), running, g.fusion_bias);
            }});
    }

    // The gradient of a block's output, in g_features, to that of its input.
    void backward(int block, Block& g) {
        const Block& b = w.blocks[block];
        const BlockOperands& operands = o.blocks[block];
        const Kept& k = m.kept[block];
        const bool is_last = block + 1 == BLOCKS;
        const Map<PITCH>& out = is_last ? m.features : m.kept[block + 1].features;
        // Back through depthwise convolution i and the matrix before it.
        auto refine = [&](int i, int y, const float* source, auto keep, long next = 0) INLINED {
            depthwise_gradient<PITCH, 3, 1>(
                width(), [&](int t) INLINED { return k.up[i].row(y + t - 1); },
                m.g_refined[i].row(y), g.depthwise[i], g.depthwise_bias[i]);
            float *both = m.rows[0], *part = m.g_part[i].row(y);
            depthwise<PITCH, 3, 1>(width(), operands.depthwise_back[i][0], ZEROS,
                                   [&](int t) INLINED { return m.g_refined[i].row(y + t - 1); },
                                   [=](int p, int n, Vec value) INLINED {
                if (n >= FIRST_PART) value += load(part + p * PART + n - FIRST_PART);
                store(both + p * WIDE + n, value);
            });
            for (int p = 0; p < width(); ++p)
                for (int n = PITCH; n < WIDE; n += LANES)
                    store(both + p * WIDE + n, load(part + p * PART + n - FIRST_PART));
            outer(width(), source, PITCH, both, WIDE, g.refine[i], next);
            sum_pixels<WIDE>(width(), both, g.refine_bias[i]);
            multiply(width(), ZEROS, keep, term(both, WIDE, operands.refine_back[i]));
        };
        float *refined = m.rows[1], *slope = m.rows[2];
        auto activate_refined = [&](int i, int y) INLINED {
            activate(long(width()) * PITCH, k.refined[i].row(y), refined, slope);
        };
        auto times_slope = [&](float* to) INLINED {
            return [=](int p, int n, Vec value) INLINED {
                store(to + p * PITCH + n, value * load(slope + p * PITCH + n));
            };
        };
        pipeline(
            height(), Lagged{0, [&](int y) {
                float *features = m.g_features.row(y), *running = m.g_running.row(y);
                fetch(y - 4, k.point);
                outer(width(), out.row(y), PITCH, running, PITCH, g.fusion, out.stride);
                multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                    if (!is_last) value += load(features + p * PITCH + n);
                    store(features + p * PITCH + n, value);
                }, term(running, PITCH, operands.fusion_back));
                float *z = m.rows[0], *gated = m.rows[1];
                normalise_back(b, g, features, k.normal.row(y), k.factor.row(y), z);
                const float *merged = k.merged.row(y), *attention = k.attention.row(y);
                for (long i = 0; i < long(width()) * PITCH; i += LANES)
                    store(gated + i, load(merged + i) * load(attention + i));
                outer(width(), gated, PITCH, z, PITCH, g.c6);
                sum_pixels<PITCH>(width(), z, g.c6_bias);
                float *g_merged = m.g_merged.row(y), *g_attention = m.g_attention.row(y);
                multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                    const int i = p * PITCH + n;
                    store(g_merged + i, value * load(attention + i));
                    store(g_attention + i, value * load(merged + i));
                }, term(z, PITCH, operands.c6_back));
                depthwise_gradient<PITCH, 5, 3>(
                    width(), [&](int t) INLINED { return k.spread.row(y + 3 * t - 6); },
                    g_attention, g.large, g.large_bias);
            }},
            Lagged{6, [&](int y) {
                fetch(y - 2, k.merged, k.part[0], k.part[1], k.part[2], k.part4);
                fetch(y - 1, k.last);
                depthwise<PITCH, 5, 3>(
                    width(), operands.large_back[0], ZEROS,
                    [&](int t) INLINED { return m.g_attention.row(y + 3 * t - 6); },
                    into<PITCH>(m.g_spread.row(y)));
                depthwise_gradient<PITCH, 5, 1>(
                    width(), [&](int t) INLINED { return k.point.row(y + t - 2); },
                    m.g_spread.row(y), g.spread, g.spread_bias);
            }},
            Lagged{8, [&](int y) {
                float *point = m.rows[0], *merged = m.g_merged.row(y);
                fetch(y - 1, k.refined[2]);
                depthwise<PITCH, 5, 1>(
                    width(), operands.spread_back[0], ZEROS,
                    [&](int t) INLINED { return m.g_spread.row(y + t - 2); }, into<PITCH>(point));
                outer(width(), k.merged.row(y), PITCH, point, PITCH, g.point);
                sum_pixels<PITCH>(width(), point, g.point_bias);
                multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                    store(merged + p * PITCH + n, value + load(merged + p * PITCH + n));
                }, term(point, PITCH, operands.point_back));
                sum_pixels<PITCH>(width(), merged, g.merge_bias);
                float* value = m.rows[1];
                for (int i = 0; i < 3; ++i) {
                    activate(long(width()) * PART, k.part[i].row(y), value, slope);
                    outer(width(), value + OFFSET, PART, merged, PITCH, g.merge[i]);
                    float* part = m.g_part[i].row(y);
                    multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                        store(part + p * PART + n, value * load(slope + p * PART + n));
                    }, term(merged, PITCH, operands.merge_back[i]));
                }
                activate(long(width()) * HALF, k.part4.row(y), value, slope);
                outer(width(), value, HALF, merged, PITCH, g.merge[3]);
                float* part4 = m.g_part4.row(y);
                multiply(width(), ZEROS, [=](int p, int n, Vec value) INLINED {
                    store(part4 + p * HALF + n, value * load(slope + p * HALF + n));
                }, term(merged, PITCH, operands.merge_back4));
                depthwise_gradient<HALF, 3, 1>(
                    width(), [&](int t) INLINED { return k.last.row(y + t - 1); }, part4,
                    g.last_depthwise, g.last_bias);
            }},
            Lagged{9, [&](int y) {
                float* last = m.rows[0];
                fetch(y - 1, k.refined[1]);
                fetch(y, k.up[2]);
                depthwise<HALF, 3, 1>(width(), operands.last_depthwise_back[0], ZEROS,
                                      [&](int t) INLINED { return m.g_part4.row(y + t - 1); },
                                      into<HALF>(last));
                activate_refined(2, y);
                outer(width(), refined, PITCH, last, HALF, g.last);
                multiply(width(), ZEROS, times_slope(m.g_refined[2].row(y)),
                         term(last, HALF, operands.last_back));
            }},
            Lagged{10, [&](int y) {
                fetch(y - 1, k.refined[0]);
                fetch(y, k.up[1]);
                activate_refined(1, y);
                refine(2, y, refined, times_slope(m.g_refined[1].row(y)));
            }},
            Lagged{11, [&](int y) {
                fetch(y - 1, k.features);
                fetch(y, k.up[0]);
                activate_refined(0, y);
                refine(1, y, refined, times_slope(m.g_refined[0].row(y)));
            }},
            Lagged{12, [&](int y) {
                float* features = m.g_features.row(y);
                fetch(y + 13, out, k.normal, k.attention, k.merged, m.g_running, m.g_features);
                fetch(y + 19, k.spread);
                refine(0, y, k.features.row(y), [=](int p, int n, Vec value) INLINED {
                    store(features + p * PITCH + n, value + load(features + p * PITCH + n));
                }, k.features.stride);
            }});
    }

    // The gradient of the norm's input but for its mean, which the centred matrix takes away; and
    // of its scale and shift.
    void normalise_back(const Block& b, Block& g, const float* out, const float* normal,
                        const float* factors, float* z) {
        constexpr int vectors = PITCH / LANES;
        float* products = m.rows[2];
        Vec scale[vectors], shift[vectors];
        for (int v = 0; v < vectors; ++v) scale[v] = shift[v] = Vec{};
        for (int p = 0; p < width(); ++p) {
            Vec sum = {};
            for (int v = 0; v < vectors; ++v) {
                const int i = p * PITCH + v * LANES;
                const Vec value = load(out + i), product = value * load(normal + i);
                scale[v] += product;
                shift[v] += value;
                sum += product * load(b.scale + v * LANES);
            }
            products[p] = horizontal_sum(sum) / C;
        }
        for (int p = 0; p < width(); ++p)
            for (int i = p * PITCH, n = 0; n < PITCH; n += LANES, i += LANES)
                store(z + i, broadcast(factors[p]) * (load(out + i) * load(b.scale + n) -
                                                      load(normal + i) * broadcast(products[p])));
        for (int v = 0; v < vectors; ++v) {
            store(g.scale + v * LANES, load(g.scale + v * LANES) + scale[v]);
            store(g.shift + v * LANES, load(g.shift + v * LANES) + shift[v]);
        }
    }

    void read_back(Weights& g) {
        for (int y = 0; y < height(); ++y) {
            float *features = m.g_features.row(y), *total = m.g_total.row(y);
            for (long i = 0; i < long(width()) * PITCH; i += LANES)
                store(features + i, load(features + i) + load(total + i));
            for (int t = 0; t < 9 * IMAGE; ++t)
                outer_rows<1, PITCH>(width(), m.lr[t / 9].row(y + t / 3 % 3 - 1) + t % 3 - 1, 1,
                                     features, PITCH, g.first[t]);
            sum_pixels<PITCH>(width(), features, g.first_bias);
        }
    }

    double run(Loss kind, float share, Weights& g) {
        std::memset(static_cast<void*>(&g), 0, sizeof g);
        read();
        for (int block = 0; block < BLOCKS; ++block) forward(block);
        enlarge();
        const double sum = loss(kind, share);
        enlarge_back(g);
        for (int block = BLOCKS; block-- > 0;) backward(block, g.blocks[block]);
        read_back(g);
        return sum;
    }
};

// work(0), work(1), .., each in a thread of its own.
template <class Work>
void in_threads(int count, Work work) {
    std::vector<std::thread> others;
    for (int thread = 1; thread < count; ++thread)
        try {
            others.emplace_back(work, thread);
        } catch (const std::system_error&) {  // fewer threads than hoped for
            break;
        }
    work(0);
    for (auto& other : others) other.join();
}

struct Flat {
    Weights weights;
    Operands operands;
};

}  // namespace

extern "C" {

// Whether this process may use what the library was compiled for.
int lkdn_training_enable() { return enable_bf16(); }

long lkdn_parameters() {
    auto weights = std::make_unique<Weights>();
    std::vector<float> flat(sizeof(Weights) / sizeof(float));  // more than there are
    long count = 0;
    each(*weights, flat.data(), [&](float&, float&) { ++count; });
    return count;
}

// Floats that a thread needs for patches of this size, zeros in the beginning; those of the kernels
// and what is made of them; those of a patch's gradients.
long lkdn_memory(int height, int width) {
    Arena arena{nullptr};
    Memory(arena, height, width);
    return arena.used;
}
long lkdn_training_weights() { return (sizeof(Flat) + 63) / 64 * 16; }
long lkdn_gradients() { return (sizeof(Weights) + 63) / 64 * 16; }

// The loss of each patch, summed over its values and times `share`, and the gradient of their sum.
// parameters, gradient: flat, see each(). lr: (batch, height, width, IMAGE); hr: SCALE times as large.
// memory: threads * lkdn_memory(height, width) floats; weights: lkdn_training_weights(); gradients:
// batch * lkdn_gradients(). All at multiples of 64 bytes.
void lkdn_gradient(const float* parameters, const unsigned char* lr, const unsigned char* hr,
                   int batch, int height, int width, int kind, float share, float eps, int threads,
                   float* weights, float* memory, float* gradients, double* losses,
                   float* gradient) {
    Flat& flat = *reinterpret_cast<Flat*>(weights);
    std::memset(static_cast<void*>(&flat.weights), 0, sizeof flat.weights);
    each(flat.weights, const_cast<float*>(parameters), [](float& in, float& out) { in = out; });
    flat.weights.eps = eps;
    prepare(flat.operands, flat.weights);
    std::atomic<int> next{0};
    in_threads(std::min(threads, batch), [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        Bf16Thread bf16;
        Arena arena{memory + thread * lkdn_memory(height, width)};
        Memory own(arena, height, width);
        for (int i; (i = next++) < batch;) {
            const long pixels = long(height) * width * IMAGE;
            Task task{flat.weights, flat.operands, own,
                      {lr + i * pixels, hr + i * pixels * SCALE * SCALE, height, width}};
            losses[i] = share * task.run(Loss(kind), share, *reinterpret_cast<Weights*>(
                                                                gradients + i * lkdn_gradients()));
        }
    });
    // Added in the patches' order, a part of the gradient after the other, each part by one thread.
    const long total = lkdn_gradients(), part = 4096;
    std::atomic<long> begun{0};
    in_threads(std::min(threads, batch), [&](int) {
        for (long at; (at = part * begun++) < total;)
            for (int i = 1; i < batch; ++i) {
                const float* own = gradients + i * total;
                for (long j = at; j < std::min(at + part, total); j += LANES)
                    store(gradients + j, load(gradients + j) + load(own + j));
            }
    });
    Weights& sum = *reinterpret_cast<Weights*>(gradients);
    for (Block& b : sum.blocks) {
        centre<PITCH>(b.c6[0], C);
        centre<PITCH>(b.c6_bias, 1);
    }
    each(sum, gradient, [](float& in, float& out) { out = in; });
}

}
