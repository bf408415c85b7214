// The strips of an image that inference computes in, and what a thread keeps of one.

#pragma once

#include <cstring>

#include "native_gelu.h"
#include "native_matrix.h"
#include "native_weights.h"

namespace {

constexpr int STRIP = 128;   // columns of a strip at most, without what it needs to each side
constexpr int MARGIN = 16;   // columns to each side of a strip's own in a ring
constexpr int ROW = STRIP + 2 * MARGIN;

using Block = BlockOf<Operand>;
constexpr int WAVES = 6;  // what six neighbours are transformed to, see native_enlarge.h
using Weights = WeightsOf<Operand, 3 * WAVES>;

struct Image {
    const float* lr;      // (IMAGE, height+2, width+2), zeros around it
    float* sr;            // (IMAGE, SCALE*height, SCALE*width)
    float *features, *merged, *running;  // (height*width, PITCH)
    int height, width;
};
struct Tile {
    int top, bottom, left, right;
};

template <int N, int WIDTH>
struct Ring {
    float rows[N][ROW][WIDTH];
    float* row(int y) { return rows[(y + 64 * N) % N][MARGIN]; }  // at the strip's first column
    void clear() { std::memset(rows, 0, sizeof rows); }
    void clear(int y) { std::memset(rows[(y + 64 * N) % N], 0, sizeof rows[0]); }
};
struct Distil {
    Ring<3, PITCH> up[3];
    Ring<3, HALF> last;
    Ring<5, PART> part1;
    Ring<4, PART> part2;
    Ring<3, PART> part3;
    float refined[ROW][PITCH], part4[ROW][HALF];
};
struct Attend {
    Ring<5, PITCH> point;
    Ring<13, PITCH> spread;
    float gated[ROW][PITCH], z[ROW][PITCH], factor[ROW];
};
struct Enlarge {
    Ring<3, PITCH> up;
    float shallow[ROW][PITCH], total[ROW][PITCH];
    float waves[3][WAVES][STRIP / 4][PITCH], products[WAVES][STRIP / 4][OUT], pixels[STRIP][OUT];
};
union Scratch {
    Distil distil;
    Attend attend;
    Enlarge enlarge;
};

// The first convolution: `count` pixels of row y from column x on, to keep(pixel, column, value).
template <class Keep>
INLINE void shallow(const Weights& w, const Image& image, int y, int x, int count, Keep keep) {
    matrix<PITCH>(count, w.first_bias, [&](int first, auto add) INLINED {
        for (int c = 0; c < IMAGE; ++c)
            for (int i = 0; i < 3; ++i) {
                const long line = long(c) * (image.height + 2) + y + i;
                add(inputs<3>, image.lr + line * (image.width + 2) + x + first, 1,
                    w.first[(c * 3 + i) * 3]);
            }
    }, keep);
}

void first(const Weights& w, const Image& image, Tile t, Scratch&) {
    for (int y = t.top; y < t.bottom; ++y) {
        float* out = image.features + (long(y) * image.width + t.left) * PITCH;
        shallow(w, image, y, t.left, t.right - t.left, into<PITCH>(out));
    }
}

}  // namespace
