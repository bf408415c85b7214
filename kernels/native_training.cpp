// LKDN's loss on a batch of patches and the gradient of every plain kernel, on a CPU; compiled for
// the machine it runs on by kernels/native_training.py, which defines what native.h names.
//
// A patch is a task, and a thread takes the next one: it runs the patch forward, keeping in its own
// memory what the way back needs, and back, leaving the patch's gradients in memory of their own.
// Those are added in the order of the patches, so a step gives the same bits however many threads
// there are and whatever else the machine does.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <vector>

#include "native_backward.h"
#include "native_calls.h"
#include "native_forward.h"
#include "native_threads.h"

namespace {

inline double Task::run(Loss kind, float share, Weights& g) {
    std::memset(static_cast<void*>(&g), 0, sizeof g);
    read();
    for (int block = 0; block < BLOCKS; ++block) forward(block);
    enlarge();
    const double sum = loss(kind, share);
    enlarge_back(g);
    for (int block = BLOCKS; block-- > 0;) backward(block, g.blocks[block]);
    read_back(g);
    return sum;
}

struct Flat {
    Weights weights;
    Operands operands;
};

}  // namespace

extern "C" {

long lkdn_parameters() {
    auto weights = std::make_unique<Weights>();
    std::vector<float> flat(sizeof(Weights) / sizeof(float));  // more than there are
    long count = 0;
    for_each(*weights, flat.data(), [&](float&, float&) { ++count; });
    return count;
}

// Floats that a thread needs for patches of this size, zeros in the beginning; those of the kernels
// and what is made of them; those of a patch's gradients.
long lkdn_memory(int height, int width) {
    Arena arena{nullptr};
    Memory(arena, height, width);
    return arena.used;
}
long lkdn_training_weights() { return (sizeof(Flat) + 63) / 64 * 16; }
long lkdn_gradients() { return (sizeof(Weights) + 63) / 64 * 16; }

void lkdn_gradient(const GradientCall* call) {
    const int batch = call->batch, height = call->height, width = call->width;
    float* gradients = call->gradients;
    Flat& flat = *reinterpret_cast<Flat*>(call->weights);
    std::memset(static_cast<void*>(&flat.weights), 0, sizeof flat.weights);
    for_each(flat.weights, const_cast<float*>(call->parameters),
             [](float& in, float& out) { in = out; });
    for (Block& b : flat.weights.blocks) b.eps[0] = call->eps;
    prepare(flat.operands, flat.weights);
    std::atomic<int> next{0};
    in_threads(std::min(call->threads, batch), [&](int thread) {
        [[maybe_unused]] Flushed flushed;
        Bf16Thread bf16;
        Arena arena{call->memory + thread * lkdn_memory(height, width)};
        Memory own(arena, height, width);
        for (int i; (i = next++) < batch;) {
            const long pixels = long(height) * width * IMAGE;
            const unsigned char *lr = call->lr + i * pixels,
                                *hr = call->hr + i * pixels * SCALE * SCALE;
            Task task{flat.weights, flat.operands, own, {lr, hr, height, width}};
            Weights& own_gradient = *reinterpret_cast<Weights*>(gradients + i * lkdn_gradients());
            call->losses[i] = call->share * task.run(Loss(call->loss), call->share, own_gradient);
        }
    });
    // Added in the patches' order, a part of the gradient after the other, each part by one thread.
    const long total = lkdn_gradients(), part = 4096;
    std::atomic<long> begun{0};
    in_threads(std::min(call->threads, batch), [&](int) {
        for (long at; (at = part * begun++) < total;)
            for (int i = 1; i < batch; ++i) {
                const float* own = gradients + i * total;
                for (long j = at; j < std::min(at + part, total); j += LANES)
                    store(gradients + j, load(gradients + j) + load(own + j));
            }
    });
    Weights& sum = *reinterpret_cast<Weights*>(gradients);
    for (Block& b : sum.blocks) {
        centre<PITCH>(b.c6[0], C);
        centre<PITCH>(b.c6_bias, 1);
    }
    for_each(sum, call->gradient, [](float& in, float& out) { out = in; });
}

}
