// The network's end on a tile of an image: from the sum over the blocks to SR.

#pragma once

#include <algorithm>
#include <cstring>

#include "native_strips.h"

namespace {

// Winograd's F(4, 3): four neighbouring sums of three products each by six products in all. What
// enters them, from six values; what the sums are, from six products.
INLINE void input_transform(const float* x, float (&wave)[WAVES][STRIP / 4][PITCH], int tile) {
    for (int n = 0; n < PITCH; n += LANES) {
        Vec d[WAVES];
        for (int i = 0; i < WAVES; ++i) d[i] = load(x + i * PITCH + n);
        const Vec a = d[4] - broadcast(4) * d[2], b = d[3] - broadcast(4) * d[1];
        const Vec c = d[4] - d[2], e = broadcast(2) * (d[3] - d[1]);
        store(wave[0][tile] + n, broadcast(4) * d[0] - broadcast(5) * d[2] + d[4]);
        store(wave[1][tile] + n, a + b);
        store(wave[2][tile] + n, a - b);
        store(wave[3][tile] + n, c + e);
        store(wave[4][tile] + n, c - e);
        store(wave[5][tile] + n, broadcast(4) * d[1] - broadcast(5) * d[3] + d[5]);
    }
}

INLINE void output_transform(float (&products)[WAVES][STRIP / 4][OUT], int tile, const float* bias,
                             float* out) {
    for (int n = 0; n < OUT; n += LANES) {
        Vec m[WAVES];
        for (int i = 0; i < WAVES; ++i) m[i] = load(products[i][tile] + n);
        const Vec a = m[1] + m[2], b = m[1] - m[2], c = m[3] + m[4], e = m[3] - m[4];
        store(out + n, m[0] + a + c + load(bias + n));
        store(out + OUT + n, b + broadcast(2) * e + load(bias + n));
        store(out + 2 * OUT + n, a + broadcast(4) * c + load(bias + n));
        store(out + 3 * OUT + n, b + broadcast(8) * e + m[5] + load(bias + n));
    }
}

// running -> sr: smoothed, the shallow features added, enlarged.
void enlarge(const Weights& w, const Image& image, Tile t, Enlarge& s) {
    s.up.clear();
    std::memset(s.total, 0, sizeof s.total);
    const int count = t.right - t.left, tiles = (count + 3) / 4;
    for (int y = t.top - 2; y < t.bottom + 2; ++y) {
        if (y < 0 || y >= image.height)
            s.up.clear(y);
        else {
            const int left = std::max(0, t.left - 2);
            const float* source = image.running + (long(y) * image.width + left) * PITCH;
            float* out = s.up.row(y) + (left - t.left) * PITCH;
            multiply(std::min(image.width, t.right + 2) - left, ZEROS,
                     [&](int i, int n, Vec value) INLINED {
                if (n == 0) prefetch<PITCH>(source + (i + image.width) * PITCH);
                store(out + i * PITCH + n, value);
            }, term(source, PITCH, w.smooth));
        }
        int row = y - 1;
        if (row < t.top - 1) continue;
        auto& waves = s.waves[(row + 3) % 3];
        if (row < 0 || row >= image.height)
            std::memset(waves, 0, sizeof waves);
        else {
            const int left = std::max(0, t.left - 1);
            const int wider = std::min(image.width, t.right + 1) - left;
            const int at = (left - t.left) * PITCH;
            float* out = s.total[MARGIN] + at;
            shallow(w, image, row, left, wider, into<PITCH>(s.shallow[0]));
            depthwise<PITCH, 3, 1>(
                wider, w.smooth_depthwise[0], w.smooth_bias,
                [&](int i) INLINED { return s.up.row(row + i - 1) + at; },
                [&](int i, int n, Vec value) INLINED {
                    store(out + i * PITCH + n, value + load(s.shallow[i] + n));
                });
            for (int i = 0; i < tiles; ++i) input_transform(s.total[MARGIN + 4 * i - 1], waves, i);
        }
        row = y - 2;
        if (row < t.top) continue;
        for (int i = 0; i < WAVES; ++i)
            multiply(tiles, ZEROS, into<OUT>(s.products[i][0]),
                     term(s.waves[(row + 2) % 3][i][0], PITCH, w.enlarge[i]),
                     term(s.waves[row % 3][i][0], PITCH, w.enlarge[WAVES + i]),
                     term(s.waves[(row + 1) % 3][i][0], PITCH, w.enlarge[2 * WAVES + i]));
        for (int i = 0; i < tiles; ++i)
            output_transform(s.products, i, w.enlarge_bias, s.pixels[4 * i]);
        for (int c = 0; c < IMAGE; ++c)
            for (int r = 0; r < SCALE; ++r) {
                const long line = (long(c) * image.height + row) * SCALE + r;
                float* out = image.sr + (line * image.width + t.left) * SCALE;
                for (int i = 0; i < count; ++i)
                    std::memcpy(out + i * SCALE, s.pixels[i] + (c * SCALE + r) * SCALE,
                                SCALE * sizeof(float));
            }
    }
}

}  // namespace
