// The two operators that mix neighbours with a depth-wise convolution. What the convolution reads is
// quantized (and normalized) into a plane in cache; backward computes it again from the input, which is all
// that is kept.
#pragma once

#include <atomic>

#include "convolution.h"
#include "normalize_group.h"
#include "parallel.h"
#include "simd.h"

namespace ppsr2q {

// Taps and bias of a convolution, repeated to its period.
struct RepeatedTaps {
    Buffer taps, flipped, bias;

    RepeatedTaps(const DepthwiseShape& s, const float* weight, const float* bias_or_null)
        : taps(s.taps() * s.period()), flipped(s.taps() * s.period()), bias(s.period()) {
        repeat_taps(s, weight, false, taps.data());
        repeat_taps(s, weight, true, flipped.data());
        repeat_bias(s, bias_or_null, bias.data());
    }
};

// Gradients of parameters; every one but bounds may be null. norm_* belong to gated_mixing only.
struct DepthwiseGradients {
    float* x;
    float* norm_weight;
    float* norm_bias;
    float* weight;
    float* bias;
    float* bounds;
};

// What one task adds up of the gradients of parameters, all tasks side by side.
struct DepthwisePartials {
    std::int64_t taps, bias, norm_weight, norm_bias, bounds, size;
    std::int64_t tasks;
    Buffer memory;

    explicit DepthwisePartials(const DepthwiseShape& s)
        : taps(0), bias(taps + s.taps() * s.period()), norm_weight(bias + s.period()),
          norm_bias(norm_weight + padded(s.channels)), bounds(norm_bias + padded(s.channels)),
          size(bounds + 2), tasks(s.tiles()), memory(tasks * size) {
        std::fill(memory.data(), memory.data() + tasks * size, 0.0f);
    }

    float* of(std::int64_t task) { return memory.data() + task * size; }

    void add_to(const DepthwiseShape& s, const DepthwiseGradients& grads) {
        Buffer total(size);
        add_partials(memory.data(), tasks, size, size, total.data());
        if (grads.weight) {
            fold_taps(s, total.data() + taps, grads.weight);
        }
        if (grads.bias) {
            fold_bias(s, total.data() + bias, grads.bias);
        }
        if (grads.norm_weight) {
            std::copy_n(total.data() + norm_weight, s.channels, grads.norm_weight);
        }
        if (grads.norm_bias) {
            std::copy_n(total.data() + norm_bias, s.channels, grads.norm_bias);
        }
        std::copy_n(total.data() + bounds, 2, grads.bounds);
    }
};

// ---------------------------------------------------------------- gated mixing

// x (batch, height width, 2 channels), weight (channels, 1, kernel, kernel), bias (channels) or null.
struct GatedMixing {
    DepthwiseShape shape;
    const float* x;
    Affine norm;
    const float* weight;
    const float* bias;
    Quantizer quantizer;

    // x of a pixel; its gate lies channels further.
    std::int64_t offset(std::int64_t image, int y, int column) const {
        return ((image * shape.height + y) * shape.width + column) * 2 * shape.channels;
    }

    // The quantized, normalized gates of a tile and its halo; group is scratch.
    void fill_gates(const ImageTile& tile, const Plane& plane, PixelGroup& group) const {
        plane.fill(shape, tile, [&](int y, int column, int pixels, float* row) {
            const float* gate = x + offset(tile.image, y, column) + shape.channels;
            for (int first = 0; first < pixels; first += LANES) {
                group.read(gate + first * 2 * shape.channels, 2 * shape.channels,
                           std::min(LANES, pixels - first), norm.epsilon);
                group.normalize(norm, quantizer, row + first * shape.channels);
            }
        });
    }
};

// y (batch, height width, channels) = gelu(p) conv(Q(norm(gelu(g)))) with x = (p, g); whether y is finite.
inline bool gated_mixing_forward(const GatedMixing& in, float* y) {
    const DepthwiseShape& s = in.shape;
    RepeatedTaps taps(s, in.weight, in.bias);
    std::atomic<bool> finite(true);
    const int row_size = Plane::row_size(s.channels, 0);
    const std::size_t plane_size = Plane::size(s.channels, s.halo());
    const std::size_t scratch_size = plane_size + row_size + PixelGroup::size(s.channels);
    parallel_tasks(s.tiles(), scratch_size, [&](std::int64_t task, float* p) {
        const ImageTile tile(s, task);
        const Plane gates(p, s.channels, s.halo());
        float* mixed = p + plane_size;
        PixelGroup group(mixed + row_size, s.channels);
        in.fill_gates(tile, gates, group);
        vf watched = {};
        for (int row = 0; row < tile.rows; row++) {
            convolve_row(s, gates.at(row - s.halo(), -s.halo()), gates.stride, taps.taps.data(),
                         taps.bias.data(), tile.columns, mixed);
            const std::int64_t first = in.offset(tile.image, tile.top + row, tile.left);
            for (int column = 0; column < tile.columns; column++) {
                const float* value = in.x + first + column * 2 * s.channels;
                float* out = y + first / 2 + column * s.channels;
                for (int c = 0; c < s.channels; c += LANES) {
                    const int count = s.channels - c;
                    vf product = gelu(load_up_to(value + c, count)) *
                                 load_up_to(mixed + column * s.channels + c, count);
                    watched = watch(watched, product);
                    store_up_to(out + c, product, count);
                }
            }
        }
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

// Gradients of everything from grad_y.
inline void gated_mixing_backward(const GatedMixing& in, const float* grad_y,
                                  const DepthwiseGradients& grads) {
    const DepthwiseShape& s = in.shape;
    const int channels = s.channels;
    const int halo = s.halo();
    RepeatedTaps taps(s, in.weight, in.bias);
    DepthwisePartials partials(s);
    const int row_size = Plane::row_size(channels, 0);
    const std::size_t plane_size = Plane::size(channels, halo);
    const std::size_t scratch_size = 2 * plane_size + row_size + PixelGroup::size(channels);
    parallel_tasks(s.tiles(), scratch_size, [&](std::int64_t task, float* scratch) {
        const ImageTile tile(s, task);
        const Plane gates(scratch, channels, halo);
        const Plane upstream(scratch + plane_size, channels, halo);  // gradient of the convolution's output
        float* row = scratch + 2 * plane_size;
        PixelGroup group(row + row_size, channels);
        float* partial = partials.of(task);
        in.fill_gates(tile, gates, group);
        upstream.fill(s, tile, [&](int y, int column, int pixels, float* out) {
            const std::int64_t first = in.offset(tile.image, y, column);
            for (int i = 0; i < pixels; i++) {
                for (int c = 0; c < channels; c += LANES) {
                    const int count = channels - c;
                    vf value = gelu(load_up_to(in.x + first + i * 2 * channels + c, count));
                    vf grad = load_up_to(grad_y + first / 2 + i * channels + c, count);
                    store_up_to(out + i * channels + c, value * grad, count);
                }
            }
        });
        BoundGradients bounds;
        for (int y = 0; y < tile.rows; y++) {
            const std::int64_t first = in.offset(tile.image, tile.top + y, tile.left);
            const float* window = gates.at(y - halo, -halo);
            const float* out_grad = upstream.at(y, 0);
            convolve_row(s, window, gates.stride, taps.taps.data(), taps.bias.data(), tile.columns, row);
            for (int i = 0; i < tile.columns; i++) {
                const std::int64_t pixel = first + i * 2 * channels;
                for (int c = 0; c < channels; c += LANES) {
                    const int count = channels - c;
                    vf derivative;
                    gelu(load_up_to(in.x + pixel + c, count), derivative);
                    vf grad =
                        load_up_to(grad_y + pixel / 2 + c, count) * load_up_to(row + i * channels + c, count);
                    store_up_to(grads.x + pixel + c, grad * derivative, count);
                }
            }
            if (grads.weight) {
                add_tap_gradients(s, window, gates.stride, out_grad, tile.columns, partial + partials.taps);
            }
            if (grads.bias) {
                add_bias_gradient(s, out_grad, tile.columns, partial + partials.bias);
            }
            convolve_row(s, upstream.at(y - halo, -halo), upstream.stride, taps.flipped.data(), nullptr,
                         tile.columns, row);
            for (int i = 0; i < tile.columns; i += LANES) {
                const std::int64_t gate = first + i * 2 * channels + channels;
                group.read(in.x + gate, 2 * channels, std::min(LANES, tile.columns - i), in.norm.epsilon);
                group.normalize_backward(in.norm, in.quantizer, row + i * channels, grads.x + gate,
                                         2 * channels, partial + partials.norm_weight,
                                         partial + partials.norm_bias, bounds);
            }
        }
        partial[partials.bounds] = sum(bounds.lower);
        partial[partials.bounds + 1] = sum(bounds.upper);
    });
    partials.add_to(s, grads);
}

// ---------------------------------------------------------------- positional gate

// x (batch, height width, channels), weight (channels, 1, kernel, kernel), bias (channels) or null.
struct PositionalGate {
    DepthwiseShape shape;
    const float* x;
    const float* weight;
    const float* bias;
    Quantizer quantizer;

    std::int64_t offset(std::int64_t image, int y, int column) const {
        return ((image * shape.height + y) * shape.width + column) * shape.channels;
    }

    // Quantized x of a tile and the plane's halo.
    void fill_quantized(const ImageTile& tile, const Plane& plane) const {
        plane.fill(shape, tile, [&](int y, int column, int pixels, float* row) {
            const float* p = x + offset(tile.image, y, column);
            const int count = pixels * shape.channels;
            int i = 0;
            for (; i + LANES <= count; i += LANES) {
                store(row + i, quantizer(load(p + i)));
            }
            store_partial(row + i, quantizer(load_partial(p + i, count - i)), count - i);
        });
    }
};

// y = x sigmoid(conv(Q(x))); whether it is finite.
inline bool positional_gate_forward(const PositionalGate& in, float* y) {
    const DepthwiseShape& s = in.shape;
    RepeatedTaps taps(s, in.weight, in.bias);
    std::atomic<bool> finite(true);
    const std::size_t plane_size = Plane::size(s.channels, s.halo());
    const std::size_t scratch_size = plane_size + Plane::row_size(s.channels, 0);
    parallel_tasks(s.tiles(), scratch_size, [&](std::int64_t task, float* scratch) {
        const ImageTile tile(s, task);
        const Plane quantized(scratch, s.channels, s.halo());
        float* row = scratch + plane_size;
        in.fill_quantized(tile, quantized);
        vf watched = {};
        for (int i = 0; i < tile.rows; i++) {
            convolve_row(s, quantized.at(i - s.halo(), -s.halo()), quantized.stride, taps.taps.data(),
                         taps.bias.data(), tile.columns, row);
            const std::int64_t first = in.offset(tile.image, tile.top + i, tile.left);
            const int count = tile.columns * s.channels;
            for (int j = 0; j < count; j += LANES) {
                const int lanes = count - j;
                vf product = load_up_to(in.x + first + j, lanes) * sigmoid(load_up_to(row + j, lanes));
                watched = watch(watched, product);
                store_up_to(y + first + j, product, lanes);
            }
        }
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

// Gradients of everything from grad_y.
inline void positional_gate_backward(const PositionalGate& in, const float* grad_y,
                                     const DepthwiseGradients& grads) {
    const DepthwiseShape& s = in.shape;
    const int channels = s.channels;
    const int halo = s.halo();
    RepeatedTaps taps(s, in.weight, in.bias);
    DepthwisePartials partials(s);
    // The convolution is needed in the halo too, and there reads a halo of its own.
    const std::size_t wide_size = Plane::size(channels, 2 * halo);
    const std::size_t plane_size = Plane::size(channels, halo);
    const int row_size = Plane::row_size(channels, halo);
    parallel_tasks(s.tiles(), wide_size + plane_size + row_size, [&](std::int64_t task, float* scratch) {
        const ImageTile tile(s, task);
        const Plane quantized(scratch, channels, 2 * halo);
        const Plane upstream(scratch + wide_size, channels, halo);  // gradient of the convolution's output
        float* row = scratch + wide_size + plane_size;
        float* partial = partials.of(task);
        in.fill_quantized(tile, quantized);
        upstream.fill(s, tile, [&](int y, int column, int pixels, float* out) {
            convolve_row(s, quantized.at(y - tile.top - halo, column - tile.left - halo), quantized.stride,
                         taps.taps.data(), taps.bias.data(), pixels, row);
            const std::int64_t first = in.offset(tile.image, y, column);
            const bool inside = y >= tile.top && y < tile.top + tile.rows;
            const int begin = (tile.left - column) * channels;
            const int end = begin + tile.columns * channels;
            for (int i = 0; i < pixels * channels; i += LANES) {
                const int lanes = pixels * channels - i;
                vf gate = sigmoid(load_up_to(row + i, lanes));
                vf passed = load_up_to(grad_y + first + i, lanes) * gate;
                store_up_to(row + i, passed, lanes);
                vf grad = passed * load_up_to(in.x + first + i, lanes) * (1.0f - gate);
                store_up_to(out + i, grad, lanes);
            }
            if (inside) {  // what reaches x directly; the rest is added below
                std::copy(row + begin, row + end, grads.x + first + begin);
            }
        });
        BoundGradients bounds;
        for (int y = 0; y < tile.rows; y++) {
            const std::int64_t first = in.offset(tile.image, tile.top + y, tile.left);
            const float* out_grad = upstream.at(y, 0);
            if (grads.weight) {
                add_tap_gradients(s, quantized.at(y - halo, -halo), quantized.stride, out_grad, tile.columns,
                                  partial + partials.taps);
            }
            if (grads.bias) {
                add_bias_gradient(s, out_grad, tile.columns, partial + partials.bias);
            }
            convolve_row(s, upstream.at(y - halo, -halo), upstream.stride, taps.flipped.data(), nullptr,
                         tile.columns, row);
            for (int i = 0; i < tile.columns * channels; i += LANES) {
                const int lanes = tile.columns * channels - i;
                vf grad = load_up_to(row + i, lanes);
                if (in.quantizer.on) {
                    grad = quantize_backward(in.quantizer, load_up_to(in.x + first + i, lanes), grad, bounds);
                }
                store_up_to(grads.x + first + i, grad + load_up_to(grads.x + first + i, lanes), lanes);
            }
        }
        partial[partials.bounds] = sum(bounds.lower);
        partial[partials.bounds + 1] = sum(bounds.upper);
    });
    partials.add_to(s, grads);
}

}  // namespace ppsr2q
