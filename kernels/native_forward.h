// The network on a patch, its loss, and the loss's gradient by the output.

#pragma once

#include <cmath>

#include "native_training_patch.h"

namespace {

inline void Task::read() {
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

inline void Task::forward(int block) {
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
                               into_gelu<PITCH>(refined));
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
                                  into_gelu<HALF>(parts[3]));
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
inline void Task::normalise(const Block& b, const float* z, float* normal, float* factors,
               const float* features, float* out) {
    for (int p = 0; p < width(); ++p) {
        Vec squares = {};
        for (int n = 0; n < PITCH; n += LANES)
            squares += load(z + p * PITCH + n) * load(z + p * PITCH + n);
        factors[p] = horizontal_sum(squares);
    }
    for (int p = 0; p < width(); ++p) factors[p] = 1 / std::sqrt(factors[p] / C + b.eps[0]);
    for (int p = 0; p < width(); ++p)
        for (int i = p * PITCH, n = 0; n < PITCH; n += LANES, i += LANES) {
            const Vec value = load(z + i) * broadcast(factors[p]);
            store(normal + i, value);
            store(out + i, value * load(b.scale + n) + load(b.shift + n) + load(features + i));
        }
}

// From the running sum to SR - HR.
inline void Task::enlarge() {
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

// The loss, a sum over the patch's values of which each counts `share`; the error becomes its
// gradient.
inline double Task::loss(Loss kind, float share) {
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

}  // namespace
