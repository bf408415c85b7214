// The plain kernels as training has them: flat, as matrices, and as what the layers multiply by.

#pragma once

#include <cstring>
#include <numeric>

#include "native_matrix.h"
#include "native_weights.h"

namespace {

using Block = BlockOf<Plain>;
using Weights = WeightsOf<Plain, 9>;

// move(element of w, element of flat) for every number, flat in the order and layout of the
// network's state dict, with the first blueprint pair as one convolution.
template <class Move>
void for_each(Weights& w, float* flat, Move move) {
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
        const double mean = std::accumulate(row, row + C, 0.0) / C;  // so each is rounded once
        for (int n = 0; n < C; ++n) row[n] = float(row[n] - mean);
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

}  // namespace
