// The network's weights, or their gradients, in order; every matrix (inputs, outputs), padded with
// zeros, every array a multiple of a register's bytes.

#pragma once

#include "native.h"

namespace {

template <int K, int N>
using Plain = float[K][N];

template <template <int, int> class Matrix>
struct BlockOf {
    Matrix<C, WIDE> refine[3];
    float refine_bias[3][WIDE];
    float depthwise[3][9][PITCH], depthwise_bias[3][PITCH];
    Matrix<C, HALF> last;
    float last_depthwise[9][HALF], last_bias[HALF];
    Matrix<D, PITCH> merge[4];
    float merge_bias[PITCH];
    Matrix<C, PITCH> point;
    float point_bias[PITCH];
    float spread[25][PITCH], spread_bias[PITCH], large[25][PITCH], large_bias[PITCH];
    Matrix<C, PITCH> c6;
    float c6_bias[PITCH], scale[PITCH], shift[PITCH];
    float eps[16];  // the first of them
    Matrix<C, PITCH> fusion;
};

// ENLARGE: matrices of the 3x3 before the shuffle, 9 as it is.
template <template <int, int> class Matrix, int ENLARGE>
struct WeightsOf {
    float first[9 * IMAGE][PITCH], first_bias[PITCH];
    BlockOf<Matrix> blocks[BLOCKS];
    float fusion_bias[PITCH];
    Matrix<C, PITCH> smooth;
    float smooth_depthwise[9][PITCH], smooth_bias[PITCH];
    Matrix<C, OUT> enlarge[ENLARGE];
    float enlarge_bias[OUT];
};

}  // namespace
