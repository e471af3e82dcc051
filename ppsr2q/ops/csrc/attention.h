// Attention inside (shifted) windows: roll, partition, scores, bias, mask, softmax, quantizers and the
// product with V in one pass over each head of each window. Scores never leave the cache: forward keeps two
// numbers a query (its largest score and 1 / sum of exponentials), from which backward computes the map
// again, bit for bit.
//
// Every matrix of a window is transposed, [channel][token]: tokens fill the lanes however wide a head is.
#pragma once

#include "parallel.h"
#include "simd.h"
#include "status.h"
#include "tiles.h"
#include "windows.h"

namespace ppsr2q {

constexpr float SMALLEST_EXPONENT = -64.0f;  // Paddle's softmax clips there too, and nothing gets denormal
constexpr int GRADIENT_CHUNKS = 16;          // partial sums of a head's bias gradient, whatever the threads

// q, k, v (batch, height width, heads head_dim) in raster order; table ((2 window - 1)^2, heads).
struct AttentionInputs {
    const float* q;
    const float* k;
    const float* v;
    const float* table;
    float scale;
    Quantizer q_quantizer;  // after the scaling
    Quantizer k_quantizer;
    Quantizer v_quantizer;
    Quantizer map_quantizer;

    AttentionInputs(const float* q, const float* k, const float* v, const float* table, float scale,
                    const float* const* bounds, const int* bits)
        : q(q), k(k), v(v), table(table), scale(scale), q_quantizer(bounds[0], bits[0]),
          k_quantizer(bounds[1], bits[1]), v_quantizer(bounds[2], bits[2]),
          map_quantizer(bounds[3], bits[3]) {}
};

// ---------------------------------------------------------------- scores

// Scores of the queries first .. first + BLOCK_ROWS; rows beyond the window (their q is 0) hold finite
// numbers.
inline void score_block(const AttentionShape& s, const Window& window, const float* q, const float* k,
                        const float* bias, const float* mask, int first, float* scores) {
    const int columns = s.columns();
    const float* bias_row[BLOCK_ROWS];
    const float* mask_row[BLOCK_ROWS];
    for (int r = 0; r < BLOCK_ROWS; r++) {
        const int query = std::min(first + r, s.tokens() - 1);
        bias_row[r] = bias + bias_offset(s, query);
        mask_row[r] = mask + window.region(query) * columns;
    }
    if (window.masked()) {
        auto start = [&](int r, int j) { return load(bias_row[r] + j) + load(mask_row[r] + j); };
        outer_products(q + first, k, s.depth(), columns, start, scores);
    } else {
        auto start = [&](int r, int j) { return load(bias_row[r] + j); };
        outer_products(q + first, k, s.depth(), columns, start, scores);
    }
}

// exp(score - largest), still to be divided by its sum over the row.
inline vf softmax_numerator(vf score, vf largest) {
    return exp_in_range(at_least(score - largest, broadcast(SMALLEST_EXPONENT)));
}

// One row of scores, in place: the quantized map, or just the numerators when nothing is quantized; also the
// largest score and 1 / sum of the numerators.
inline void softmax_row(int columns, const Quantizer& quantizer, float* row, float& largest,
                        float& inverse_sum) {
    vf top = load(row);
    for (int j = LANES; j < columns; j += LANES) {
        top = at_least(load(row + j), top);
    }
    largest = maximum(top);
    vf total = {};
    for (int j = 0; j < columns; j += LANES) {
        vf numerator = softmax_numerator(load(row + j), broadcast(largest));
        total += numerator;
        store(row + j, numerator);
    }
    inverse_sum = 1.0f / sum(total);
    if (quantizer.on) {
        for (int j = 0; j < columns; j += LANES) {
            store(row + j, quantizer.quantize(load(row + j) * inverse_sum));
        }
    }
}

// The division that softmax_row leaves out, once a channel instead of once a key.
inline void divide_by_sums(const AttentionShape& s, const float* inverse_sums, float* mixed) {
    for (int c = 0; c < s.depth(); c++) {
        for (int i = 0; i < s.columns(); i += LANES) {
            float* p = mixed + c * s.columns() + i;
            store(p, load(p) * load(inverse_sums + i));
        }
    }
}

// ---------------------------------------------------------------- forward

// out = Q(softmax(scores)) Q(v), like q; whether all inputs are finite. statistics (windows, heads, 2,
// tokens) are what backward needs: the largest score of each query, and 1 / sum; null when there will be no
// backward.
inline bool window_attention_forward(const AttentionShape& s, const AttentionInputs& in, float* out,
                                     float* statistics) {
    const int columns = s.columns();
    const int matrix = s.matrix();
    Buffer strips(static_cast<std::size_t>(s.heads) * s.bias_size());
    std::atomic<bool> finite(expand_bias(s, in.table, strips.data()));
    const std::size_t scratch_size = 4 * matrix + (4 + BLOCK_ROWS + 2) * columns;
    parallel_tasks(s.windows(), scratch_size, [&](std::int64_t task, float* scratch) {
        float* queries = scratch;
        float* keys = queries + matrix;
        float* values = keys + matrix;
        float* mixed = values + matrix;
        float* mask = mixed + matrix;
        float* map = mask + 4 * columns;
        float* largest = map + BLOCK_ROWS * columns;
        float* inverse_sums = largest + columns;
        const Window window(s, task);
        if (window.masked()) {
            window.fill_mask(mask);
        }
        vf watched = {};
        for (int head = 0; head < s.heads; head++) {
            window.gather(in.q, head, in.scale, queries);
            window.gather(in.k, head, 1.0f, keys);
            window.gather(in.v, head, 1.0f, values);
            watched += quantize_matrix(s, in.q_quantizer, queries, queries);
            watched += quantize_matrix(s, in.k_quantizer, keys, keys);
            watched += quantize_matrix(s, in.v_quantizer, values, values);
            for (int first = 0; first < s.tokens(); first += BLOCK_ROWS) {
                score_block(s, window, queries, keys, strips.data() + head * s.bias_size(), mask, first, map);
                for (int r = 0; r < BLOCK_ROWS; r++) {
                    const int query = first + r;
                    softmax_row(columns, in.map_quantizer, map + r * columns, largest[query],
                                inverse_sums[query]);
                }
                inner_products(map, values, s.depth(), columns, mixed + first);
            }
            if (!in.map_quantizer.on) {
                divide_by_sums(s, inverse_sums, mixed);
            }
            window.scatter(mixed, head, out);
            if (statistics) {
                float* own = statistics + (task * s.heads + head) * s.tokens() * 2;
                std::copy(largest, largest + s.tokens(), own);
                std::copy(inverse_sums, inverse_sums + s.tokens(), own + s.tokens());
            }
        }
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

// ---------------------------------------------------------------- backward

// From the scores and the gradient of the quantized map of one query: the quantized map (weights; when
// nothing is quantized that is scores, overwritten by the map) and, in grad, the gradient of the scores.
inline void softmax_row_backward(int columns, const Quantizer& quantizer, float largest, float inverse_sum,
                                 float* scores, float* weights, float* grad, BoundGradients& bounds) {
    vf dot = {};
    for (int j = 0; j < columns; j += LANES) {
        vf p = softmax_numerator(load(scores + j), broadcast(largest)) * inverse_sum;
        vf g = load(grad + j);
        if (quantizer.on) {
            store(weights + j, quantizer.quantize(p));
            g = quantize_backward(quantizer, p, g, bounds);
            store(grad + j, g);
        }
        store(scores + j, p);
        dot += p * g;
    }
    const float mean = sum(dot);
    for (int j = 0; j < columns; j += LANES) {
        store(grad + j, load(scores + j) * (load(grad + j) - mean));
    }
}

// Places in a thread's scratch for one head of one window.
struct AttentionScratch {
    float *raw_q, *raw_k, *raw_v, *q, *k, *v, *out, *grad_q, *grad_k, *grad_v;
    float *mask, *scores, *grad_scores, *weights;

    static std::size_t size(const AttentionShape& s) {
        return 10 * static_cast<std::size_t>(s.matrix()) + (4 + 3 * BLOCK_ROWS) * s.columns();
    }

    AttentionScratch(const AttentionShape& s, float* p) {
        for (float** matrix : {&raw_q, &raw_k, &raw_v, &q, &k, &v, &out, &grad_q, &grad_k, &grad_v}) {
            *matrix = p;
            p += s.matrix();
        }
        mask = p;
        scores = mask + 4 * s.columns();
        grad_scores = scores + BLOCK_ROWS * s.columns();
        weights = grad_scores + BLOCK_ROWS * s.columns();
    }
};

// Gradients inside one head of one window: fills scratch.grad_q, grad_k, grad_v (of the quantized tensors),
// adds to grad_bias unless it is null, returns those of the map's bounds.
inline BoundGradients head_backward(const AttentionShape& s, const Window& window, const Quantizer& map,
                                    const float* bias, const float* statistics,
                                    const AttentionScratch& scratch, float* grad_bias) {
    BoundGradients bounds;
    const int columns = s.columns();
    const int depth = s.depth();
    for (float* grad : {scratch.grad_q, scratch.grad_k, scratch.grad_v}) {
        std::fill(grad, grad + s.matrix(), 0.0f);
    }
    float* weights = map.on ? scratch.weights : scratch.scores;
    if (map.on) {  // rows beyond the tokens are multiplied, by 0, but never written
        std::fill(weights, weights + BLOCK_ROWS * columns, 0.0f);
    }
    for (int first = 0; first < s.tokens(); first += BLOCK_ROWS) {
        score_block(s, window, scratch.q, scratch.k, bias, scratch.mask, first, scratch.scores);
        auto zero = [](int, int) { return vf{}; };
        outer_products(scratch.out + first, scratch.v, depth, columns, zero, scratch.grad_scores);
        for (int r = 0; r < std::min(BLOCK_ROWS, s.tokens() - first); r++) {
            const int query = first + r;
            float* grad = scratch.grad_scores + r * columns;
            softmax_row_backward(columns, map, statistics[query], statistics[s.tokens() + query],
                                 scratch.scores + r * columns, weights + r * columns, grad, bounds);
            if (grad_bias) {
                float* strip = grad_bias + bias_offset(s, query);
                for (int j = 0; j < columns; j += LANES) {
                    store(strip + j, load(strip + j) + load(grad + j));
                }
            }
        }
        add_outer_products(scratch.out + first, weights, depth, columns, scratch.grad_v);
        add_outer_products(scratch.q + first, scratch.grad_scores, depth, columns, scratch.grad_k);
        inner_products(scratch.grad_scores, scratch.k, depth, columns, scratch.grad_q + first);
    }
    return bounds;
}

struct AttentionGradients {
    float* q;
    float* k;
    float* v;
    float* table;   // may be null
    float* bounds;  // (4, 2): q, k, v, map
};

// Gradients of everything from that of out.
inline void window_attention_backward(const AttentionShape& s, const AttentionInputs& in,
                                      const float* statistics, const float* grad_out,
                                      const AttentionGradients& grads) {
    const std::int64_t chunks = std::min<std::int64_t>(GRADIENT_CHUNKS, s.windows());
    const std::int64_t strip = s.bias_size();
    Buffer strips(s.heads * strip);
    expand_bias(s, in.table, strips.data());
    Buffer grad_strips(grads.table ? s.heads * chunks * strip : 0);
    Buffer partial_bounds(s.heads * chunks * 8);
    parallel_tasks(s.heads * chunks, AttentionScratch::size(s), [&](std::int64_t task, float* memory) {
        const AttentionScratch scratch(s, memory);
        const int head = static_cast<int>(task / chunks);
        const std::int64_t chunk = task % chunks;
        float* grad_bias = grads.table ? grad_strips.data() + task * strip : nullptr;
        if (grad_bias) {
            std::fill(grad_bias, grad_bias + strip, 0.0f);
        }
        double bounds[8] = {};  // sums over millions of scores
        auto add_bounds = [&](int which, const BoundGradients& found) {
            bounds[2 * which] += sum(found.lower);
            bounds[2 * which + 1] += sum(found.upper);
        };
        for (std::int64_t i = chunk * s.windows() / chunks; i < (chunk + 1) * s.windows() / chunks; i++) {
            const Window window(s, i);
            if (window.masked()) {
                window.fill_mask(scratch.mask);
            }
            window.gather(in.q, head, in.scale, scratch.raw_q);
            window.gather(in.k, head, 1.0f, scratch.raw_k);
            window.gather(in.v, head, 1.0f, scratch.raw_v);
            window.gather(grad_out, head, 1.0f, scratch.out);
            quantize_matrix(s, in.q_quantizer, scratch.raw_q, scratch.q);
            quantize_matrix(s, in.k_quantizer, scratch.raw_k, scratch.k);
            quantize_matrix(s, in.v_quantizer, scratch.raw_v, scratch.v);
            const float* own = statistics + (i * s.heads + head) * s.tokens() * 2;
            const float* bias = strips.data() + head * strip;
            add_bounds(3, head_backward(s, window, in.map_quantizer, bias, own, scratch, grad_bias));
            add_bounds(0, unquantize_gradient(s, in.q_quantizer, scratch.raw_q, in.scale, scratch.grad_q));
            add_bounds(1, unquantize_gradient(s, in.k_quantizer, scratch.raw_k, 1.0f, scratch.grad_k));
            add_bounds(2, unquantize_gradient(s, in.v_quantizer, scratch.raw_v, 1.0f, scratch.grad_v));
            window.scatter(scratch.grad_q, head, grads.q);
            window.scatter(scratch.grad_k, head, grads.k);
            window.scatter(scratch.grad_v, head, grads.v);
        }
        std::copy(bounds, bounds + 8, partial_bounds.data() + task * 8);
    });
    add_partials(partial_bounds.data(), s.heads * chunks, 8, 8, grads.bounds);
    if (grads.table) {
        for (int head = 0; head < s.heads; head++) {
            add_partials(grad_strips.data() + head * chunks * strip, chunks, strip, strip,
                         strips.data() + head * strip);
        }
        fold_bias(s, strips.data(), grads.table);
    }
}

}  // namespace ppsr2q
