// Depth-wise convolution of channels-last images, tile by tile. A tile is computed from a plane: its pixels
// and a halo around them, exactly 0 outside the image (the padding comes after the quantizer).
//
// A row of a plane is flat: pixel x, channel c at x channels + c. Taps are repeated to a period that is a
// multiple of both the channels and the vector, so that vectors need not respect pixels and any number of
// channels is served.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "simd.h"

namespace ppsr2q {

constexpr int TILE_HEIGHT = 16;
constexpr int TILE_WIDTH = 32;
constexpr int TILE_PIXELS = 8;  // vectors of one row that a register tile convolves together
constexpr int TILE_TAPS = 5;    // taps whose gradients a register tile sums together

struct DepthwiseShape {
    std::int64_t batch;
    int height;
    int width;
    int channels;
    int kernel;  // odd

    int halo() const { return kernel / 2; }
    int taps() const { return kernel * kernel; }
    int period() const { return channels / std::gcd(channels, LANES) * LANES; }
    int tiles_down() const { return (height + TILE_HEIGHT - 1) / TILE_HEIGHT; }
    int tiles_across() const { return (width + TILE_WIDTH - 1) / TILE_WIDTH; }
    std::int64_t tiles() const { return batch * tiles_down() * tiles_across(); }
};

struct ImageTile {
    std::int64_t image;
    int top, left, rows, columns;

    ImageTile(const DepthwiseShape& s, std::int64_t index) {
        image = index / (s.tiles_down() * s.tiles_across());
        top = static_cast<int>(index / s.tiles_across() % s.tiles_down()) * TILE_HEIGHT;
        left = static_cast<int>(index % s.tiles_across()) * TILE_WIDTH;
        rows = std::min(TILE_HEIGHT, s.height - top);
        columns = std::min(TILE_WIDTH, s.width - left);
    }
};

// Memory of a tile with a halo of given width; pixel (0, 0) is the tile's own first one.
struct Plane {
    float* memory;
    int channels, halo, stride;

    static int row_size(int channels, int halo) { return padded((TILE_WIDTH + 2 * halo) * channels) + LANES; }

    static std::size_t size(int channels, int halo) {
        return static_cast<std::size_t>(TILE_HEIGHT + 2 * halo) * row_size(channels, halo);
    }

    Plane(float* memory, int channels, int halo)
        : memory(memory), channels(channels), halo(halo), stride(row_size(channels, halo)) {}

    float* at(int y, int x) const { return memory + (y + halo) * stride + (x + halo) * channels; }

    // Fills the tile and its halo: produce(y, x, pixels, row) writes pixels of image row y from column x on
    // to row; all else becomes 0.
    template <class Produce>
    void fill(const DepthwiseShape& s, const ImageTile& tile, const Produce& produce) const {
        const int first = std::max(-halo, -tile.left);
        const int last = std::min(tile.columns + halo, s.width - tile.left);
        for (int y = -halo; y < tile.rows + halo; y++) {
            float* row = at(y, -halo);
            if (tile.top + y < 0 || tile.top + y >= s.height) {
                std::fill(row, row + stride, 0.0f);
                continue;
            }
            std::fill(row, at(y, first), 0.0f);
            produce(tile.top + y, tile.left + first, last - first, at(y, first));
            std::fill(at(y, last), row + stride, 0.0f);
        }
    }
};

// weight (channels, 1, kernel, kernel) -> taps (kernel kernel, period); flipped for the gradient of the
// input.
inline void repeat_taps(const DepthwiseShape& s, const float* weight, bool flipped, float* taps) {
    for (int tap = 0; tap < s.taps(); tap++) {
        const int source = flipped ? s.taps() - 1 - tap : tap;
        for (int i = 0; i < s.period(); i++) {
            taps[tap * s.period() + i] = weight[i % s.channels * s.taps() + source];
        }
    }
}

// bias (channels), or null for 0 -> (period).
inline void repeat_bias(const DepthwiseShape& s, const float* bias, float* repeated) {
    for (int i = 0; i < s.period(); i++) {
        repeated[i] = bias ? bias[i % s.channels] : 0.0f;
    }
}

// VECTORS vectors of a row, a period apart from each other: they meet the same taps.
template <int VECTORS>
inline void convolve_vectors(const DepthwiseShape& s, const float* in, int stride, const float* taps, vf bias,
                             float* out) {
    const int period = s.period();
    vf sums[VECTORS];
    for (int i = 0; i < VECTORS; i++) {
        sums[i] = bias;
    }
    for (int ty = 0; ty < s.kernel; ty++) {
        for (int tx = 0; tx < s.kernel; tx++) {
            vf tap = load(taps + (ty * s.kernel + tx) * period);
            const float* p = in + ty * stride + tx * s.channels;
            for (int i = 0; i < VECTORS; i++) {
                sums[i] += load(p + i * period) * tap;
            }
        }
    }
    for (int i = 0; i < VECTORS; i++) {
        store(out + i * period, sums[i]);
    }
}

// One row of the convolution: in points to the pixel under the first tap of the first output, rows stride
// apart. bias may be null. Writes pixels * channels floats, rounded up to whole vectors.
inline void convolve_row(const DepthwiseShape& s, const float* in, int stride, const float* taps,
                         const float* bias, int pixels, float* out) {
    const int period = s.period();
    const int count = pixels * s.channels;
    for (int phase = 0; phase < std::min(period, count); phase += LANES) {
        const vf start = bias ? load(bias + phase) : vf{};
        int i = phase;
        for (; i + (TILE_PIXELS - 1) * period < count; i += TILE_PIXELS * period) {
            convolve_vectors<TILE_PIXELS>(s, in + i, stride, taps + phase, start, out + i);
        }
        for (; i < count; i += period) {
            convolve_vectors<1>(s, in + i, stride, taps + phase, start, out + i);
        }
    }
}

// Adds to the gradients of taps (kernel kernel, period) those of one row; in as in convolve_row, grad one row
// of the gradient of the output.
inline void add_tap_gradients(const DepthwiseShape& s, const float* in, int stride, const float* grad,
                              int pixels, float* grad_taps) {
    const int period = s.period();
    const int count = pixels * s.channels;
    for (int first = 0; first < s.taps(); first += TILE_TAPS) {
        const float* source[TILE_TAPS];
        for (int t = 0; t < TILE_TAPS; t++) {
            const int tap = std::min(first + t, s.taps() - 1);  // a group that is not full repeats its last
            source[t] = in + tap / s.kernel * stride + tap % s.kernel * s.channels;
        }
        for (int phase = 0; phase < std::min(period, count); phase += LANES) {
            vf even[TILE_TAPS] = {};
            vf odd[TILE_TAPS] = {};
            int i = phase;
            for (; i + period + LANES <= count; i += 2 * period) {
                vf g0 = load(grad + i);
                vf g1 = load(grad + i + period);
                for (int t = 0; t < TILE_TAPS; t++) {
                    even[t] += load(source[t] + i) * g0;
                    odd[t] += load(source[t] + i + period) * g1;
                }
            }
            for (; i < count; i += period) {
                vf g = load_partial(grad + i, std::min(LANES, count - i));
                for (int t = 0; t < TILE_TAPS; t++) {
                    even[t] += load(source[t] + i) * g;
                }
            }
            for (int t = 0; t < TILE_TAPS && first + t < s.taps(); t++) {
                float* sum = grad_taps + (first + t) * period + phase;
                store(sum, load(sum) + even[t] + odd[t]);
            }
        }
    }
}

// Adds to the gradient of the repeated bias (period) that of one row.
inline void add_bias_gradient(const DepthwiseShape& s, const float* grad, int pixels, float* grad_bias) {
    const int count = pixels * s.channels;
    for (int phase = 0; phase < std::min(s.period(), count); phase += LANES) {
        vf total = load(grad_bias + phase);
        for (int i = phase; i < count; i += s.period()) {
            total += load_partial(grad + i, std::min(LANES, count - i));
        }
        store(grad_bias + phase, total);
    }
}

// The transposes of repeat_taps and repeat_bias.
inline void fold_taps(const DepthwiseShape& s, const float* taps, float* weight) {
    std::fill(weight, weight + s.channels * s.taps(), 0.0f);
    for (int tap = 0; tap < s.taps(); tap++) {
        for (int i = 0; i < s.period(); i++) {
            weight[i % s.channels * s.taps() + tap] += taps[tap * s.period() + i];
        }
    }
}

inline void fold_bias(const DepthwiseShape& s, const float* repeated, float* bias) {
    std::fill(bias, bias + s.channels, 0.0f);
    for (int i = 0; i < s.period(); i++) {
        bias[i % s.channels] += repeated[i];
    }
}

}  // namespace ppsr2q
