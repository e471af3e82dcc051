// Products of the small matrices of one window, held in registers tile by tile. Matrices are
// [channel][token], tokens being columns; rows are queries, BLOCK_ROWS at a time.
#pragma once

#include "simd.h"

namespace ppsr2q {

constexpr int BLOCK_ROWS = 8;                  // queries whose scores are held at a time
constexpr int TILE_VECTORS = 4;                // vectors of keys a tile of outer products, times two others
constexpr int TILE_ROWS = LANES == 4 ? 2 : 4;  // queries a tile of inner products
constexpr int TILE_CHANNELS = LANES / TILE_ROWS;       // one tile of row sums fills one vector
constexpr int COLUMN_MULTIPLE = TILE_VECTORS * LANES;  // what the number of columns must be a multiple of

// rows[r][j] = start(r, j) + sum over c of a[c][r] b[c][j], for BLOCK_ROWS rows; a and b have columns
// columns.
template <class Start>
inline void outer_products(const float* a, const float* b, int depth, int columns, const Start& start,
                           float* rows) {
    for (int r = 0; r < BLOCK_ROWS; r += 2) {
        for (int j = 0; j < columns; j += TILE_VECTORS * LANES) {
            vf sums[2][TILE_VECTORS];
            for (int y = 0; y < 2; y++) {
                for (int x = 0; x < TILE_VECTORS; x++) {
                    sums[y][x] = start(r + y, j + x * LANES);
                }
            }
            for (int c = 0; c < depth; c++) {
                vf keys[TILE_VECTORS];
                for (int x = 0; x < TILE_VECTORS; x++) {
                    keys[x] = load(b + c * columns + j + x * LANES);
                }
                for (int y = 0; y < 2; y++) {
                    vf query = broadcast(a[c * columns + r + y]);
                    for (int x = 0; x < TILE_VECTORS; x++) {
                        sums[y][x] += query * keys[x];
                    }
                }
            }
            for (int y = 0; y < 2; y++) {
                for (int x = 0; x < TILE_VECTORS; x++) {
                    store(rows + (r + y) * columns + j + x * LANES, sums[y][x]);
                }
            }
        }
    }
}

// out[c][r] = sum over j of rows[r][j] b[c][j], for BLOCK_ROWS rows.
inline void inner_products(const float* rows, const float* b, int depth, int columns, float* out) {
    for (int r = 0; r < BLOCK_ROWS; r += TILE_ROWS) {
        for (int c = 0; c < depth; c += TILE_CHANNELS) {
            vf tile[LANES] = {};
            for (int j = 0; j < columns; j += LANES) {
                vf values[TILE_CHANNELS];
                for (int x = 0; x < TILE_CHANNELS; x++) {
                    values[x] = load(b + (c + x) * columns + j);
                }
                for (int y = 0; y < TILE_ROWS; y++) {
                    vf weights = load(rows + (r + y) * columns + j);
                    for (int x = 0; x < TILE_CHANNELS; x++) {
                        tile[x * TILE_ROWS + y] += weights * values[x];
                    }
                }
            }
            vf totals = sums(tile);
            for (int x = 0; x < TILE_CHANNELS; x++) {
                for (int y = 0; y < TILE_ROWS; y++) {
                    out[(c + x) * columns + r + y] = totals[x * TILE_ROWS + y];
                }
            }
        }
    }
}

// out[c][j] += sum over r of a[c][r] rows[r][j], for BLOCK_ROWS rows.
inline void add_outer_products(const float* a, const float* rows, int depth, int columns, float* out) {
    for (int j = 0; j < columns; j += TILE_VECTORS * LANES) {
        for (int c = 0; c < depth; c += 2) {
            vf sums[2][TILE_VECTORS];
            for (int y = 0; y < 2; y++) {
                for (int x = 0; x < TILE_VECTORS; x++) {
                    sums[y][x] = load(out + (c + y) * columns + j + x * LANES);
                }
            }
            for (int r = 0; r < BLOCK_ROWS; r++) {
                for (int y = 0; y < 2; y++) {
                    vf factor = broadcast(a[(c + y) * columns + r]);
                    for (int x = 0; x < TILE_VECTORS; x++) {
                        sums[y][x] += factor * load(rows + r * columns + j + x * LANES);
                    }
                }
            }
            for (int y = 0; y < 2; y++) {
                for (int x = 0; x < TILE_VECTORS; x++) {
                    store(out + (c + y) * columns + j + x * LANES, sums[y][x]);
                }
            }
        }
    }
}

}  // namespace ppsr2q
