// The gradients of a patch's loss, from the output back to the first convolution.

#pragma once

#include "native_training_patch.h"

namespace {

inline void Task::enlarge_back(Weights& g) {
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
inline void Task::backward(int block, Block& g) {
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
        depthwise<PITCH, 3, 1>(width(), b.depthwise[i][0], b.depthwise_bias[i],
                               [&](int t) INLINED { return k.up[i].row(y + t - 1); },
                               into_gelu<PITCH>(refined, slope));
    };
    auto times_slope = [&](float* to) INLINED {
        return [=](int p, int n, Vec value) INLINED {
            store(to + p * PITCH + n, value * load(slope + p * PITCH + n));
        };
    };
    pipeline(
        height(), Lagged{0, [&](int y) {
            float *features = m.g_features.row(y), *running = m.g_running.row(y);
            prefetch_rows(y - 4, k.point);
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
            prefetch_rows(y - 2, k.merged, k.part[0], k.part[1], k.part[2]);
            prefetch_rows(y - 1, k.last);
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
            prefetch_rows(y, k.up[2]);
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
            depthwise<HALF, 3, 1>(width(), b.last_depthwise[0], b.last_bias,
                                  [&](int t) INLINED { return k.last.row(y + t - 1); },
                                  into_gelu<HALF>(value, slope));
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
            prefetch_rows(y, k.up[1]);
            depthwise<HALF, 3, 1>(width(), operands.last_depthwise_back[0], ZEROS,
                                  [&](int t) INLINED { return m.g_part4.row(y + t - 1); },
                                  into<HALF>(last));
            activate_refined(2, y);
            outer(width(), refined, PITCH, last, HALF, g.last);
            multiply(width(), ZEROS, times_slope(m.g_refined[2].row(y)),
                     term(last, HALF, operands.last_back));
        }},
        Lagged{10, [&](int y) {
            prefetch_rows(y, k.up[0]);
            activate_refined(1, y);
            refine(2, y, refined, times_slope(m.g_refined[1].row(y)));
        }},
        Lagged{11, [&](int y) {
            prefetch_rows(y - 1, k.features);
            activate_refined(0, y);
            refine(1, y, refined, times_slope(m.g_refined[0].row(y)));
        }},
        Lagged{12, [&](int y) {
            float* features = m.g_features.row(y);
            prefetch_rows(y + 13, out, k.normal, k.attention, k.merged, m.g_running, m.g_features);
            prefetch_rows(y + 19, k.spread);
            refine(0, y, k.features.row(y), [=](int p, int n, Vec value) INLINED {
                store(features + p * PITCH + n, value + load(features + p * PITCH + n));
            }, k.features.stride);
        }});
}

// The gradient of the norm's input but for its mean, which the centred matrix takes away; and
// of its scale and shift.
inline void Task::normalise_back(const Block& b, Block& g, const float* out, const float* normal,
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

inline void Task::read_back(Weights& g) {
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

}  // namespace
