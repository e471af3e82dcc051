// Forward and backward of [norm ->] quantizer -> linear layers on token rows, built from the products of
// linear.h.
#pragma once

#include "linear.h"

namespace ppsr2q {

// What the layers of one call share. norm is null where there is no normalization (then there is one layer).
struct TokenLinear {
    const float* x;  // [rows][inputs]
    std::int64_t rows;
    int inputs;
    const RowNorm* norm;
    const LinearLayer* layers;
    int count;

    Quantizer quantizer(int i) const { return Quantizer(layers[i].bounds, layers[i].bits); }
};

namespace detail {

inline std::vector<PackedMatrix> pack_weights(const TokenLinear& call, bool transposed) {
    std::vector<PackedMatrix> packed;
    for (int i = 0; i < call.count; i++) {
        const LinearLayer& layer = call.layers[i];
        if (transposed) {
            packed.emplace_back(layer.weight, layer.outputs, call.inputs, true);
        } else {
            packed.emplace_back(layer.weight, call.inputs, layer.outputs, false);
        }
    }
    return packed;
}

// y = sums + bias + residual + skip skip_scale for one vector of columns.
inline vf finish(const LinearLayer& layer, std::int64_t row, int column, vf sums) {
    const std::int64_t at = row * layer.outputs + column;
    const int width = std::min(LANES, layer.outputs - column);
    if (layer.bias) {
        sums += load_up_to(layer.bias + column, width);
    }
    if (layer.residual) {
        sums += load_up_to(layer.residual + at, width);
    }
    if (layer.skip) {
        sums = multiply_add(load_up_to(layer.skip + at, width), load_up_to(layer.skip_scale + column, width), sums);
    }
    store_up_to(layer.y + at, sums, width);
    return sums;
}

}  // namespace detail

// Fills y of every layer; false when something is not finite.
inline bool token_linear_forward(const TokenLinear& call) {
    const int width = padded(call.inputs);
    const std::vector<detail::PackedMatrix> weights = detail::pack_weights(call, false);
    const RowTasks split(call.rows, LINEAR_LEAST);
    std::atomic<bool> finite(true);
    parallel_tasks(split.tasks, 2 * BLOCK_TOKENS * width, [&](std::int64_t task, float* scratch) {
        float* normalized = scratch;
        float* quantized = scratch + BLOCK_TOKENS * width;
        vf watched = {};
        for (std::int64_t row = split.begin(task); row < split.end(task); row += BLOCK_TOKENS) {
            const int rows = static_cast<int>(std::min<std::int64_t>(BLOCK_TOKENS, split.end(task) - row));
            const float* source = call.x + row * call.inputs;
            int stride = call.inputs;
            if (call.norm) {
                for (int r = 0; r < rows; r++) {
                    const float inverse = call.norm->standardize(source + r * stride, normalized + r * width);
                    call.norm->scale_and_shift(normalized + r * width, normalized + r * width);
                    watched = watch(watched, broadcast(inverse));
                }
                source = normalized;
                stride = width;
            }
            for (int i = 0; i < call.count; i++) {
                const Quantizer quantizer = call.quantizer(i);
                const float* factor = source;
                int factor_stride = stride;
                if (quantizer.on) {
                    watched += detail::quantize_rows(source, stride, call.inputs, rows, quantizer, quantized);
                    factor = quantized;
                    factor_stride = width;
                }
                detail::multiply_rows(
                    factor, factor_stride, rows, weights[i], [&](int r, int column, vf sums) {
                        watched = watch(watched, detail::finish(call.layers[i], row + r, column, sums));
                    });
            }
        }
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

namespace detail {

// Where the parts of a task's partial gradients lie: norm scale and shift, then weight, bias, skip_scale and
// bounds of each layer.
struct PartialLayout {
    std::vector<std::int64_t> layer;  // start of every layer's part
    std::int64_t size;
    int inputs;

    explicit PartialLayout(const TokenLinear& call) : inputs(call.inputs) {
        size = 2 * padded(inputs);
        for (int i = 0; i < call.count; i++) {
            layer.push_back(size);
            size += bounds(call.layers[i].outputs) + LANES;
        }
    }
    // Offsets within a layer's part.
    std::int64_t bias(int outputs) const { return static_cast<std::int64_t>(inputs) * padded(outputs); }
    std::int64_t skip_scale(int outputs) const { return bias(outputs) + padded(outputs); }
    std::int64_t bounds(int outputs) const { return skip_scale(outputs) + padded(outputs); }
};

// Gradients of skip and its scale from one block of rows; grad is padded.
inline void skip_backward(const LinearLayer& layer, const LinearGradient& gradient, std::int64_t row, int rows,
                          const float* grad, float* partial_scale) {
    for (int c = 0; c < layer.outputs; c += LANES) {
        const int count = layer.outputs - c;
        const vf scale = load_up_to(layer.skip_scale + c, count);
        vf total = load(partial_scale + c);
        for (int r = 0; r < rows; r++) {
            const std::int64_t at = (row + r) * layer.outputs + c;
            const vf own = load(grad + r * padded(layer.outputs) + c);
            total = multiply_add(own, load_up_to(layer.skip + at, count), total);
            store_up_to(gradient.skip + at, own * scale, count);
        }
        store(partial_scale + c, total);
    }
}

// The gradients of layer i from one block of rows: adds to its partial sums and to the gradient of its input.
inline void layer_backward(const TokenLinear& call, int i, const LinearGradient& gradient,
                           const PackedMatrix& transposed, std::int64_t row, int rows, const float* source,
                           int stride, float* scratch, float* grad_source, float* partial,
                           const PartialLayout& layout, BoundGradients& bounds) {
    const int width = padded(call.inputs);
    const int outputs = call.layers[i].outputs;
    const int padded_outputs = padded(outputs);
    const Quantizer quantizer = call.quantizer(i);
    const float* grad = gradient.y + row * outputs;
    if (outputs != padded_outputs) {  // so that whole vectors can be read
        float* copy = scratch + BLOCK_TOKENS * width;
        for (int r = 0; r < rows; r++) {
            copy_padded(grad + r * outputs, outputs, copy + r * padded_outputs);
        }
        grad = copy;
    }
    if (gradient.weight) {
        quantize_rows(source, stride, call.inputs, rows, quantizer, scratch);
        add_outer_products(scratch, width, grad, padded_outputs, rows, call.inputs, outputs, partial);
    }
    if (gradient.bias) {
        float* total = partial + layout.bias(outputs);
        for (int r = 0; r < rows; r++) {
            for (int c = 0; c < padded_outputs; c += LANES) {
                store(total + c, load(total + c) + load(grad + r * padded_outputs + c));
            }
        }
    }
    if (gradient.skip) {
        skip_backward(call.layers[i], gradient, row, rows, grad, partial + layout.skip_scale(outputs));
    }
    multiply_rows(grad, padded_outputs, rows, transposed, [&](int r, int column, vf sums) {
        if (quantizer.on) {
            const float* p = source + r * stride + column;
            const int exist = std::min(LANES, call.inputs - column);
            sums =
                quantize_backward(quantizer, exist == LANES ? load(p) : load_partial(p, exist), sums, bounds);
        }
        float* to = grad_source + r * width + column;
        store(to, load(to) + sums);
    });
}

}  // namespace detail

// gradients[i].y is given; fills grad_x [rows][inputs], the other members of gradients, and, with a norm,
// grad_scale and grad_shift [inputs]. These three may be null together, without a norm grad_x alone.
inline void token_linear_backward(const TokenLinear& call, const LinearGradient* gradients, float* grad_x,
                                  float* grad_scale, float* grad_shift) {
    const int width = padded(call.inputs);
    int outputs = 0;
    for (int i = 0; i < call.count; i++) {
        outputs = std::max(outputs, padded(call.layers[i].outputs));
    }
    const std::vector<detail::PackedMatrix> weights = detail::pack_weights(call, true);
    const detail::PartialLayout layout(call);
    const RowTasks split(call.rows, LINEAR_LEAST);
    Buffer partial(split.tasks * layout.size);
    const std::size_t block = static_cast<std::size_t>(BLOCK_TOKENS) * width;
    const std::size_t scratch_size = 4 * block + static_cast<std::size_t>(BLOCK_TOKENS) * (outputs + 1);
    parallel_tasks(split.tasks, scratch_size, [&](std::int64_t task, float* scratch) {
        float* standardized = scratch;
        float* normalized = scratch + block;
        float* grad_source = scratch + 2 * block;
        float* inverse = scratch + 3 * block;
        float* free = inverse + BLOCK_TOKENS;
        float* own = partial.data() + task * layout.size;
        std::fill(own, own + layout.size, 0.0f);
        for (std::int64_t row = split.begin(task); row < split.end(task); row += BLOCK_TOKENS) {
            const int rows = static_cast<int>(std::min<std::int64_t>(BLOCK_TOKENS, split.end(task) - row));
            const float* source = call.x + row * call.inputs;
            int stride = call.inputs;
            if (call.norm) {
                for (int r = 0; r < rows; r++) {
                    inverse[r] = call.norm->standardize(source + r * stride, standardized + r * width);
                    call.norm->scale_and_shift(standardized + r * width, normalized + r * width);
                }
                source = normalized;
                stride = width;
            }
            std::fill(grad_source, grad_source + block, 0.0f);
            for (int i = 0; i < call.count; i++) {
                BoundGradients bounds;
                float* layer = own + layout.layer[i];
                detail::layer_backward(call, i, gradients[i], weights[i], row, rows, source, stride, free,
                                       grad_source, layer, layout, bounds);
                float* total = layer + layout.bounds(call.layers[i].outputs);
                total[0] += sum(bounds.lower);
                total[1] += sum(bounds.upper);
            }
            for (int r = 0; grad_x && r < rows; r++) {
                float* to = grad_x + (row + r) * call.inputs;
                if (call.norm) {
                    call.norm->backward(standardized + r * width, inverse[r], grad_source + r * width, to,
                                        own, own + width);
                } else {
                    std::copy(grad_source + r * width, grad_source + r * width + call.inputs, to);
                }
            }
        }
    });
    std::vector<float> total(layout.size);
    add_partials(partial.data(), split.tasks, layout.size, layout.size, total.data());
    if (call.norm && grad_scale) {
        std::copy(total.data(), total.data() + call.inputs, grad_scale);
        std::copy(total.data() + width, total.data() + width + call.inputs, grad_shift);
    }
    for (int i = 0; i < call.count; i++) {
        const float* layer = total.data() + layout.layer[i];
        const int columns = call.layers[i].outputs;
        for (int k = 0; gradients[i].weight && k < call.inputs; k++) {
            std::copy(layer + k * padded(columns), layer + k * padded(columns) + columns,
                      gradients[i].weight + k * columns);
        }
        if (gradients[i].bias) {
            std::copy(layer + layout.bias(columns), layer + layout.bias(columns) + columns,
                      gradients[i].bias);
        }
        if (gradients[i].skip_scale) {
            std::copy(layer + layout.skip_scale(columns), layer + layout.skip_scale(columns) + columns,
                      gradients[i].skip_scale);
        }
        if (gradients[i].bounds) {
            std::copy(layer + layout.bounds(columns), layer + layout.bounds(columns) + 2,
                      gradients[i].bounds);
        }
    }
}

}  // namespace ppsr2q
