// Matrices that rows of pixels are multiplied by: in float32, or with BF16 defined as native_bf16.h
// has them.

#pragma once

#include <cstring>

#include "native.h"

namespace {

// A matrix (inputs K, outputs N).
template <int K, int N>
struct Operand;

// Pixels' first K numbers, from a pixel to the next `pitch` floats, and what they are multiplied by.
template <int K, int N>
struct Term {
    const float* x;
    long pitch;
    const Operand<K, N>& w;
};
template <int K, int N>
INLINE Term<K, N> term(const float* x, long pitch, const Operand<K, N>& w) { return {x, pitch, w}; }

}  // namespace

#if defined(BF16)
#include "native_bf16.h"
#else

namespace {

template <int K, int N>
struct Operand {
    float value[K][N];

    void set(const float (&from)[K][N]) { std::memcpy(value, from, sizeof value); }
    // Inputs and outputs in each other's place: from (N or fewer, at least K) columns `first` on.
    template <int ROWS, int COLUMNS>
    void set_transposed(const float (&from)[ROWS][COLUMNS], int first_output = 0) {
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < ROWS; ++n) value[k][first_output + n] = from[n][k];
    }
};

// `count` pixels of N columns: bias + the sum of x (count, K of pitch) times w over the terms;
// `keep` gets each pixel's vectors as (pixel, column, value).
template <class Keep, int N, int... K>
INLINE void multiply(int count, const float* bias, Keep keep, Term<K, N>... terms) {
    matrix<N>(count, bias, [&](int first, auto add) INLINED {
        (add(inputs<K>, terms.x + first * terms.pitch, terms.pitch, terms.w.value[0]), ...);
    }, keep);
}

inline bool enable_bf16() { return true; }
struct Bf16Thread {
    Bf16Thread() {}  // so that no compiler finds it unused
};

}  // namespace

#endif

// Whether this process may use what its library was compiled for.
extern "C" [[gnu::used]] inline int lkdn_enable() { return enable_bf16(); }
