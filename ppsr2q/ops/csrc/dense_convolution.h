// Convolution of channels-last images with one odd square kernel over all channels, stride 1, zero padding.
// A tile of the image and its halo are quantized into a plane in cache, where the taps of one kernel row lie
// side by side for every pixel: the convolution is a sum of as many matrix products as the kernel has rows.
#pragma once

#include <atomic>

#include "convolution.h"
#include "linear.h"
#include "parallel.h"

namespace ppsr2q {

// x (batch, height width, inputs), weight (outputs, inputs, kernel, kernel), bias (outputs) or null, residual
// like y or null; y (batch, height width, outputs).
struct DenseConvolution {
    DepthwiseShape shape;  // its channels are the inputs
    int outputs;
    const float* x;
    const float* weight;
    const float* bias;
    const float* residual;
    Quantizer quantizer;  // of x

    DepthwiseShape output_shape() const {
        return {shape.batch, shape.height, shape.width, outputs, shape.kernel};
    }
    std::int64_t weight_size() const { return static_cast<std::int64_t>(shape.taps()) * shape.channels * outputs; }
    std::int64_t pixel(std::int64_t image, int y, int column) const {
        return (image * shape.height + y) * shape.width + column;
    }
};

struct DenseConvolutionGradients {  // shapes of the inputs; weight and bias may be null, bounds is [2]
    float* x;
    float* weight;
    float* bias;
    float* bounds;
};

namespace detail {

// weight -> [kernel kernel inputs][outputs], taps in raster order.
inline PackedMatrix pack_taps(const DenseConvolution& in) {
    const int taps = in.shape.taps();
    const int inputs = in.shape.channels;
    Buffer matrix(in.weight_size());
    for (int tap = 0; tap < taps; tap++) {
        for (int c = 0; c < inputs; c++) {
            for (int o = 0; o < in.outputs; o++) {
                matrix[(tap * inputs + c) * in.outputs + o] = in.weight[(o * inputs + c) * taps + tap];
            }
        }
    }
    return PackedMatrix(matrix.data(), taps * inputs, in.outputs, false);
}

// The matrix of the gradient with respect to x: [kernel kernel outputs][inputs], taps in reverse order.
inline PackedMatrix pack_flipped_taps(const DenseConvolution& in) {
    const int taps = in.shape.taps();
    const int inputs = in.shape.channels;
    Buffer matrix(in.weight_size());
    for (int tap = 0; tap < taps; tap++) {
        for (int o = 0; o < in.outputs; o++) {
            for (int c = 0; c < inputs; c++) {
                matrix[(tap * in.outputs + o) * inputs + c] = in.weight[(o * inputs + c) * taps + taps - 1 - tap];
            }
        }
    }
    return PackedMatrix(matrix.data(), taps * in.outputs, inputs, false);
}

template <int VECTORS, class Epilogue>
void convolve_panel(const Plane& plane, const ImageTile& tile, int kernel, const float* panel, int first,
                    const Epilogue& epilogue) {
    const int depth = kernel * plane.channels;
    for (int y = 0; y < tile.rows; y++) {
        for (int x = 0; x < tile.columns; x += TILE_ROWS_LINEAR) {
            vf sums[TILE_ROWS_LINEAR][VECTORS] = {};
            for (int ty = 0; ty < kernel; ty++) {
                const float* rows[TILE_ROWS_LINEAR];
                for (int r = 0; r < TILE_ROWS_LINEAR; r++) {  // pixels that do not exist repeat the last
                    rows[r] = plane.at(y + ty - kernel / 2, std::min(x + r, tile.columns - 1) - kernel / 2);
                }
                multiply_tile<VECTORS>(rows, panel + ty * depth * VECTORS * LANES, depth, sums);
            }
            for (int r = 0; r < TILE_ROWS_LINEAR && x + r < tile.columns; r++) {
                for (int v = 0; v < VECTORS; v++) {
                    epilogue(y, x + r, first + v * LANES, sums[r][v]);
                }
            }
        }
    }
}

// epilogue(y, x, channel, sums) for every pixel of the tile, a vector of channels at a time.
template <class Epilogue>
void convolve_tile(const Plane& plane, const ImageTile& tile, int kernel, const PackedMatrix& taps,
                   const Epilogue& epilogue) {
    for (int first = 0; first < padded(taps.columns()); first += PANEL * LANES) {
        const float* panel = taps.panel(first);
        switch (taps.vectors(first)) {
            case 1: convolve_panel<1>(plane, tile, kernel, panel, first, epilogue); break;
            case 2: convolve_panel<2>(plane, tile, kernel, panel, first, epilogue); break;
            default: convolve_panel<3>(plane, tile, kernel, panel, first, epilogue); break;
        }
    }
}

// A tile of x, quantized, or of another image of the same size, as it is; 0 outside.
inline void fill_plane(const DepthwiseShape& s, const float* x, const Quantizer& quantizer, const ImageTile& tile,
                       const Plane& plane) {
    plane.fill(s, tile, [&](int y, int column, int pixels, float* row) {
        const float* p = x + ((tile.image * s.height + y) * s.width + column) * s.channels;
        const int count = pixels * s.channels;
        for (int i = 0; i < count; i += LANES) {
            store_up_to(row + i, quantizer(load_up_to(p + i, count - i)), count - i);
        }
    });
}

}  // namespace detail

// Fills y; whether it is finite.
inline bool dense_convolution_forward(const DenseConvolution& in, float* y) {
    const DepthwiseShape& s = in.shape;
    const detail::PackedMatrix taps = detail::pack_taps(in);
    std::atomic<bool> finite(true);
    parallel_tasks(s.tiles(), Plane::size(s.channels, s.halo()), [&](std::int64_t task, float* scratch) {
        const ImageTile tile(s, task);
        const Plane plane(scratch, s.channels, s.halo());
        detail::fill_plane(s, in.x, in.quantizer, tile, plane);
        vf watched = {};
        detail::convolve_tile(plane, tile, s.kernel, taps, [&](int row, int column, int channel, vf sums) {
            const int count = in.outputs - channel;
            const std::int64_t at =
                in.pixel(tile.image, tile.top + row, tile.left + column) * in.outputs + channel;
            if (in.bias) {
                sums += load_up_to(in.bias + channel, count);
            }
            if (in.residual) {
                sums += load_up_to(in.residual + at, count);
            }
            watched = watch(watched, first_lanes(sums, count));
            store_up_to(y + at, sums, count);
        });
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

// Gradients of everything but the residual, whose is grad_y.
inline void dense_convolution_backward(const DenseConvolution& in, const float* grad_y,
                                       const DenseConvolutionGradients& grads) {
    const DepthwiseShape& s = in.shape;
    const DepthwiseShape output = in.output_shape();
    const int output_width = padded(in.outputs);
    const detail::PackedMatrix flipped = detail::pack_flipped_taps(in);
    const std::int64_t matrix = static_cast<std::int64_t>(s.taps()) * s.channels * output_width;
    const std::int64_t size = matrix + output_width + LANES;  // weight, bias, bounds
    const RowTasks split(s.tiles(), 1);
    Buffer partial(split.tasks * size);
    const std::size_t x_plane = grads.weight ? Plane::size(s.channels, s.halo()) : 0;
    const std::size_t scratch_size = x_plane + Plane::size(in.outputs, s.halo());
    parallel_tasks(split.tasks, scratch_size, [&](std::int64_t task, float* scratch) {
        const Plane plane(scratch, s.channels, s.halo());
        const Plane upstream(scratch + x_plane, in.outputs, s.halo());
        float* own = partial.data() + task * size;
        std::fill(own, own + size, 0.0f);
        BoundGradients bounds;
        for (std::int64_t index = split.begin(task); index < split.end(task); index++) {
            const ImageTile tile(s, index);
            detail::fill_plane(output, grad_y, Quantizer(), tile, upstream);
            detail::convolve_tile(
                upstream, tile, s.kernel, flipped, [&](int row, int column, int channel, vf sums) {
                    const int count = s.channels - channel;
                    const std::int64_t at =
                        in.pixel(tile.image, tile.top + row, tile.left + column) * s.channels + channel;
                    if (in.quantizer.on) {
                        sums = quantize_backward(in.quantizer, load_up_to(in.x + at, count),
                                                 first_lanes(sums, count), bounds);
                    }
                    store_up_to(grads.x + at, sums, count);
                });
            if (grads.weight) {
                detail::fill_plane(s, in.x, in.quantizer, tile, plane);
            }
            for (int y = 0; y < tile.rows; y++) {
                const float* grad = upstream.at(y, 0);
                for (int ty = 0; grads.weight && ty < s.kernel; ty++) {
                    detail::add_outer_products(plane.at(y + ty - s.halo(), -s.halo()), s.channels, grad,
                                               in.outputs, tile.columns, s.kernel * s.channels, in.outputs,
                                               own + ty * s.kernel * s.channels * output_width);
                }
                for (int x = 0; grads.bias && x < tile.columns; x++) {
                    for (int o = 0; o < in.outputs; o += LANES) {
                        float* total = own + matrix + o;
                        store(total, load(total) + load_up_to(grad + x * in.outputs + o, in.outputs - o));
                    }
                }
            }
        }
        own[matrix + output_width] = sum(bounds.lower);
        own[matrix + output_width + 1] = sum(bounds.upper);
    });
    Buffer total(size);
    add_partials(partial.data(), split.tasks, size, size, total.data());
    for (int o = 0; grads.weight && o < in.outputs; o++) {
        for (int c = 0; c < s.channels; c++) {
            for (int tap = 0; tap < s.taps(); tap++) {
                grads.weight[(o * s.channels + c) * s.taps() + tap] =
                    total[(static_cast<std::int64_t>(tap) * s.channels + c) * output_width + o];
            }
        }
    }
    if (grads.bias) {
        std::copy_n(total.data() + matrix, in.outputs, grads.bias);
    }
    std::copy_n(total.data() + matrix + output_width, 2, grads.bounds);
}

}  // namespace ppsr2q
