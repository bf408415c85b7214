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

long map_of(const InferenceCall& call) { return long(call.height) * call.width * PITCH; }

Image image_of(const InferenceCall& call, int number, float* maps) {
    const long map = map_of(call), lr = long(call.height + 2) * (call.width + 2) * IMAGE;
    const long sr = long(call.height) * call.width * OUTS;
    return {call.lr + number * lr, call.sr + number * sr, maps, maps + map, maps + 2 * map,
            call.height, call.width};
}

constexpr long SCRATCH = sizeof(Scratch) / sizeof(float);  // floats that a thread needs
Scratch& scratch_of(const InferenceCall& call, int thread) {
    return *reinterpret_cast<Scratch*>(call.scratch + thread * SCRATCH);
}

constexpr int PASSES = 2 * BLOCKS + 2;

// A pass of the network on a tile: each reads what the ones before it left of the whole image.
void run(int pass, const Weights& w, const Image& image, Tile tile, Scratch& own) {
    if (pass == 0)
        first(w, image, tile, own);
    else if (pass == PASSES - 1)
        enlarge(w, image, tile, own.enlarge);
    else if (pass % 2)
        distil(w.blocks[pass / 2], image, tile, own.distil);
    else
        attend(w, pass / 2 - 1, image, tile, own.attend);
}

}  // namespace

extern "C" {

long lkdn_weights() { return sizeof(Weights) / sizeof(float); }
long lkdn_scratch() { return SCRATCH; }
long lkdn_pitch() { return PITCH; }
long lkdn_half() { return HALF; }

// An image by all threads, each of them a part of every pass.
void lkdn_run(const InferenceCall* call) {
    const Weights& w = *reinterpret_cast<const Weights*>(call->weights);
    const Image image = image_of(*call, 0, call->maps);
    const std::vector<Tile> tiles = cut(call->height, call->width, call->threads);
    std::atomic<int> next[PASSES] = {};
    std::optional<std::barrier<>> wait;

    auto work = [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        [[maybe_unused]] Bf16Thread bf16;
        Scratch& own = scratch_of(*call, thread);
        for (int pass = 0; pass < PASSES; ++pass) {
            for (int i; (i = next[pass]++) < int(tiles.size());) run(pass, w, image, tiles[i], own);
            wait->arrive_and_wait();
        }
    };
    const int threads = std::min(call->threads, int(tiles.size()));
    in_threads(threads, [&](int count) { wait.emplace(count); }, work);
}

// `images` images one after the other in memory, each by one thread with maps of its own.
void lkdn_run_each(const InferenceCall* call, int images) {
    const Weights& w = *reinterpret_cast<const Weights*>(call->weights);
    const std::vector<Tile> tiles = cut(call->height, call->width, 1);
    std::atomic<int> next{0};
    in_threads(std::min(call->threads, images), [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        [[maybe_unused]] Bf16Thread bf16;
        Scratch& own = scratch_of(*call, thread);
        float* maps = call->maps + thread * 3 * map_of(*call);
        for (int i; (i = next++) < images;) {
            const Image image = image_of(*call, i, maps);
            for (int pass = 0; pass < PASSES; ++pass)
                for (const Tile& tile : tiles) run(pass, w, image, tile, own);
        }
    });
}

}
