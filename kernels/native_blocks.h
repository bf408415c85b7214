// A block of the network on a tile of an image, in two passes.

#pragma once

#include <algorithm>
#include <cmath>

#include "native_strips.h"

namespace {

// features -> merged: three times refined and distilled, the four parts merged.
void distil(const Block& w, const Image& image, Tile t, Distil& s) {
    for (auto& ring : s.up) ring.clear();
    s.last.clear();
    for (int y = t.top - 4; y < t.bottom + 4; ++y)
        for (int stage = 0; stage < 5; ++stage) {
            const int row = y - stage, halo = 4 - stage;
            if (row < t.top - halo) break;
            const int left = std::max(0, t.left - halo), at = left - t.left;
            const int count = std::min(image.width, t.right + halo) - left;
            if (row < 0 || row >= image.height) {
                if (stage < 3) s.up[stage].clear(row);
                if (stage == 3) s.last.clear(row);
                continue;
            }
            const float* source = image.features + (long(row) * image.width + left) * PITCH;
            if (stage > 0 && stage < 4) {
                auto& up = s.up[stage - 1];
                depthwise<PITCH, 3, 1>(
                    count, w.depthwise[stage - 1][0], w.depthwise_bias[stage - 1],
                    [&](int i) INLINED { return up.row(row + i - 1) + at * PITCH; },
                    [&](int i, int n, Vec value) INLINED { store(s.refined[i] + n, gelu(value)); });
                source = s.refined[0];
            }
            if (stage < 3) {
                float* up = s.up[stage].row(row) + at * PITCH;
                float* part = (stage == 0 ? s.part1.row(row) : stage == 1 ? s.part2.row(row)
                               : s.part3.row(row)) + at * PART;
                const float* below = source + (stage == 0 ? long(image.width) * PITCH : 0);
                multiply(count, w.refine_bias[stage], [&](int i, int n, Vec value) INLINED {
                    if (n == 0) prefetch<PITCH>(below + i * PITCH);
                    if (n < PITCH) store(up + i * PITCH + n, value);
                    if (n >= FIRST_PART) store(part + i * PART + n - FIRST_PART, gelu(value));
                }, term(source, PITCH, w.refine[stage]));
            } else if (stage == 3) {
                multiply(count, ZEROS, into<HALF>(s.last.row(row) + at * HALF),
                         term(source, PITCH, w.last));
            } else {
                depthwise<HALF, 3, 1>(
                    count, w.last_depthwise[0], w.last_bias,
                    [&](int i) INLINED { return s.last.row(row + i - 1); },
                    [&](int i, int n, Vec value) INLINED { store(s.part4[i] + n, gelu(value)); });
                multiply(count, w.merge_bias,
                         into<PITCH>(image.merged + (long(row) * image.width + left) * PITCH),
                         term(s.part1.row(row) + OFFSET, PART, w.merge[0]),
                         term(s.part2.row(row) + OFFSET, PART, w.merge[1]),
                         term(s.part3.row(row) + OFFSET, PART, w.merge[2]),
                         term(s.part4[0], HALF, w.merge[3]));
            }
        }
}

// merged -> features += norm(c6(merged * attention)), running += fusion(features).
void attend(const Weights& weights, int block, const Image& image, Tile t, Attend& s) {
    const Block& w = weights.blocks[block];
    const bool is_first = block == 0, is_last = block == BLOCKS - 1;
    s.point.clear();
    s.spread.clear();
    for (int y = t.top - 8; y < t.bottom + 8; ++y) {
        const int left = std::max(0, t.left - 8);
        if (y < 0 || y >= image.height)
            s.point.clear(y);
        else {
            const float* source = image.merged + (long(y) * image.width + left) * PITCH;
            float* out = s.point.row(y) + (left - t.left) * PITCH;
            multiply(std::min(image.width, t.right + 8) - left, w.point_bias,
                     [&](int i, int n, Vec value) INLINED {
                if (n == 0) prefetch<PITCH>(source + (i + image.width) * PITCH);
                store(out + i * PITCH + n, value);
            }, term(source, PITCH, w.point));
        }
        int row = y - 2;
        if (row < t.top - 6) continue;
        if (row < 0 || row >= image.height)
            s.spread.clear(row);
        else {
            const int begin = std::max(0, t.left - 6), at = (begin - t.left) * PITCH;
            depthwise<PITCH, 5, 1>(
                std::min(image.width, t.right + 6) - begin, w.spread[0], w.spread_bias,
                [&](int i) INLINED { return s.point.row(row + i - 2) + at; },
                into<PITCH>(s.spread.row(row) + at));
        }
        row = y - 8;
        if (row < t.top) continue;
        const int count = t.right - t.left;
        const long at = (long(row) * image.width + t.left) * PITCH;
        const float* merged = image.merged + at;
        float *features = image.features + at, *running = image.running + at;
        depthwise<PITCH, 5, 3>(
            count, w.large[0], w.large_bias,
            [&](int i) INLINED { return s.spread.row(row + 3 * i - 6); },
            [&](int i, int n, Vec value) INLINED {
                store(s.gated[i] + n, value * load(merged + i * PITCH + n));
            });
        multiply(count, w.c6_bias, [&](int i, int n, Vec value) INLINED {
            if (n == 0) prefetch<PITCH>(features + (i + image.width) * PITCH);
            if (n == 0 && !is_first) prefetch<PITCH>(running + (i + image.width) * PITCH);
            store(s.z[i] + n, value);
        }, term(s.gated[0], PITCH, w.c6));
        for (int i = 0; i < count; ++i) {  // c6 is centred: its mean is zero
            Vec squares = {};
            for (int n = 0; n < PITCH; n += LANES) squares += load(s.z[i] + n) * load(s.z[i] + n);
            s.factor[i] = horizontal_sum(squares);
        }
        for (int i = 0; i < count; ++i) s.factor[i] = 1 / std::sqrt(s.factor[i] / C + w.eps[0]);
        for (int i = 0; i < count; ++i) {
            const Vec factor = broadcast(s.factor[i]);
            for (int n = 0; n < PITCH; n += LANES) {
                Vec z = load(s.z[i] + n) * factor * load(w.scale + n) + load(w.shift + n);
                z += load(features + i * PITCH + n);
                store(s.z[i] + n, z);
                if (!is_last) store(features + i * PITCH + n, z);
            }
        }
        multiply(count, weights.fusion_bias, [&](int i, int n, Vec value) INLINED {
            if (!is_first) value += load(running + i * PITCH + n) - load(weights.fusion_bias + n);
            store(running + i * PITCH + n, is_last ? gelu(value) : value);
        }, term(s.z[0], PITCH, w.fusion));
    }
}

}  // namespace
