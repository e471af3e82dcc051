// The C interface of the kernels: pointers to contiguous float32 (int32 where said) and sizes; functions return a
// Status and never throw. Shapes are in the headers.
#include <new>

#include "parallel.h"
#include "quantize.h"
#include "simd.h"
#include "status.h"

#define PPSR2Q_API extern "C" __attribute__((visibility("default")))

namespace {

// Runs a kernel whose scratch may not fit into memory.
template <class Kernel>
int guarded(const Kernel& kernel) {
    try {
        return kernel();
    } catch (const std::bad_alloc&) {
        return ppsr2q::OUT_OF_MEMORY;
    }
}

}  // namespace

// ---------------------------------------------------------------- the library itself

PPSR2Q_API const char* ppsr2q_instruction_set() {
#if defined(__AVX512F__)
    return "AVX-512";
#elif defined(__AVX2__)
    return "AVX2";
#elif defined(__x86_64__) || defined(__i386__)
    return "SSE2";
#elif defined(__ARM_NEON)
    return "NEON";
#else
    return "generic";
#endif
}

PPSR2Q_API int ppsr2q_get_threads() { return omp_get_max_threads(); }

PPSR2Q_API void ppsr2q_set_threads(int count) { omp_set_num_threads(count); }

// ---------------------------------------------------------------- quantizer

PPSR2Q_API int ppsr2q_fake_quantize_forward(const float* x, const float* bounds, int bits, int64_t count, float* y) {
    return guarded([&] { return ppsr2q::fake_quantize_forward(x, bounds, bits, count, y); });
}

PPSR2Q_API int ppsr2q_fake_quantize_backward(const float* x, const float* bounds, int bits, const float* grad_y,
                                             int64_t count, float* grad_x, float* grad_bounds) {
    return guarded([&] {
        return ppsr2q::fake_quantize_backward(x, bounds, bits, grad_y, count, grad_x, grad_bounds);
    });
}
