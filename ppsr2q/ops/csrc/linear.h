// Linear layers on token rows with what surrounds them: one optional LayerNorm that feeds several layers, a
// quantizer in front of each, bias and residual behind. Rows are normalized, quantized and multiplied a block
// at a time, so that only x is read from memory and only y written.
//
// Products run in register tiles of TILE_ROWS_LINEAR rows by up to PANEL vectors of columns; weights are
// packed into panels of that width beforehand.
#pragma once

#include <vector>

#include "norm.h"
#include "parallel.h"
#include "simd.h"
#include "status.h"

namespace ppsr2q {

constexpr int PANEL = 3;                               // vectors of columns a tile
constexpr int TILE_ROWS_LINEAR = LANES == 16 ? 8 : 4;  // with PANEL vectors each: all registers but four
constexpr int BLOCK_TOKENS = 32;            // rows that stay in the first-level cache between the steps
constexpr std::int64_t LINEAR_LEAST = 256;  // rows a task

struct LinearLayer {          // C layout; kernels/linear.py declares the same
    const float* weight;      // [inputs][outputs]
    const float* bias;        // [outputs] or null
    const float* bounds;      // [2], null with bits = 0
    const float* residual;    // [rows][outputs] or null
    const float* skip;        // [rows][outputs] or null: joins the sum too, times
    const float* skip_scale;  // [outputs]
    float* y;                 // [rows][outputs]
    int bits;
    int outputs;
};

struct LinearGradient {  // C layout; a null pointer is a gradient that nobody wants
    const float* y;      // [rows][outputs], given
    float* weight;
    float* bias;
    float* bounds;
    float* skip;        // skip and skip_scale are wanted together
    float* skip_scale;
};

namespace detail {

// Keeps the compiler from reading a vector from memory again for every use, which costs more than the
// products do.
inline void stay_in_register(vf& x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#else
    (void)x;
#endif
}

// Columns of a matrix [rows][columns] in panels of up to PANEL vectors, each panel [rows][its width], padded
// with 0.
class PackedMatrix {
public:
    // transposed: the matrix is given as [columns][rows].
    PackedMatrix(const float* matrix, int rows, int columns, bool transposed)
        : rows_(rows), columns_(columns), memory_(static_cast<std::size_t>(rows) * padded(columns)) {
        for (int first = 0; first < padded(columns); first += PANEL * LANES) {
            const int width = vectors(first) * LANES;
            float* to = memory_.data() + static_cast<std::size_t>(first) * rows;
            for (int r = 0; r < rows; r++) {
                for (int c = first; c < first + width; c++) {
                    const bool exists = c < columns;
                    *to++ = !exists ? 0.0f : transposed ? matrix[c * rows + r] : matrix[r * columns + c];
                }
            }
        }
    }

    int rows() const { return rows_; }
    int columns() const { return columns_; }
    int vectors(int first) const { return std::min(PANEL, (padded(columns_) - first) / LANES); }
    const float* panel(int first) const { return memory_.data() + static_cast<std::size_t>(first) * rows_; }

private:
    int rows_;
    int columns_;
    Buffer memory_;
};

// tile[r][v] += sum over k of row r's element k times vector v of panel row k.
template <int VECTORS>
inline void multiply_tile(const float* const (&rows)[TILE_ROWS_LINEAR], const float* panel, int depth,
                          vf (&tile)[TILE_ROWS_LINEAR][VECTORS]) {
    for (int k = 0; k < depth; k++) {
        vf weights[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            weights[v] = load(panel + k * VECTORS * LANES + v * LANES);
            stay_in_register(weights[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
            const vf x = broadcast(rows[r][k]);
            for (int v = 0; v < VECTORS; v++) {
                tile[r][v] = multiply_add(x, weights[v], tile[r][v]);
            }
        }
    }
}

template <int VECTORS, class Epilogue>
void multiply_panel(const float* x, int stride, int count, const float* panel, int depth, int first,
                    const Epilogue& epilogue) {
    for (int r0 = 0; r0 < count; r0 += TILE_ROWS_LINEAR) {
        const float* rows[TILE_ROWS_LINEAR];
        for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
            rows[r] = x + std::min(r0 + r, count - 1) * stride;  // rows that do not exist repeat the last
        }
        vf tile[TILE_ROWS_LINEAR][VECTORS] = {};
        multiply_tile<VECTORS>(rows, panel, depth, tile);
        for (int r = 0; r < TILE_ROWS_LINEAR && r0 + r < count; r++) {
            for (int v = 0; v < VECTORS; v++) {
                epilogue(r0 + r, first + v * LANES, tile[r][v]);
            }
        }
    }
}

// epilogue(row, column, sums) for every row of x [count][stride] times the matrix, a vector of columns at a
// time.
template <class Epilogue>
void multiply_rows(const float* x, int stride, int count, const PackedMatrix& matrix,
                   const Epilogue& epilogue) {
    for (int first = 0; first < padded(matrix.columns()); first += PANEL * LANES) {
        const float* panel = matrix.panel(first);
        switch (matrix.vectors(first)) {
            case 1: multiply_panel<1>(x, stride, count, panel, matrix.rows(), first, epilogue); break;
            case 2: multiply_panel<2>(x, stride, count, panel, matrix.rows(), first, epilogue); break;
            default: multiply_panel<3>(x, stride, count, panel, matrix.rows(), first, epilogue); break;
        }
    }
}

// total[k][n] += sum over rows of x[row][k] g[row][n] for TILE_ROWS_LINEAR of k and VECTORS vectors of n.
template <int VECTORS>
inline void add_outer_tile(const float* x, int x_stride, const float* g, int g_stride, int count, int valid,
                           float* total, int total_stride) {
    vf tile[TILE_ROWS_LINEAR][VECTORS] = {};
    for (int row = 0; row < count; row++) {
        vf values[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            values[v] = load(g + row * g_stride + v * LANES);
            stay_in_register(values[v]);
        }
#pragma GCC unroll 8
        for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
            const vf factor = broadcast(x[row * x_stride + r]);
            for (int v = 0; v < VECTORS; v++) {
                tile[r][v] = multiply_add(factor, values[v], tile[r][v]);
            }
        }
    }
    for (int r = 0; r < valid; r++) {
        for (int v = 0; v < VECTORS; v++) {
            float* p = total + r * total_stride + v * LANES;
            store(p, load(p) + tile[r][v]);
        }
    }
}

// total [depth][padded columns] += x^T g over count rows. Rows of x must be readable up to a multiple of
// TILE_ROWS_LINEAR, rows of g up to whole vectors, as padded rows are.
inline void add_outer_products(const float* x, int x_stride, const float* g, int g_stride, int count,
                               int depth, int columns, float* total) {
    const int width = padded(columns);
    for (int first = 0; first < width; first += PANEL * LANES) {
        const int vectors = std::min(PANEL, (width - first) / LANES);
        for (int k = 0; k < depth; k += TILE_ROWS_LINEAR) {
            const int valid = std::min(TILE_ROWS_LINEAR, depth - k);
            float* to = total + k * width + first;
            switch (vectors) {
                case 1:
                    add_outer_tile<1>(x + k, x_stride, g + first, g_stride, count, valid, to, width);
                    break;
                case 2:
                    add_outer_tile<2>(x + k, x_stride, g + first, g_stride, count, valid, to, width);
                    break;
                default:
                    add_outer_tile<3>(x + k, x_stride, g + first, g_stride, count, valid, to, width);
                    break;
            }
        }
    }
}

// rows [count][channels] into scratch [count][padded channels] through a quantizer; watches what it reads.
inline vf quantize_rows(const float* x, int stride, int channels, int count, const Quantizer& quantizer,
                        float* to) {
    const int width = padded(channels);
    vf watched = {};
    for (int row = 0; row < count; row++) {
        for (int c = 0; c < width; c += LANES) {
            const float* p = x + row * stride + c;
            const vf value = c + LANES <= channels ? load(p) : load_partial(p, channels - c);
            watched = watch(watched, value);
            store(to + row * width + c, quantizer(value));
        }
    }
    return watched;
}

}  // namespace detail
}  // namespace ppsr2q
