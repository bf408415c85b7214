// Muon's orthogonalisation of many small matrices on a CPU, compiled for the machine it runs on by
// kernels/native_training.py.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <vector>

#include "native_threads.h"
#include "native_training.h"

namespace {

constexpr int STEPS = 5;
constexpr float A = 3.4445f, B = -4.7750f, C3 = 2.0315f;  // Keller Jordan's quintic

// x (columns, N), a matrix's columns one after another, each of at most N rows and zeros behind: its
// singular values brought near 1 by x = (A + B g + C3 g g) x with g = x x^T. Rows of zeros stay so.
template <int N>
void orthogonalise(float* x, int columns) {
    static thread_local float gram[N][N], polynomial[N][N];
    static thread_local std::vector<float> next;
    next.resize(long(columns) * N);
    double squares = 0;
    for (long i = 0; i < long(columns) * N; ++i) squares += double(x[i]) * x[i];
    const float scale = 1 / (float(std::sqrt(squares)) + 1e-7f);
    for (long i = 0; i < long(columns) * N; ++i) x[i] *= scale;
    const float none[N] = {};
    for (int step = 0; step < STEPS; ++step) {
        std::memset(gram, 0, sizeof gram);
        outer(columns, x, N, x, N, gram);
        matrix<N>(N, none, [&](int first, auto add) INLINED {
            add(inputs<N>, gram[first], N, gram[0]);
        }, [&](int i, int n, Vec value) INLINED {
            store(polynomial[i] + n, broadcast(B) * load(gram[i] + n) + broadcast(C3) * value);
        });
        float* to = next.data();
        matrix<N>(columns, none, [&](int first, auto add) INLINED {
            add(inputs<N>, x + long(first) * N, N, polynomial[0]);
        }, [&](int i, int n, Vec value) INLINED {
            store(to + long(i) * N + n, broadcast(A) * load(x + long(i) * N + n) + value);
        });
        std::memcpy(x, to, sizeof(float) * columns * N);
    }
}

template <int N>
void one(float* matrix, int rows, int columns, bool tall) {
    static thread_local std::vector<float> x;
    const int count = tall ? rows : columns;  // of vectors along the longer side
    x.assign(long(count) * N, 0);
    auto each = [&](auto move) {
        for (int r = 0; r < rows; ++r)
            for (int c = 0; c < columns; ++c)
                move(matrix[long(r) * columns + c], x[tall ? long(r) * N + c : long(c) * N + r]);
    };
    each([](float& outside, float& inside) { inside = outside; });
    orthogonalise<N>(x.data(), count);
    each([](float& outside, float& inside) { outside = inside; });
}

}  // namespace

extern "C" {

// `count` matrices, row-major, one after another, each of rows[i] x columns[i], each at most 64 on
// its shorter side: replaced by what orthogonalise() makes of them.
void lkdn_orthogonalise(float* matrices, const int* rows, const int* columns, int count,
                        int threads) {
    std::vector<float*> at(count);
    for (int i = 0; i < count; ++i) {
        at[i] = matrices;
        matrices += long(rows[i]) * columns[i];
    }
    std::atomic<int> next{0};
    auto work = [&](int) {
        for (int i; (i = next++) < count;) {
            // Turned, if that is less work; the transposed matrix has the same singular values.
            const bool tall = rows[i] > columns[i];
            const int shorter = tall ? columns[i] : rows[i];
            auto run = shorter <= 16 ? one<16> : shorter <= 32 ? one<32>
                     : shorter <= 48 ? one<48> : one<64>;
            run(at[i], rows[i], columns[i], tall);
        }
    };
    in_threads(std::min(threads, count), work);
}

}
