// Selective scan with softplus, forward and backward:
//   s_t = softplus(delta_t + bias), h_t = exp(s_t A) h_{t-1} + s_t u_t B_t, y_t = Q(h_t) C_t + D u_t.
// A vector holds channels; one task runs the recurrence of LANES channels of one image, so nothing is shared
// between tasks but the gradients of B and C, which are added up afterwards.
#pragma once

#include "parallel.h"
#include "simd.h"
#include "status.h"

namespace ppsr2q {

constexpr int SCAN_CHUNK = 32;  // tokens between checkpoints of the states, from which backward starts again
constexpr int SCAN_ALIGN = 16;  // channels are padded to this in checkpoints, whatever LANES is

struct ScanShape {
    std::int64_t batch;
    std::int64_t length;
    int channels;

    int groups() const { return padded(channels) / LANES; }
    std::int64_t chunks() const { return (length + SCAN_CHUNK - 1) / SCAN_CHUNK; }
    // Floats of one checkpoint of n states a channel.
    std::int64_t checkpoint_size(int n) const {
        return static_cast<std::int64_t>((channels + SCAN_ALIGN - 1) / SCAN_ALIGN * SCAN_ALIGN) * n;
    }
};

struct ScanInputs {
    const float* u;           // [batch][length][channels]
    const float* delta;       // like u
    const float* A;           // [channels][N]
    const float* B;           // [batch][length][N]
    const float* C;           // like B
    const float* D;           // [channels]
    const float* delta_bias;  // [channels]
    Quantizer quantizer;      // of the states
};

struct ScanGradients {  // shapes of the inputs; bounds [2] may be null without a quantizer
    float* u;
    float* delta;
    float* A;
    float* B;
    float* C;
    float* D;
    float* delta_bias;
    float* bounds;
};

namespace detail {

// LANES neighbouring channels of one image: where they lie, and the constants they need.
template <int N>
struct ScanChannels {
    std::int64_t image;
    int group;
    int width;  // channels that exist
    vf A[N];
    vf D;
    vf bias;

    ScanChannels(const ScanShape& shape, const ScanInputs& in, std::int64_t task)
        : image(task / shape.groups()), group(static_cast<int>(task % shape.groups())) {
        const int first = group * LANES;
        width = std::min(LANES, shape.channels - first);
        for (int n = 0; n < N; n++) {
            A[n] = vf{};
            for (int lane = 0; lane < width; lane++) {
                A[n][lane] = in.A[(first + lane) * N + n];
            }
        }
        D = load_partial(in.D + first, width);
        bias = load_partial(in.delta_bias + first, width);
    }

    std::int64_t offset(const ScanShape& shape, std::int64_t token) const {
        return (image * shape.length + token) * shape.channels + group * LANES;
    }
    std::int64_t checkpoint(const ScanShape& shape, std::int64_t chunk) const {
        return (image * shape.chunks() + chunk) * shape.checkpoint_size(N) + group * LANES * N;
    }
    vf read(const float* p) const { return width == LANES ? load(p) : load_partial(p, width); }
    void write(float* p, vf x) const {
        if (width == LANES) {
            store(p, x);
        } else {
            store_partial(p, x, width);
        }
    }
};

template <int N, bool QUANTIZED>
bool scan_channels_forward(const ScanShape& shape, const ScanInputs& in, std::int64_t task, float* y,
                           float* checkpoints, float* states) {
    const ScanChannels<N> own(shape, in, task);
    vf h[N] = {};
    vf watched = watch(watch(vf{}, own.D), own.bias);
    for (int n = 0; n < N; n++) {
        watched = watch(watched, own.A[n]);
    }
    for (std::int64_t t = 0; t < shape.length; t++) {
        if (checkpoints && t % SCAN_CHUNK == 0) {
            float* p = checkpoints + own.checkpoint(shape, t / SCAN_CHUNK);
            for (int n = 0; n < N; n++) {
                store(p + n * LANES, h[n]);
            }
        }
        const std::int64_t offset = own.offset(shape, t);
        const float* B = in.B + (own.image * shape.length + t) * N;
        const float* C = in.C + (own.image * shape.length + t) * N;
        const vf u = own.read(in.u + offset);
        const vf delta = own.read(in.delta + offset);
        watched = watch(watch(watched, u), delta);
        const vf timestep = softplus(delta + own.bias);
        const vf driven = timestep * u;
        vf result = own.D * u;
#pragma GCC unroll 16
        for (int n = 0; n < N; n++) {
            h[n] = exp(timestep * own.A[n]) * h[n] + driven * broadcast(B[n]);
            const vf seen = QUANTIZED ? in.quantizer.quantize(h[n]) : h[n];
            result = multiply_add(seen, broadcast(C[n]), result);
        }
        watched = watch(watched, result);
        own.write(y + offset, result);
        if (states) {
            for (int lane = 0; lane < own.width; lane++) {
                for (int n = 0; n < N; n++) {
                    states[(offset + lane) * N + n] = h[n][lane];
                }
            }
        }
    }
    for (int n = 0; n < N; n++) {
        watched = watch(watched, h[n]);  // a state that was ever infinite still is, or is NaN
    }
    return all_finite(watched);
}

// What one task of the backward pass adds to the gradients of the parameters.
template <int N>
struct ScanParameterSums {
    vf A[N] = {};
    vf D = {};
    vf bias = {};
    BoundGradients bounds;
};

// Floats of a token in the partial gradients of B and C: N and N, padded to whole vectors.
template <int N>
constexpr int scan_partial_width() {
    return padded(2 * N);
}

// Scratch of one backward task: the states and decays of a chunk, and what softplus gave.
template <int N>
struct ScanScratch {
    vf states[SCAN_CHUNK + 1][N];
    vf decays[SCAN_CHUNK][N];
    vf timesteps[SCAN_CHUNK];
    vf slopes[SCAN_CHUNK];
};

template <int N, bool QUANTIZED>
void scan_channels_backward(const ScanShape& shape, const ScanInputs& in, std::int64_t task,
                            const float* checkpoints, const float* grad_y, const ScanGradients& out,
                            float* partial, ScanParameterSums<N>& added, ScanScratch<N>& scratch) {
    constexpr int WIDTH = scan_partial_width<N>();
    const ScanChannels<N> own(shape, in, task);
    ScanParameterSums<N> parameters;
    vf grad_h[N] = {};  // arriving from the tokens behind
    for (std::int64_t chunk = shape.chunks() - 1; chunk >= 0; chunk--) {
        const std::int64_t begin = chunk * SCAN_CHUNK;
        const int tokens = static_cast<int>(std::min<std::int64_t>(SCAN_CHUNK, shape.length - begin));
        const float* start = checkpoints + own.checkpoint(shape, chunk);
        for (int n = 0; n < N; n++) {
            scratch.states[0][n] = load(start + n * LANES);
        }
        for (int k = 0; k < tokens; k++) {
            const std::int64_t offset = own.offset(shape, begin + k);
            const float* B = in.B + (own.image * shape.length + begin + k) * N;
            const vf timestep = softplus(own.read(in.delta + offset) + own.bias, scratch.slopes[k]);
            const vf driven = timestep * own.read(in.u + offset);
            scratch.timesteps[k] = timestep;
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                const vf decay = exp(timestep * own.A[n]);
                scratch.decays[k][n] = decay;
                scratch.states[k + 1][n] = decay * scratch.states[k][n] + driven * broadcast(B[n]);
            }
        }
        for (int k = tokens - 1; k >= 0; k--) {
            const std::int64_t offset = own.offset(shape, begin + k);
            const float* B = in.B + (own.image * shape.length + begin + k) * N;
            const float* C = in.C + (own.image * shape.length + begin + k) * N;
            const vf grad = own.read(grad_y + offset);
            const vf u = own.read(in.u + offset);
            const vf timestep = scratch.timesteps[k];
            const vf driven = timestep * u;
            vf grad_driven = {};
            vf grad_timestep = {};
            vf shared[WIDTH] =
                {};  // gradients of B and C, one vector a state, still to be added over the lanes
#pragma GCC unroll 16
            for (int n = 0; n < N; n++) {
                const vf h = scratch.states[k + 1][n];
                const vf decay = scratch.decays[k][n];
                vf grad_state = grad * broadcast(C[n]);
                if (QUANTIZED) {
                    shared[N + n] = grad * in.quantizer.quantize(h);
                    grad_state = quantize_backward(in.quantizer, h, grad_state, parameters.bounds);
                } else {
                    shared[N + n] = grad * h;
                }
                grad_state += grad_h[n];
                grad_h[n] = grad_state * decay;
                const vf grad_exponent = grad_h[n] * scratch.states[k][n];
                grad_timestep = multiply_add(grad_exponent, own.A[n], grad_timestep);
                parameters.A[n] = multiply_add(grad_exponent, timestep, parameters.A[n]);
                shared[n] = grad_state * driven;
                grad_driven = multiply_add(grad_state, broadcast(B[n]), grad_driven);
            }
            grad_timestep = multiply_add(grad_driven, u, grad_timestep);
            const vf grad_delta = grad_timestep * scratch.slopes[k];
            own.write(out.u + offset, grad * own.D + grad_driven * timestep);
            own.write(out.delta + offset, grad_delta);
            parameters.bias += grad_delta;
            parameters.D = multiply_add(grad, u, parameters.D);
            float* row = partial + (task * shape.length + begin + k) * WIDTH;
            for (int first = 0; first < WIDTH; first += LANES) {
                store(row + first, sums(*reinterpret_cast<vf(*)[LANES]>(shared + first)));
            }
        }
    }
    added = parameters;
}

// The gradients of B and C: partial sums of all groups of channels.
template <int N>
void scan_add_groups(const ScanShape& shape, const float* partial, const ScanGradients& out) {
    constexpr int WIDTH = scan_partial_width<N>();
    const RowTasks split(shape.batch * shape.length, 256);
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        for (std::int64_t row = split.begin(task); row < split.end(task); row++) {
            const std::int64_t image = row / shape.length;
            const std::int64_t t = row % shape.length;
            float total[WIDTH] = {};
            for (int group = 0; group < shape.groups(); group++) {
                const float* p = partial + ((image * shape.groups() + group) * shape.length + t) * WIDTH;
                for (int i = 0; i < WIDTH; i++) {
                    total[i] += p[i];
                }
            }
            std::copy(total, total + N, out.B + row * N);
            std::copy(total + N, total + 2 * N, out.C + row * N);
        }
    });
}

template <int N>
void scan_add_images(const ScanShape& shape, const ScanParameterSums<N>* parameter_sums,
                     const ScanGradients& out) {
    std::fill(out.A, out.A + shape.channels * N, 0.0f);
    std::fill(out.D, out.D + shape.channels, 0.0f);
    std::fill(out.delta_bias, out.delta_bias + shape.channels, 0.0f);
    BoundGradients bounds;
    for (std::int64_t task = 0; task < shape.batch * shape.groups(); task++) {
        const ScanParameterSums<N>& own = parameter_sums[task];
        const int first = static_cast<int>(task % shape.groups()) * LANES;
        for (int lane = 0; lane < LANES && first + lane < shape.channels; lane++) {
            for (int n = 0; n < N; n++) {
                out.A[(first + lane) * N + n] += own.A[n][lane];
            }
            out.D[first + lane] += own.D[lane];
            out.delta_bias[first + lane] += own.bias[lane];
        }
        bounds += own.bounds;
    }
    if (out.bounds) {
        out.bounds[0] = sum(bounds.lower);
        out.bounds[1] = sum(bounds.upper);
    }
}

}  // namespace detail

// y like u; checkpoints [batch][chunks][checkpoint_size] or null; states [batch][length][channels][N] or
// null. False when something is not finite.
template <int N>
bool selective_scan_forward(const ScanShape& shape, const ScanInputs& in, float* y, float* checkpoints,
                            float* states) {
    std::atomic<bool> finite(true);
    parallel_tasks(shape.batch * shape.groups(), 0, [&](std::int64_t task, float*) {
        const bool own =
            in.quantizer.on
                ? detail::scan_channels_forward<N, true>(shape, in, task, y, checkpoints, states)
                : detail::scan_channels_forward<N, false>(shape, in, task, y, checkpoints, states);
        if (!own) {
            finite = false;
        }
    });
    return finite;
}

template <int N>
void selective_scan_backward(const ScanShape& shape, const ScanInputs& in, const float* checkpoints,
                             const float* grad_y, const ScanGradients& out) {
    using Sums = detail::ScanParameterSums<N>;
    using Scratch = detail::ScanScratch<N>;
    const std::int64_t tasks = shape.batch * shape.groups();
    Buffer partial(tasks * shape.length * detail::scan_partial_width<N>());
    Buffer memory_of_sums(tasks * sizeof(Sums) / sizeof(float));
    Sums* parameter_sums = reinterpret_cast<Sums*>(memory_of_sums.data());
    parallel_tasks(tasks, sizeof(Scratch) / sizeof(float), [&](std::int64_t task, float* memory) {
        Scratch& scratch = *reinterpret_cast<Scratch*>(memory);
        if (in.quantizer.on) {
            detail::scan_channels_backward<N, true>(shape, in, task, checkpoints, grad_y, out, partial.data(),
                                                    parameter_sums[task], scratch);
        } else {
            detail::scan_channels_backward<N, false>(shape, in, task, checkpoints, grad_y, out,
                                                     partial.data(), parameter_sums[task], scratch);
        }
    });
    detail::scan_add_groups<N>(shape, partial.data(), out);
    detail::scan_add_images<N>(shape, parameter_sums, out);
}

}  // namespace ppsr2q
