// The C interface of the kernels: pointers to contiguous float32 (int32 where said) and sizes; functions
// return a Status and never throw. Shapes are in the headers.
#include <new>
#include <type_traits>

#include "attention.h"
#include "dense_convolution.h"
#include "depthwise.h"
#include "distance.h"
#include "parallel.h"
#include "quantize.h"
#include "routing.h"
#include "scan.h"
#include "simd.h"
#include "state_space.h"
#include "status.h"
#include "token_linear.h"

#define PPSR2Q_API extern "C" __attribute__((visibility("default")))

namespace {

// Runs a kernel whose scratch may not fit into memory.
template <class Kernel>
int guarded(const Kernel& kernel) {
    try {
        return kernel();
    } catch (const std::bad_alloc&) {
        return ppsr2q::OUT_OF_MEMORY;
    } catch (...) {
        return ppsr2q::FAILED;
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

PPSR2Q_API int ppsr2q_get_threads() {
    return ppsr2q::available_threads();
}

PPSR2Q_API void ppsr2q_set_threads(int count) {
#if defined(_OPENMP)
    omp_set_num_threads(count);
#else
    (void)count;
#endif
}

// ---------------------------------------------------------------- quantizer

PPSR2Q_API int ppsr2q_fake_quantize_forward(const float* x, const float* bounds, int bits, int64_t count,
                                            float* y) {
    return guarded([&] { return ppsr2q::fake_quantize_forward(x, bounds, bits, count, y); });
}

PPSR2Q_API int ppsr2q_fake_quantize_backward(const float* x, const float* bounds, int bits,
                                             const float* grad_y, int64_t count, float* grad_x,
                                             float* grad_bounds) {
    return guarded(
        [&] { return ppsr2q::fake_quantize_backward(x, bounds, bits, grad_y, count, grad_x, grad_bounds); });
}

// ---------------------------------------------------------------- distance of features

// inverses [2][batch] are filled with the inverse norms, or, without unit, with ones.
PPSR2Q_API int ppsr2q_feature_distance_forward(const float* a, const float* b, int64_t batch, int64_t size,
                                               int unit, float* inverses, float* distance) {
    const ppsr2q::FeatureDistance in{a, b, batch, size};
    return guarded([&] {
        if (unit) {
            ppsr2q::inverse_norms(in, inverses);
        } else {
            std::fill(inverses, inverses + 2 * batch, 1.0f);
        }
        if (ppsr2q::feature_distance_forward(in, inverses, distance)) {
            return static_cast<int>(ppsr2q::OK);
        }
        return ppsr2q::blame({{a, batch * size}, {b, batch * size}});
    });
}

PPSR2Q_API int ppsr2q_feature_distance_backward(const float* a, const float* b, int64_t batch, int64_t size,
                                                const float* inverses, const float* grad_distance,
                                                float* grad_a) {
    return guarded([&] {
        ppsr2q::feature_distance_backward({a, b, batch, size}, inverses, grad_distance, grad_a);
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- linear layers

namespace {

// A TokenLinear with its norm; scale null means that there is none.
template <class Kernel>
int with_token_linear(const float* x, int64_t rows, int inputs, const float* scale, const float* shift,
                      float epsilon, const ppsr2q::LinearLayer* layers, int count, const Kernel& kernel) {
    return guarded([&] {
        if (!scale) {
            return kernel(ppsr2q::TokenLinear{x, rows, inputs, nullptr, layers, count});
        }
        const ppsr2q::RowNorm norm(scale, shift, epsilon, inputs);
        return kernel(ppsr2q::TokenLinear{x, rows, inputs, &norm, layers, count});
    });
}

}  // namespace

// Finite arguments are counted: x, scale, shift, then weight, bias, residual, skip and skip_scale of every
// layer.
PPSR2Q_API int ppsr2q_token_linear_forward(const float* x, int64_t rows, int inputs, const float* scale,
                                           const float* shift, float epsilon,
                                           const ppsr2q::LinearLayer* layers, int count) {
    for (int i = 0; i < count; i++) {
        if (!ppsr2q::valid_bounds(layers[i].bounds, layers[i].bits)) {
            return ppsr2q::BAD_BOUNDS + i;
        }
    }
    return with_token_linear(x, rows, inputs, scale, shift, epsilon, layers, count, [&](const auto& call) {
        if (ppsr2q::token_linear_forward(call)) {
            return static_cast<int>(ppsr2q::OK);
        }
        std::vector<ppsr2q::Argument> arguments = {{x, rows * inputs}, {scale, inputs}, {shift, inputs}};
        for (int i = 0; i < count; i++) {
            const ppsr2q::LinearLayer& layer = layers[i];
            arguments.push_back({layer.weight, static_cast<int64_t>(inputs) * layer.outputs});
            arguments.push_back({layer.bias, layer.outputs});
            arguments.push_back({layer.residual, rows * layer.outputs});
            arguments.push_back({layer.skip, rows * layer.outputs});
            arguments.push_back({layer.skip_scale, layer.outputs});
        }
        return ppsr2q::blame(arguments);
    });
}

PPSR2Q_API int ppsr2q_token_linear_backward(const float* x, int64_t rows, int inputs, const float* scale,
                                            const float* shift, float epsilon,
                                            const ppsr2q::LinearLayer* layers, int count,
                                            const ppsr2q::LinearGradient* gradients, float* grad_x,
                                            float* grad_scale, float* grad_shift) {
    return with_token_linear(x, rows, inputs, scale, shift, epsilon, layers, count, [&](const auto& call) {
        ppsr2q::token_linear_backward(call, gradients, grad_x, grad_scale, grad_shift);
        return static_cast<int>(ppsr2q::OK);
    });
}

PPSR2Q_API int ppsr2q_token_mean(const float* x, int64_t batch, int64_t tokens, int channels,
                                 const float* scale, const float* shift, float epsilon, float* mean) {
    return with_token_linear(x, tokens, channels, scale, shift, epsilon, nullptr, 0, [&](const auto& call) {
        ppsr2q::token_mean(x, batch, tokens, channels, call.norm, mean);
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- selective scan

namespace {

// Calls kernel(std::integral_constant<int, N>()) for the number of states; these are compiled in.
template <class Kernel>
int with_states(int states, const Kernel& kernel) {
    switch (states) {
        case 4: return kernel(std::integral_constant<int, 4>());
        case 8: return kernel(std::integral_constant<int, 8>());
        case 16: return kernel(std::integral_constant<int, 16>());
        default: return ppsr2q::UNSUPPORTED;
    }
}

}  // namespace

PPSR2Q_API int ppsr2q_selective_scan_forward(const float* u, const float* delta, const float* A,
                                             const float* B, const float* C, const float* D,
                                             const float* delta_bias, const float* bounds, int bits,
                                             int64_t batch, int64_t length, int channels, int states,
                                             float* y, float* checkpoints, float* all_states) {
    if (!ppsr2q::valid_bounds(bounds, bits)) {
        return ppsr2q::BAD_BOUNDS;
    }
    const ppsr2q::ScanShape shape{batch, length, channels};
    const ppsr2q::ScanInputs in{u, delta, A, B, C, D, delta_bias, ppsr2q::Quantizer(bounds, bits)};
    return guarded([&] {
        return with_states(states, [&](auto n) {
            if (ppsr2q::selective_scan_forward<n.value>(shape, in, y, checkpoints, all_states)) {
                return static_cast<int>(ppsr2q::OK);
            }
            const int64_t tokens = batch * length;
            return ppsr2q::blame({{u, tokens * channels},
                                  {delta, tokens * channels},
                                  {A, channels * states},
                                  {B, tokens * states},
                                  {C, tokens * states},
                                  {D, channels},
                                  {delta_bias, channels}});
        });
    });
}

PPSR2Q_API int ppsr2q_selective_scan_backward(const float* u, const float* delta, const float* A,
                                              const float* B, const float* C, const float* D,
                                              const float* delta_bias, const float* bounds, int bits,
                                              int64_t batch, int64_t length, int channels, int states,
                                              const float* checkpoints, const float* grad_y, float* grad_u,
                                              float* grad_delta, float* grad_A, float* grad_B, float* grad_C,
                                              float* grad_D, float* grad_delta_bias, float* grad_bounds) {
    const ppsr2q::ScanShape shape{batch, length, channels};
    const ppsr2q::ScanInputs in{u, delta, A, B, C, D, delta_bias, ppsr2q::Quantizer(bounds, bits)};
    const ppsr2q::ScanGradients out{grad_u, grad_delta, grad_A,          grad_B,
                                    grad_C, grad_D,     grad_delta_bias, grad_bounds};
    return guarded([&] {
        return with_states(states, [&](auto n) {
            ppsr2q::selective_scan_backward<n.value>(shape, in, checkpoints, grad_y, out);
            return static_cast<int>(ppsr2q::OK);
        });
    });
}

// ---------------------------------------------------------------- window attention

// bounds and bits: four quantizers, q, k, v and map; bounds[i] is not read where bits[i] is 0.
PPSR2Q_API int ppsr2q_window_attention_forward(const float* q, const float* k, const float* v,
                                               const float* table, float scale, const float* const* bounds,
                                               const int* bits, int64_t batch, int height, int width,
                                               int heads, int head_dim, int window, int shift, float* out,
                                               float* statistics) {
    for (int i = 0; i < 4; i++) {
        if (!ppsr2q::valid_bounds(bounds[i], bits[i])) {
            return ppsr2q::BAD_BOUNDS + i;
        }
    }
    const ppsr2q::AttentionShape shape{batch, height, width, heads, head_dim, window, shift};
    const ppsr2q::AttentionInputs in(q, k, v, table, scale, bounds, bits);
    return guarded([&] {
        if (ppsr2q::window_attention_forward(shape, in, out, statistics)) {
            return static_cast<int>(ppsr2q::OK);
        }
        const int64_t count = batch * height * width * heads * head_dim;
        const int64_t side = 2 * window - 1;
        return ppsr2q::blame({{q, count}, {k, count}, {v, count}, {table, side * side * heads}});
    });
}

PPSR2Q_API int ppsr2q_window_attention_backward(const float* q, const float* k, const float* v,
                                                const float* table, float scale, const float* const* bounds,
                                                const int* bits, int64_t batch, int height, int width,
                                                int heads, int head_dim, int window, int shift,
                                                const float* statistics, const float* grad_out, float* grad_q,
                                                float* grad_k, float* grad_v, float* grad_table,
                                                float* grad_bounds) {
    const ppsr2q::AttentionShape shape{batch, height, width, heads, head_dim, window, shift};
    const ppsr2q::AttentionInputs in(q, k, v, table, scale, bounds, bits);
    const ppsr2q::AttentionGradients gradients{grad_q, grad_k, grad_v, grad_table, grad_bounds};
    return guarded([&] {
        ppsr2q::window_attention_backward(shape, in, statistics, grad_out, gradients);
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- depth-wise operators

PPSR2Q_API int ppsr2q_gated_mixing_forward(const float* x, const float* norm_weight, const float* norm_bias,
                                           float epsilon, const float* weight, const float* bias,
                                           const float* bounds, int bits, int64_t batch, int height,
                                           int width, int channels, int kernel, float* y) {
    if (!ppsr2q::valid_bounds(bounds, bits)) {
        return ppsr2q::BAD_BOUNDS;
    }
    const ppsr2q::GatedMixing in{
        {batch, height, width, channels, kernel}, x, {norm_weight, norm_bias, epsilon}, weight, bias,
        ppsr2q::Quantizer(bounds, bits)};
    return guarded([&] {
        if (ppsr2q::gated_mixing_forward(in, y)) {
            return static_cast<int>(ppsr2q::OK);
        }
        return ppsr2q::blame({{x, batch * height * width * 2 * channels},
                              {norm_weight, channels},
                              {norm_bias, channels},
                              {weight, channels * kernel * kernel},
                              {bias, channels}});
    });
}

PPSR2Q_API int ppsr2q_gated_mixing_backward(const float* x, const float* norm_weight, const float* norm_bias,
                                            float epsilon, const float* weight, const float* bias,
                                            const float* bounds, int bits, int64_t batch, int height,
                                            int width, int channels, int kernel, const float* grad_y,
                                            float* grad_x, float* grad_norm_weight, float* grad_norm_bias,
                                            float* grad_weight, float* grad_bias, float* grad_bounds) {
    const ppsr2q::GatedMixing in{
        {batch, height, width, channels, kernel}, x, {norm_weight, norm_bias, epsilon}, weight, bias,
        ppsr2q::Quantizer(bounds, bits)};
    const ppsr2q::DepthwiseGradients gradients{grad_x,      grad_norm_weight, grad_norm_bias,
                                               grad_weight, grad_bias,        grad_bounds};
    return guarded([&] {
        ppsr2q::gated_mixing_backward(in, grad_y, gradients);
        return static_cast<int>(ppsr2q::OK);
    });
}

PPSR2Q_API int ppsr2q_positional_gate_forward(const float* x, const float* weight, const float* bias,
                                              const float* bounds, int bits, int64_t batch, int height,
                                              int width, int channels, int kernel, float* y) {
    if (!ppsr2q::valid_bounds(bounds, bits)) {
        return ppsr2q::BAD_BOUNDS;
    }
    const ppsr2q::PositionalGate in{
        {batch, height, width, channels, kernel}, x, weight, bias, ppsr2q::Quantizer(bounds, bits)};
    return guarded([&] {
        if (ppsr2q::positional_gate_forward(in, y)) {
            return static_cast<int>(ppsr2q::OK);
        }
        return ppsr2q::blame(
            {{x, batch * height * width * channels}, {weight, channels * kernel * kernel}, {bias, channels}});
    });
}

PPSR2Q_API int ppsr2q_positional_gate_backward(const float* x, const float* weight, const float* bias,
                                               const float* bounds, int bits, int64_t batch, int height,
                                               int width, int channels, int kernel, const float* grad_y,
                                               float* grad_x, float* grad_weight, float* grad_bias,
                                               float* grad_bounds) {
    const ppsr2q::PositionalGate in{
        {batch, height, width, channels, kernel}, x, weight, bias, ppsr2q::Quantizer(bounds, bits)};
    const ppsr2q::DepthwiseGradients gradients{grad_x, nullptr, nullptr, grad_weight, grad_bias, grad_bounds};
    return guarded([&] {
        ppsr2q::positional_gate_backward(in, grad_y, gradients);
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- convolution over all channels

PPSR2Q_API int ppsr2q_convolution_forward(const float* x, const float* weight, const float* bias,
                                          const float* residual, const float* bounds, int bits, int64_t batch,
                                          int height, int width, int inputs, int outputs, int kernel,
                                          float* y) {
    if (!ppsr2q::valid_bounds(bounds, bits)) {
        return ppsr2q::BAD_BOUNDS;
    }
    const ppsr2q::DenseConvolution in{
        {batch, height, width, inputs, kernel}, outputs, x, weight, bias, residual, {bounds, bits}};
    return guarded([&] {
        if (ppsr2q::dense_convolution_forward(in, y)) {
            return static_cast<int>(ppsr2q::OK);
        }
        const int64_t pixels = batch * height * width;
        return ppsr2q::blame(
            {{x, pixels * inputs}, {weight, in.weight_size()}, {bias, outputs}, {residual, pixels * outputs}});
    });
}

PPSR2Q_API int ppsr2q_convolution_backward(const float* x, const float* weight, const float* bias,
                                           const float* residual, const float* bounds, int bits,
                                           int64_t batch, int height, int width, int inputs, int outputs,
                                           int kernel, const float* grad_y, float* grad_x, float* grad_weight,
                                           float* grad_bias, float* grad_bounds) {
    const ppsr2q::DenseConvolution in{
        {batch, height, width, inputs, kernel}, outputs, x, weight, bias, residual, {bounds, bits}};
    return guarded([&] {
        ppsr2q::dense_convolution_backward(in, grad_y, {grad_x, grad_weight, grad_bias, grad_bounds});
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- routing

PPSR2Q_API int ppsr2q_route(const float* logits, int64_t batch, int64_t tokens, int classes, int32_t* index,
                            int32_t* order, int32_t* inverse) {
    return guarded([&] { return ppsr2q::route(logits, batch, tokens, classes, index, order, inverse); });
}

PPSR2Q_API int ppsr2q_gather_rows(const float* x, const int32_t* order, const float* residual,
                                  int64_t batch, int64_t tokens, int channels, float* y) {
    return guarded([&] { return ppsr2q::gather_rows(x, order, residual, batch, tokens, channels, y); });
}

PPSR2Q_API int ppsr2q_routed_prompt_forward(const float* table, const int32_t* index, int64_t rows,
                                            int classes, int width, float* prompt) {
    return guarded([&] { return ppsr2q::routed_prompt_forward(table, index, rows, classes, width, prompt); });
}

PPSR2Q_API int ppsr2q_routed_prompt_backward(const float* logits, const float* table, const int32_t* index,
                                             const float* grad, int64_t rows, int classes, int width,
                                             float* grad_logits, float* grad_table) {
    return guarded([&] {
        ppsr2q::routed_prompt_backward(logits, table, index, grad, rows, classes, width, grad_logits,
                                       grad_table);
        return static_cast<int>(ppsr2q::OK);
    });
}

// ---------------------------------------------------------------- state space model

PPSR2Q_API int ppsr2q_state_space_forward(const ppsr2q::StateSpaceInputs* in, int64_t batch, int64_t length,
                                          int channels, int states, float* y, float* checkpoints) {
    for (int i = 0; i < ppsr2q::detail::QUANTIZED_TENSORS; i++) {
        if (!ppsr2q::valid_bounds(in->bounds[i], in->bits[i])) {
            return ppsr2q::BAD_BOUNDS + i;
        }
    }
    const ppsr2q::ScanShape shape{batch, length, channels};
    return guarded([&] {
        return with_states(states, [&](auto n) {
            if (ppsr2q::state_space_forward<n.value>(shape, *in, y, checkpoints)) {
                return static_cast<int>(ppsr2q::OK);
            }
            const int64_t tokens = batch * length;
            return ppsr2q::blame({{in->u, tokens * channels},
                                  {in->prompt, tokens * states},
                                  {in->x_proj, static_cast<int64_t>(in->rank + 2 * states) * channels},
                                  {in->dt_proj, static_cast<int64_t>(channels) * in->rank},
                                  {in->A, channels * states},
                                  {in->D, channels},
                                  {in->dt_bias, channels}});
        });
    });
}

PPSR2Q_API int ppsr2q_state_space_backward(const ppsr2q::StateSpaceInputs* in, int64_t batch, int64_t length,
                                           int channels, int states, const float* checkpoints,
                                           const float* grad_y,
                                           const ppsr2q::StateSpaceGradients* gradients) {
    const ppsr2q::ScanShape shape{batch, length, channels};
    return guarded([&] {
        return with_states(states, [&](auto n) {
            ppsr2q::state_space_backward<n.value>(shape, *in, checkpoints, grad_y, *gradients);
            return static_cast<int>(ppsr2q::OK);
        });
    });
}
