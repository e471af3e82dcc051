// Where attention finds its operands: windows of the rolled image, their masks, and the relative position biases.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"
#include "tiles.h"

namespace ppsr2q {

constexpr float MASKED_SCORE = -100.0f;  // as in the official networks
constexpr float NO_SCORE = -1e30f;       // of columns that only fill a tile

struct AttentionShape {
    std::int64_t batch;
    int height;
    int width;
    int heads;
    int head_dim;
    int window;
    int shift;

    int tokens() const { return window * window; }
    int columns() const { return (tokens() + COLUMN_MULTIPLE - 1) / COLUMN_MULTIPLE * COLUMN_MULTIPLE; }
    int depth() const { return (head_dim + TILE_CHANNELS - 1) / TILE_CHANNELS * TILE_CHANNELS; }
    int matrix() const { return depth() * columns(); }
    int windows_across() const { return width / window; }
    std::int64_t windows() const { return batch * (height / window) * windows_across(); }
    int bias_size() const { return window * (2 * window - 1) * window + COLUMN_MULTIPLE; }
};

// ---------------------------------------------------------------- bias

// The bias of query (iy, ix) over all keys in raster order is one contiguous piece of strip ix: with the strip's rows in
// descending order of iy - jy, it begins at row window - 1 - iy.
inline int bias_offset(const AttentionShape& s, int query) {
    const int iy = query / s.window;
    const int ix = query % s.window;
    return (ix * (2 * s.window - 1) + s.window - 1 - iy) * s.window;
}

// Calls body(place in the strips, row of the table) for every pair of a row offset and two columns.
template <class Body>
inline void for_each_bias(const AttentionShape& s, const Body& body) {
    const int side = 2 * s.window - 1;
    int place = 0;
    for (int ix = 0; ix < s.window; ix++) {
        for (int row = 0; row < side; row++) {
            for (int jx = 0; jx < s.window; jx++) {
                body(place++, (side - 1 - row) * side + ix - jx + s.window - 1);
            }
        }
    }
}

// table ((2 window - 1)^2, heads) -> strips (heads, bias_size); whether all of it is finite.
inline bool expand_bias(const AttentionShape& s, const float* table, float* strips) {
    float watched = 0.0f;
    std::fill(strips, strips + static_cast<std::int64_t>(s.heads) * s.bias_size(), 0.0f);
    for_each_bias(s, [&](int place, int row) {
        for (int head = 0; head < s.heads; head++) {
            const float bias = table[row * s.heads + head];
            watched += bias * 0.0f;
            strips[head * s.bias_size() + place] = bias;
        }
    });
    return watched == 0.0f;
}

// The transpose of expand_bias: gradients of the strips -> gradient of the table.
inline void fold_bias(const AttentionShape& s, const float* strips, float* table) {
    const int side = 2 * s.window - 1;
    std::fill(table, table + side * side * s.heads, 0.0f);
    for_each_bias(s, [&](int place, int row) {
        for (int head = 0; head < s.heads; head++) {
            table[row * s.heads + head] += strips[head * s.bias_size() + place];
        }
    });
}

// ---------------------------------------------------------------- windows

// Where the tokens of one window lie, and which of them the roll alone made neighbours.
struct Window {
    const AttentionShape& s;
    std::int64_t image;
    int top, left;
    bool last_row, last_column;

    Window(const AttentionShape& s, std::int64_t index) : s(s) {
        const int across = s.windows_across();
        const int down = s.height / s.window;
        image = index / (across * down);
        const int row = static_cast<int>(index / across % down);
        const int column = static_cast<int>(index % across);
        top = row * s.window + s.shift;
        left = column * s.window + s.shift;
        last_row = s.shift > 0 && row == down - 1;
        last_column = s.shift > 0 && column == across - 1;
    }

    // A border of the image runs through it, or its keys do not fill whole tiles.
    bool masked() const { return last_row || last_column || s.columns() != s.tokens(); }

    int region(int token) const {
        const int border = s.window - s.shift;
        return (last_row && token / s.window >= border ? 2 : 0) + (last_column && token % s.window >= border ? 1 : 0);
    }

    // mask[region of the query][key]: what is added to a score; 4 x columns.
    void fill_mask(float* mask) const {
        for (int query_region = 0; query_region < 4; query_region++) {
            for (int key = 0; key < s.columns(); key++) {
                float* entry = mask + query_region * s.columns() + key;
                *entry = key >= s.tokens() ? NO_SCORE : region(key) == query_region ? 0.0f : MASKED_SCORE;
            }
        }
    }

    // body(token, index of its first channel) for the tokens of a head in raster order.
    template <class Body>
    void for_each_token(int head, const Body& body) const {
        const std::int64_t channels = static_cast<std::int64_t>(s.heads) * s.head_dim;
        int token = 0;
        for (int i = 0; i < s.window; i++) {
            const int y = (top + i) % s.height;
            for (int j = 0; j < s.window; j++) {
                const int x = (left + j) % s.width;
                body(token++, ((image * s.height + y) * s.width + x) * channels + head * s.head_dim);
            }
        }
    }

    // One head of x, times scale, quantized, into a matrix (depth, columns); what lies beyond the head or the window
    // is 0. What it returns is for all_finite.
    vf gather(const float* x, int head, float scale, const Quantizer& quantizer, float* matrix) const {
        gather_raw(x, head, scale, matrix);
        vf watched = {};
        for (int c = 0; c < s.head_dim; c++) {
            float* row = matrix + c * s.columns();
            for (int i = 0; i < s.tokens(); i += LANES) {
                vf value = load(row + i);
                watched = watch(watched, value);
                store(row + i, quantizer(value));
            }
            std::fill(row + s.tokens(), row + s.columns(), 0.0f);
        }
        return watched;
    }

    void scatter(const float* matrix, int head, float* x) const {
        for_each_token(head, [&](int token, std::int64_t first) {
            for (int c = 0; c < s.head_dim; c++) {
                x[first + c] = matrix[c * s.columns() + token];
            }
        });
    }

    // The way back of gather: from the gradient of the quantized matrix (overwritten) that of x; returns those of the
    // bounds. raw is scratch for a matrix.
    BoundGradients scatter_gradient(const float* x, int head, float scale, const Quantizer& quantizer, float* grad,
                                    float* raw, float* grad_x) const {
        BoundGradients bounds;
        if (quantizer.on) {
            gather_raw(x, head, scale, raw);
        }
        for (int i = 0; i < s.matrix(); i += LANES) {
            vf g = load(grad + i);
            if (quantizer.on) {
                g = quantize_backward(quantizer, load(raw + i), g, bounds);
            }
            store(grad + i, g * scale);
        }
        scatter(grad, head, grad_x);
        return bounds;
    }

private:
    void gather_raw(const float* x, int head, float scale, float* matrix) const {
        std::fill(matrix, matrix + s.matrix(), 0.0f);
        for_each_token(head, [&](int token, std::int64_t first) {
            for (int c = 0; c < s.head_dim; c++) {
                matrix[c * s.columns() + token] = x[first + c] * scale;
            }
        });
    }
};

}  // namespace ppsr2q
