// The exact GELU, x times the share of a normal distribution below x, and its slope, that share plus
// x times its density. GELU is x, or 0 below it, less its tail: |x| times the share beyond |x|.

#pragma once

#include <iterator>
#include <utility>
#if defined(__AVX__)
#include <immintrin.h>
#endif

#include "native.h"

namespace {

typedef int Whole __attribute__((vector_size(4 * LANES)));
constexpr float ROUNDER = 12582912;  // 1.5 * 2^23: whoever adds it leaves a whole number

INLINE Vec absolute(Vec x) { return Vec(Whole(x) & 0x7fffffff); }
// Where one of the two is NaN, the second.
#if defined(__AVX512F__)  // one instruction, where compilers make two of the other form
INLINE Vec least(Vec x, Vec y) { return Vec(_mm512_min_ps(__m512(x), __m512(y))); }
INLINE Vec greatest(Vec x, Vec y) { return Vec(_mm512_max_ps(__m512(x), __m512(y))); }
#elif defined(__AVX__)
INLINE Vec least(Vec x, Vec y) { return Vec(_mm256_min_ps(__m256(x), __m256(y))); }
INLINE Vec greatest(Vec x, Vec y) { return Vec(_mm256_max_ps(__m256(x), __m256(y))); }
#else
INLINE Vec least(Vec x, Vec y) { return x < y ? x : y; }
INLINE Vec greatest(Vec x, Vec y) { return x > y ? x : y; }
#endif

struct Gelu {
    Vec value, slope;
};
INLINE Vec without_tail(Vec x, Vec tail) { return greatest(x, Vec{}) - tail; }
INLINE Vec slope_without(Vec x, Vec tail) { return x > Vec{} ? broadcast(1) - tail : tail; }

#if defined(BF16) && defined(__AVX512F__)

// Beside numbers of eight bits 1e-4 is exact enough. So the tail is one of sixteen parabolas, whose
// factors a register holds, and its slope another. Each was fitted for the least largest error, 9e-5
// and 2e-4. The first tail begins and the last ends at 0: zeros stay zeros.
constexpr float STEP = 0.28f, LAST = 15.499f * STEP;
constexpr float TAIL[3][LANES] = {
    {0.0000000e+00f, 9.9199719e-04f, 1.6012494e-02f, 6.8108574e-02f, 1.6497199e-01f,
     2.8437921e-01f, 3.8449505e-01f, 4.2932200e-01f, 4.0801829e-01f, 3.3670703e-01f,
     2.4449886e-01f, 1.5772113e-01f, 9.1020107e-02f, 4.7245674e-02f, 2.2176197e-02f,
     5.5036147e-04f},
    {4.9987543e-01f, 4.8899767e-01f, 4.1981000e-01f, 2.7188572e-01f, 7.3804297e-02f,
     -1.1692300e-01f, -2.4828847e-01f, -2.9858413e-01f, -2.7886555e-01f, -2.1911038e-01f,
     -1.4971559e-01f, -9.0534300e-02f, -4.8964564e-02f, -2.3851991e-02f, -1.0529714e-02f,
     0.0000000e+00f},
    {-3.9685068e-01f, -3.6721709e-01f, -2.8690830e-01f, -1.8156262e-01f, -8.0126256e-02f,
     -3.8898927e-03f, 3.9227884e-02f, 5.3337272e-02f, 4.8776940e-02f, 3.6255650e-02f,
     2.3196280e-02f, 1.3104231e-02f, 6.6264509e-03f, 3.0243632e-03f, 1.2542763e-03f,
     -2.9222985e-05f},
};
constexpr float TAIL_SLOPE[3][LANES] = {
    {5.0002247e-01f, 5.0419372e-01f, 5.2746004e-01f, 5.4195517e-01f, 4.8169500e-01f,
     3.0147234e-01f, 2.5719147e-02f, -2.5910893e-01f, -4.5966735e-01f, -5.2960581e-01f,
     -4.8200810e-01f, -3.6939165e-01f, -2.4514893e-01f, -1.4319219e-01f, -7.4380018e-02f,
     -2.1512117e-03f},
    {-8.0078721e-01f, -8.5079467e-01f, -9.6464103e-01f, -1.0106014e+00f, -8.9120477e-01f,
     -6.0662639e-01f, -2.4800752e-01f, 6.6557921e-02f, 2.5921771e-01f, 3.1912142e-01f,
     2.8385577e-01f, 2.0733675e-01f, 1.3004789e-01f, 7.1624748e-02f, 3.5088778e-02f,
     0.0000000e+00f},
    {5.5508658e-02f, 2.0873870e-01f, 3.4918389e-01f, 3.8538030e-01f, 3.2619524e-01f,
     2.1374647e-01f, 9.7071514e-02f, 1.0179272e-02f, -3.6102787e-02f, -4.8929568e-02f,
     -4.2397555e-02f, -2.9397208e-02f, -1.7375417e-02f, -9.0049738e-03f, -4.1547553e-03f,
     1.1422463e-04f},
};

INLINE Vec parabola(const float (&factors)[3][LANES], Vec x, Whole number) {
    Vec chosen[3];
    for (int i = 0; i < 3; ++i)
        chosen[i] = Vec(_mm512_permutexvar_ps(__m512i(number), __m512(load(factors[i]))));
    return (chosen[2] * x + chosen[1]) * x + chosen[0];
}
INLINE Vec gelu(Vec x) {
    const Vec size = least(broadcast(LAST), absolute(x));
    return without_tail(x, parabola(TAIL, size, Whole(size * (1 / STEP) + ROUNDER)));
}
INLINE Gelu gelu_and_slope(Vec x) {
    const Vec size = least(broadcast(LAST), absolute(x));
    const Whole number = Whole(size * (1 / STEP) + ROUNDER);  // of its last four bits
    return {without_tail(x, parabola(TAIL, size, number)),
            slope_without(x, parabola(TAIL_SLOPE, size, number))};
}

#else

// Two polynomials, of the powers 0, 1, ..: 2^x for x in -0.5..0.5, and the logarithm to the base 2
// of the share of a normal distribution beyond x >= 0, fitted for the least largest error of that
// share, of GELU and of its slope, 5e-8: of one sign over a range of x, an error adds up over the
// pixels of a gradient.
constexpr float POWER[] = {1.0f,           6.93147182e-01f, 2.40226477e-01f, 5.55033237e-02f,
                           9.61843692e-03f, 1.33988739e-03f, 1.53533620e-04f};
constexpr float BEYOND[] = {-9.99999881e-01f, -1.15110946e+00f, -4.59179938e-01f,
                            -5.25718145e-02f, 7.16392929e-03f,  -2.08635800e-04f,
                            -1.58513009e-04f, 3.39971921e-05f,  -2.42791634e-06f};

template <int COUNT>
INLINE Vec polynomial(Vec x, const float (&factors)[COUNT]) {
    Vec sum = broadcast(factors[COUNT - 1]);
#pragma GCC unroll 8
    for (int i = COUNT - 2; i >= 0; --i) sum = sum * x + broadcast(factors[i]);
    return sum;
}

// 2^x for -126 <= x <= 126, relative error 2e-7: the power's nearest whole number goes into the
// exponent, a polynomial makes the rest.
INLINE Vec exp2(Vec x) {
    const Vec rounded = x + broadcast(ROUNDER);
    const Vec rest = x - (rounded - broadcast(ROUNDER));
    return Vec(Whole(polynomial(rest, POWER)) + (Whole(rounded) << 23));
}

constexpr float LAST = 6.5f;  // where the share is 4e-11
INLINE Vec share_beyond(Vec size) { return exp2(polynomial(size, BEYOND)); }
INLINE Vec gelu(Vec x) {
    const Vec size = least(broadcast(LAST), absolute(x));
    return without_tail(x, size * share_beyond(size));
}
// The density is minus the slope of the share beyond, so it costs no other power.
template <int... I>
INLINE Gelu gelu_and_slope(Vec x, std::integer_sequence<int, I...>) {
    constexpr float FALL[] = {-0.69314718f * (I + 1) * BEYOND[I + 1]...};
    const Vec size = least(broadcast(LAST), absolute(x)), beyond = share_beyond(size);
    return {without_tail(x, size * beyond),
            slope_without(x, beyond - size * beyond * polynomial(size, FALL))};
}
INLINE Gelu gelu_and_slope(Vec x) {
    return gelu_and_slope(x, std::make_integer_sequence<int, std::size(BEYOND) - 1>());
}

#endif

}  // namespace
