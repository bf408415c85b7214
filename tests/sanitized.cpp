// Calls the entry points of native.cpp and native_training.cpp on images and patches of awkward
// sizes, in memory that is exactly as large as they ask for; compiled with sanitizers by
// test_native_training.py.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../kernels/native_calls.h"

extern "C" {
long lkdn_parameters();
long lkdn_memory(int height, int width);
long lkdn_training_weights();
long lkdn_gradients();
void lkdn_gradient(const GradientCall* call);
long lkdn_weights();
long lkdn_scratch();
long lkdn_pitch();
void lkdn_run(const InferenceCall* call);
void lkdn_run_each(const InferenceCall* call, int images);
}

// Memory at a multiple of 64 bytes with nothing behind it.
template <class T>
struct Exact {
    T* at;
    explicit Exact(long count) : at(static_cast<T*>(std::aligned_alloc(64, bytes(count)))) {
        for (long i = 0; i < bytes(count) / long(sizeof(T)); ++i) at[i] = T(0);
    }
    ~Exact() { std::free(at); }
    static long bytes(long count) { return (count * long(sizeof(T)) + 63) / 64 * 64; }
};

int main() {
    constexpr int sizes[][2] = {{1, 1}, {1, 7}, {7, 1}, {5, 3}, {17, 31}, {9, 130}, {48, 48}, {1, 200}};
    int done = 0;
    for (auto [height, width] : sizes) {
        const long pixels = long(height) * width * IMAGE;
        for (int threads : {1, 3}) {
            const int batch = 2;
            std::vector<float> parameters(lkdn_parameters(), 0.01f), gradient(lkdn_parameters());
            std::vector<unsigned char> lr(batch * pixels, 100);
            std::vector<unsigned char> hr(batch * pixels * SCALE * SCALE, 90);
            std::vector<double> losses(batch);
            Exact<float> weights(lkdn_training_weights());
            Exact<float> memory(threads * lkdn_memory(height, width));
            Exact<float> gradients(batch * lkdn_gradients());
            for (int loss : {0, 1, 2}) {
                const GradientCall call{parameters.data(), lr.data(),       hr.data(),
                                        weights.at,        memory.at,       gradients.at,
                                        losses.data(),     gradient.data(), batch,
                                        height,            width,           loss,
                                        threads,           1e-3f,           1e-5f};
                lkdn_gradient(&call);
            }

            Exact<float> plain(lkdn_weights());
            std::fill_n(plain.at, lkdn_weights(), 0.01f);
            Exact<float> scratch(threads * lkdn_scratch());
            for (int images : {0, 1, 2, 5}) {  // 0: one that the threads share
                const int all = std::max(1, images), own = std::max(1, std::min(threads, images));
                std::vector<float> image(all * IMAGE * (height + 2) * (width + 2), 0.5f);
                std::vector<float> sr(all * pixels * SCALE * SCALE);
                Exact<float> maps(own * 3l * height * width * lkdn_pitch());
                const InferenceCall call{plain.at, image.data(), sr.data(), maps.at,
                                         scratch.at, height, width, threads};
                if (images) lkdn_run_each(&call, images);
                else lkdn_run(&call);
            }
        }
        ++done;
    }
    std::printf("%d sizes\n", done);
}
