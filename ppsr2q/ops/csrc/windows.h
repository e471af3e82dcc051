// Where attention finds its operands: windows of the rolled image, their masks, and the relative position
// biases.
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

// The bias of query (iy, ix) over all keys in raster order is one contiguous piece of strip ix: with the
// strip's rows in descending order of iy - jy, it begins at row window - 1 - iy.
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
        return (last_row && token / s.window >= border ? 2 : 0) +
               (last_column && token % s.window >= border ? 1 : 0);
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

    // body(token, first, count) for runs of up to LANES tokens in one row of the window: first[i] is where
    // the channels of the head of token + i begin.
    template <class Body>
    void for_each_run(int head, const Body& body) const {
        const std::int64_t channels = static_cast<std::int64_t>(s.heads) * s.head_dim;
        for (int i = 0; i < s.window; i++) {
            const std::int64_t row = (image * s.height + (top + i) % s.height) * s.width;
            for (int j = 0; j < s.window; j += LANES) {
                const int count = std::min(LANES, s.window - j);
                std::int64_t first[LANES];
                for (int lane = 0; lane < count; lane++) {
                    const int x = left + j + lane;
                    first[lane] = (row + (x < s.width ? x : x - s.width)) * channels + head * s.head_dim;
                }
                body(i * s.window + j, first, count);
            }
        }
    }

    // One head of x, times scale, into a matrix (depth, columns); what lies beyond the head or the window is
    // 0.
    void gather(const float* x, int head, float scale, float* matrix) const {
        if (s.matrix() != s.head_dim * s.tokens()) {
            std::fill(matrix, matrix + s.matrix(), 0.0f);
        }
        for_each_run(head, [&](int token, const std::int64_t* first, int count) {
            for (int c = 0; c < s.head_dim; c += LANES) {
                vf block[LANES] = {};
                for (int i = 0; i < count; i++) {
                    block[i] = load_up_to(x + first[i] + c, s.head_dim - c);
                }
                transpose(block);
                for (int i = 0; i < std::min(LANES, s.head_dim - c); i++) {
                    store_up_to(matrix + (c + i) * s.columns() + token, block[i] * scale, count);
                }
            }
        });
    }

    // The way back: a matrix into one head of x.
    void scatter(const float* matrix, int head, float* x) const {
        for_each_run(head, [&](int token, const std::int64_t* first, int count) {
            for (int c = 0; c < s.head_dim; c += LANES) {
                vf block[LANES] = {};
                for (int i = 0; i < std::min(LANES, s.head_dim - c); i++) {
                    block[i] = load_up_to(matrix + (c + i) * s.columns() + token, count);
                }
                transpose(block);
                for (int i = 0; i < count; i++) {
                    store_up_to(x + first[i] + c, block[i], s.head_dim - c);
                }
            }
        });
    }
};

// Quantizes a gathered matrix; what lies beyond the head or the window stays 0. matrix and quantized may be
// the same. What it returns is for all_finite.
inline vf quantize_matrix(const AttentionShape& s, const Quantizer& quantizer, const float* matrix,
                          float* quantized) {
    vf watched = {};
    for (int c = 0; c < s.depth(); c++) {
        for (int i = 0; i < s.columns(); i += LANES) {
            vf value = load(matrix + c * s.columns() + i);
            watched = watch(watched, value);
            const int count = c < s.head_dim ? s.tokens() - i : 0;
            store(quantized + c * s.columns() + i, first_lanes(quantizer(value), count));
        }
    }
    return watched;
}

// From the gradient of a quantized matrix that of the matrix, times scale, in place; returns those of the bounds, to
// which keys that only fill a tile must not add: the quantizer may give their weights a level that is not 0.
inline BoundGradients unquantize_gradient(const AttentionShape& s, const Quantizer& quantizer,
                                          const float* matrix, float scale, float* grad) {
    BoundGradients bounds;
    for (int c = 0; c < s.head_dim; c++) {
        for (int i = 0; i < s.tokens(); i += LANES) {
            const int at = c * s.columns() + i;
            vf g = first_lanes(load(grad + at), s.tokens() - i);
            if (quantizer.on) {
                g = quantize_backward(quantizer, load(matrix + at), g, bounds);
            }
            store(grad + at, g * scale);
        }
    }
    return bounds;
}

}  // namespace ppsr2q
