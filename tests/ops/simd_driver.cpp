// Functions of csrc/simd.h on arrays, for test_simd.py. Lengths are multiples of LANES.
#include "simd.h"

using namespace ppsr2q;

namespace {

template <class Function>
void map(const float* x, float* y, long count, const Function& function) {
    for (long i = 0; i < count; i += LANES) {
        store(y + i, function(load(x + i)));
    }
}

}  // namespace

extern "C" {

int lanes() { return LANES; }

void apply_exp(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) { return exp(v); });
}
void apply_sigmoid(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) { return sigmoid(v); });
}
void apply_softplus(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) { return softplus(v); });
}
void apply_softplus_derivative(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) {
        vf derivative;
        softplus(v, derivative);
        return derivative;
    });
}
void apply_gelu(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) { return gelu(v); });
}
void apply_gelu_derivative(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) {
        vf derivative;
        gelu(v, derivative);
        return derivative;
    });
}
void apply_round(const float* x, float* y, long count) {
    map(x, y, count, [](vf v) { return round_half_even(v); });
}

// sum and maximum of every vector, and the finite check of all.
int reduce(const float* x, float* totals, float* maxima, long count) {
    vf watched = {};
    for (long i = 0; i < count; i += LANES) {
        watched = watch(watched, load(x + i));
        totals[i / LANES] = sum(load(x + i));
        maxima[i / LANES] = maximum(load(x + i));
    }
    return all_finite(watched);
}

// One vector: the sums of LANES vectors.
void sum_each(const float* x, float* totals) {
    vf vectors[LANES];
    for (int i = 0; i < LANES; i++) {
        vectors[i] = load(x + i * LANES);
    }
    store(totals, sums(vectors));
}

void copy_partial(const float* x, float* y, int count) { store_partial(y, load_partial(x, count), count); }

void apply_quantizer(const float* x, float* y, long count, const float* bounds, int bits) {
    map(x, y, count, Quantizer(bounds, bits));
}

void apply_quantizer_backward(const float* x, const float* grad, float* grad_x, long count,
                              const float* bounds, int bits, float* grad_bounds) {
    const Quantizer quantizer(bounds, bits);
    BoundGradients gradients;
    for (long i = 0; i < count; i += LANES) {
        store(grad_x + i, quantize_backward(quantizer, load(x + i), load(grad + i), gradients));
    }
    grad_bounds[0] = sum(gradients.lower);
    grad_bounds[1] = sum(gradients.upper);
}
}
