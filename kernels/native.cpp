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
#include <optional>
#include <vector>

#include "native_blocks.h"
#include "native_calls.h"
#include "native_enlarge.h"
#include "native_threads.h"

namespace {

constexpr int SHORTEST = 16;  // rows of a tile at least, where there are more
constexpr int OVERLAP = 5;   // rows and columns that a tile computes in vain, on average
constexpr double UNEVEN = 0.1;  // share of a tile by which a thread is late, on average

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

long lkdn_weights() { return sizeof(Weights) / sizeof(float); }
long lkdn_scratch() { return sizeof(Scratch) / sizeof(float); }  // floats that a thread needs
long lkdn_pitch() { return PITCH; }

void lkdn_run(const InferenceCall* call) {
    const Weights& w = *reinterpret_cast<const Weights*>(call->weights);
    const long map = long(call->height) * call->width * PITCH;
    float* maps = call->maps;
    const Image image{call->lr,       call->sr,     maps,       maps + map,
                      maps + 2 * map, call->height, call->width};
    const std::vector<Tile> tiles = cut(call->height, call->width, call->threads);
    constexpr int passes = 2 * BLOCKS + 2;
    std::atomic<int> next[passes] = {};
    std::optional<std::barrier<>> wait;

    auto work = [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        [[maybe_unused]] Bf16Thread bf16;
        auto& own = *reinterpret_cast<Scratch*>(call->scratch + thread * lkdn_scratch());
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
    const int threads = std::min(call->threads, int(tiles.size()));
    in_threads(threads, [&](int count) { wait.emplace(count); }, work);
}

}
