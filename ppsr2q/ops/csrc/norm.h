// LayerNorm of token rows, a block of rows at a time, for kernels that need the normalized rows in cache
// only.
#pragma once

#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace ppsr2q {

// Lanes of the last of padded(channels) / LANES vectors that exist.
inline vi last_lanes(int channels) {
    vi mask;
    const int count = channels - (padded(channels) - LANES);
    for (int lane = 0; lane < LANES; lane++) {
        mask[lane] = lane < count ? -1 : 0;
    }
    return mask;
}

// count floats followed by zeros up to whole vectors.
inline void copy_padded(const float* from, int count, float* to) {
    std::copy(from, from + count, to);
    std::fill(to + count, to + padded(count), 0.0f);
}

// scale (x - mean) / sqrt(variance + epsilon) + shift over the channels of a row. Rows in scratch are padded
// with 0.
class RowNorm {
public:
    RowNorm(const float* scale, const float* shift, float epsilon, int channels)
        : channels_(channels),
          width_(padded(channels)),
          epsilon_(epsilon),
          last_(last_lanes(channels)),
          parameters_(2 * static_cast<std::size_t>(width_)) {
        copy_padded(scale, channels, parameters_.data());
        copy_padded(shift, channels, parameters_.data() + width_);
    }

    const float* scale() const { return parameters_.data(); }
    const float* shift() const { return parameters_.data() + width_; }

    // standardized = (x - mean) / sqrt(variance + epsilon), padded; returns the inverse deviation, NaN or
    // infinite when x is not finite.
    float standardize(const float* x, float* standardized) const {
        const int whole = width_ - LANES;
        vf total = {};
        for (int c = 0; c < whole; c += LANES) {
            total += load(x + c);
        }
        const vf last = load_partial(x + whole, channels_ - whole);
        const float mean = sum(total + last) / channels_;
        vf squares = {};
        for (int c = 0; c < whole; c += LANES) {
            const vf centred = load(x + c) - mean;
            store(standardized + c, centred);
            squares = multiply_add(centred, centred, squares);
        }
        const vf centred = keep(last_, last - mean);
        squares = multiply_add(centred, centred, squares);
        const float variance = sum(squares) / channels_;
        const float inverse = 1.0f / std::sqrt(variance + epsilon_);
        for (int c = 0; c < whole; c += LANES) {
            store(standardized + c, load(standardized + c) * inverse);
        }
        store(standardized + whole, centred * inverse);
        return std::isfinite(variance) ? inverse : NAN;
    }

    // normalized = scale standardized + shift; both may be the same row.
    void scale_and_shift(const float* standardized, float* normalized) const {
        for (int c = 0; c < width_; c += LANES) {
            store(normalized + c, multiply_add(load(standardized + c), load(scale() + c), load(shift() + c)));
        }
    }

    // From the gradient of the normalized row: grad_x (channels floats), and what the row adds to the
    // gradients of scale and shift (padded).
    void backward(const float* standardized, float inverse, const float* grad, float* grad_x,
                  float* grad_scale, float* grad_shift) const {
        vf total = {};
        vf product = {};
        for (int c = 0; c < width_; c += LANES) {
            const vf own = load(grad + c);
            const vf position = load(standardized + c);
            store(grad_scale + c, multiply_add(own, position, load(grad_scale + c)));
            store(grad_shift + c, load(grad_shift + c) + own);
            const vf scaled = own * load(scale() + c);
            total += scaled;
            product = multiply_add(scaled, position, product);
        }
        const float mean = sum(total) / channels_;
        const float correlation = sum(product) / channels_;
        for (int c = 0; c < width_; c += LANES) {
            const vf scaled = load(grad + c) * load(scale() + c);
            const vf result = (scaled - mean - load(standardized + c) * correlation) * inverse;
            if (c + LANES <= channels_) {
                store(grad_x + c, result);
            } else {
                store_partial(grad_x + c, result, channels_ - c);
            }
        }
    }

private:
    int channels_;
    int width_;
    float epsilon_;
    vi last_;
    Buffer parameters_;
};

// mean [batch][channels] over the tokens of x [batch][tokens][channels], normalized first unless norm is
// null.
inline void token_mean(const float* x, std::int64_t batch, std::int64_t tokens, int channels,
                       const RowNorm* norm, float* mean) {
    const int width = padded(channels);
    const RowTasks split(tokens, 256);
    Buffer partial(batch * split.tasks * width);
    parallel_tasks(batch * split.tasks, width, [&](std::int64_t task, float* row) {
        const std::int64_t image = task / split.tasks;
        float* total = partial.data() + task * width;
        std::fill(total, total + width, 0.0f);
        for (std::int64_t t = split.begin(task % split.tasks); t < split.end(task % split.tasks); t++) {
            const float* values = x + (image * tokens + t) * channels;
            if (norm) {
                norm->standardize(values, row);
                values = row;
            }
            int c = 0;
            for (; c + LANES <= channels; c += LANES) {
                store(total + c, load(total + c) + load(values + c));
            }
            if (c < channels) {
                store(total + c, load(total + c) + load_partial(values + c, channels - c));
            }
        }
    });
    for (std::int64_t image = 0; image < batch; image++) {
        float* own = mean + image * channels;
        add_partials(partial.data() + image * split.tasks * width, split.tasks, width, channels, own);
        for (int c = 0; c < channels; c++) {
            own[c] /= static_cast<float>(tokens);
            if (norm) {
                own[c] = own[c] * norm->scale()[c] + norm->shift()[c];
            }
        }
    }
}

}  // namespace ppsr2q
