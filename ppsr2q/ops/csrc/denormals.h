// Floats below 1.2e-38 as zeros: processors take a hundred cycles over each, and a backward pass is full of them
// (an unlikely key of a softmax times a small gradient).
#pragma once

#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ppsr2q {

// For this thread and the life of this object; what the thread had set before comes back. Nothing is flushed on
// processors other than x86 and 64-bit ARM.
class FlushDenormals {
public:
#if defined(__SSE2__)
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | FLUSH_TO_ZERO | DENORMALS_ARE_ZEROS); }
    ~FlushDenormals() { _mm_setcsr(before_); }
#elif defined(__aarch64__)
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        set(before_ | FLUSH_TO_ZERO);
    }
    ~FlushDenormals() { set(before_); }
#else
    FlushDenormals() {}
    ~FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

private:
#if defined(__SSE2__)
    static constexpr unsigned FLUSH_TO_ZERO = 1u << 15, DENORMALS_ARE_ZEROS = 1u << 6;
    unsigned before_;
#elif defined(__aarch64__)
    static constexpr std::uint64_t FLUSH_TO_ZERO = 1ull << 24;  // of inputs and results alike
    static void set(std::uint64_t control) { asm volatile("msr fpcr, %0" : : "r"(control) : "memory"); }
    std::uint64_t before_;
#endif
};

}  // namespace ppsr2q
