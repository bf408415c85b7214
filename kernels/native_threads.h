// Threads for one call of a library, and how they compute.

#pragma once

#include <atomic>
#include <system_error>
#include <thread>
#include <vector>
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace {

// Numbers below 1e-38 are taken for zero while this lives.
struct Flushed {
#if defined(__SSE__)
    unsigned before = _mm_getcsr();
    Flushed() { _mm_setcsr(before | 0x8040); }
    ~Flushed() { _mm_setcsr(before); }
#endif
};

// work(0), work(1), .., each in a thread of its own, after begin(how many they are): `count`, or
// fewer where the system has no more.
template <class Begin, class Work>
void in_threads(int count, Begin begin, Work work) {
    std::atomic<int> ready{0};
    std::vector<std::thread> others;
    for (int thread = 1; thread < count; ++thread)
        try {
            others.emplace_back([&, thread] {
                ready.wait(0);
                work(thread);
            });
        } catch (const std::system_error&) {
            break;
        }
    begin(int(others.size()) + 1);
    ready = 1;
    ready.notify_all();
    work(0);
    for (auto& other : others) other.join();
}
template <class Work>
void in_threads(int count, Work work) {
    in_threads(count, [](int) {}, work);
}

}  // namespace
