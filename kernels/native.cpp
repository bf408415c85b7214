// LKDN's inference form on a CPU, compiled for the machine it runs on by kernels/native.py, which
// defines CHANNELS, BLOCKS, IMAGE (channels of the image) and SCALE.
//
// Three feature maps (height*width, PITCH), channels last, lie in memory. Everything between two of
// them lives in ring buffers of a few rows of a strip, small enough for the second-level cache: a
// thread walks down its strip and each layer follows the one before as soon as its rows are there.
// At the image's borders the rings hold the zeros that the convolutions pad with.

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <cstring>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "native_matrix.h"

namespace {

constexpr int STRIP = 128;   // columns of a strip at most, without what it needs to each side
constexpr int SHORTEST = 16;  // rows of a tile at least, where there are more
constexpr int OVERLAP = 5;   // rows and columns that a tile computes in vain, on average
constexpr double UNEVEN = 0.1;  // share of a tile by which a thread is late, on average
constexpr int MARGIN = 16;   // columns to each side of a strip's own in a ring
constexpr int ROW = STRIP + 2 * MARGIN;

// What the weights are, in order; every matrix (inputs, outputs), padded with zeros.
struct Block {
    Operand<C, WIDE> refine[3];
    float refine_bias[3][WIDE];
    float depthwise[3][9][PITCH], depthwise_bias[3][PITCH];
    Operand<C, HALF> last;
    float last_depthwise[9][HALF], last_bias[HALF];
    Operand<D, PITCH> merge[4];
    float merge_bias[PITCH];
    Operand<C, PITCH> point;
    float point_bias[PITCH];
    float spread[25][PITCH], spread_bias[PITCH], large[25][PITCH], large_bias[PITCH];
    Operand<C, PITCH> c6;
    float c6_bias[PITCH], scale[PITCH], shift[PITCH], eps[16];
    Operand<C, PITCH> fusion;
};
struct Weights {
    float first[9 * IMAGE][PITCH], first_bias[PITCH];
    Block blocks[BLOCKS];
    float fusion_bias[PITCH];
    Operand<C, PITCH> smooth;
    float smooth_depthwise[9][PITCH], smooth_bias[PITCH];
    Operand<C, OUT> enlarge[3][6];  // for a row of taps, transformed
    float enlarge_bias[OUT];
};

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
    float waves[3][6][STRIP / 4][PITCH], products[6][STRIP / 4][OUT], pixels[STRIP][OUT];
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

// Winograd's F(4, 3): four neighbouring sums of three products each by six products in all. What
// enters them, from six values; what the sums are, from six products.
INLINE void input_transform(const float* x, float (&wave)[6][STRIP / 4][PITCH], int tile) {
    for (int n = 0; n < PITCH; n += LANES) {
        Vec d[6];
        for (int i = 0; i < 6; ++i) d[i] = load(x + i * PITCH + n);
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

INLINE void output_transform(float (&products)[6][STRIP / 4][OUT], int tile, const float* bias,
                             float* out) {
    for (int n = 0; n < OUT; n += LANES) {
        Vec m[6];
        for (int i = 0; i < 6; ++i) m[i] = load(products[i][tile] + n);
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
        for (int i = 0; i < 6; ++i)
            multiply(tiles, ZEROS, into<OUT>(s.products[i][0]),
                     term(s.waves[(row + 2) % 3][i][0], PITCH, w.enlarge[0][i]),
                     term(s.waves[row % 3][i][0], PITCH, w.enlarge[1][i]),
                     term(s.waves[(row + 1) % 3][i][0], PITCH, w.enlarge[2][i]));
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

// Strips and bands, as many as make the last thread finish first: a tile also computes some of its
// neighbours' pixels, and no thread can help another with the tile it has begun.
std::vector<Tile> cut(int height, int width, int threads) {
    const int fewest = (width + STRIP - 1) / STRIP;
    int strips = fewest, bands = 1;
    double least = 1e300;
    for (int i = fewest; i < fewest + threads + 1; ++i)
        for (int j = 1; j <= std::max(1, std::min(2 * threads, height / SHORTEST)); ++j) {
            const double tile = (double(width) / i + OVERLAP) * (double(height) / j + OVERLAP);
            const double time = tile * ((i * j + threads - 1) / threads + UNEVEN);
            if (time < least) least = time, strips = i, bands = j;
        }
    std::vector<Tile> tiles;
    for (int i = 0; i < bands; ++i)
        for (int j = 0; j < strips; ++j)
            tiles.push_back({int(long(height) * i / bands), int(long(height) * (i + 1) / bands),
                             int(long(width) * j / strips), int(long(width) * (j + 1) / strips)});
    return tiles;
}

}  // namespace

extern "C" {

// Whether this process may use what the library was compiled for.
int lkdn_enable() { return enable_bf16(); }

long lkdn_weights() { return sizeof(Weights) / sizeof(float); }
long lkdn_scratch() { return sizeof(Scratch) / sizeof(float); }  // floats that a thread needs
long lkdn_pitch() { return PITCH; }

// One image. maps: 3 * height * width * PITCH floats; scratch: threads * lkdn_scratch().
void lkdn_run(const float* weights, const float* lr, float* sr, float* maps, float* scratch,
              int height, int width, int threads) {
    const Weights& w = *reinterpret_cast<const Weights*>(weights);
    const long map = long(height) * width * PITCH;
    const Image image{lr, sr, maps, maps + map, maps + 2 * map, height, width};
    const std::vector<Tile> tiles = cut(height, width, threads);
    constexpr int passes = 2 * BLOCKS + 2;
    std::atomic<int> next[passes] = {};
    std::optional<std::barrier<>> wait;
    std::atomic<int> ready{0};

    auto work = [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        [[maybe_unused]] Bf16Thread bf16;
        auto& own = *reinterpret_cast<Scratch*>(scratch + thread * lkdn_scratch());
        for (int pass = 0; pass < passes; ++pass) {
            for (int i; (i = next[pass]++) < int(tiles.size());) {
                if (pass == 0)
                    first(w, image, tiles[i], own);
                else if (pass == passes - 1)
                    enlarge(w, image, tiles[i], own.enlarge);
                else if (pass % 2)
                    distil(w.blocks[pass / 2], image, tiles[i], own.distil);
                else
                    attend(w, pass / 2 - 1, image, tiles[i], own.attend);
            }
            wait->arrive_and_wait();
        }
    };
    std::vector<std::thread> others;
    threads = std::min(threads, int(tiles.size()));
    for (int thread = 1; thread < threads; ++thread)
        try {
            others.emplace_back([&, thread] {
                ready.wait(0);
                work(thread);
            });
        } catch (const std::system_error&) {  // fewer threads than hoped for
            break;
        }
    wait.emplace(int(others.size()) + 1);
    ready = 1;
    ready.notify_all();
    work(0);
    for (auto& other : others) other.join();
}

}
