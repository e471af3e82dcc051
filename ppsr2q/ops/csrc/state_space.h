// The state space model around the selective scan, with its quantizers: u gives dt, B and C by one product,
// dt gives delta by another, a prompt joins C. Backward keeps u and the checkpoints of the scan only and
// projects again.
#pragma once

#include <vector>

#include "linear.h"
#include "scan.h"

namespace ppsr2q {

struct StateSpaceInputs {  // C layout; kernels/state_space.py declares the same
    const float* u;        // [tokens][channels]
    const float* prompt;   // [tokens][N]
    const float* x_proj;   // [rank + 2 N][channels]: rows of dt, B, C
    const float* dt_proj;  // [channels][rank]
    const float* A;        // [channels][N]
    const float* D;        // [channels]
    const float* dt_bias;  // [channels]
    const float*
        bounds[6];  // of u, dt, delta, B, C (with the prompt) and the states; [2], or null with bits = 0
    int bits[6];
    int rank;
};

struct StateSpaceGradients {  // shapes of the inputs
    float* u;
    float* prompt;
    float* x_proj;
    float* dt_proj;
    float* A;
    float* D;
    float* dt_bias;
    float* bounds;  // [6][2]
};

namespace detail {

enum Quantized { Q_U, Q_DT, Q_DELTA, Q_B, Q_C, Q_STATES, QUANTIZED_TENSORS };

inline void quantize_slice(const Quantizer& quantizer, const float* x, int count, float* y) {
    for (int i = 0; i < count; i += LANES) {
        store_up_to(y + i, quantizer(load_up_to(x + i, count - i)), count - i);
    }
}

// grad_x from x before the quantizer and the gradient behind it; both may be the same place.
inline void slice_backward(const Quantizer& quantizer, const float* x, const float* grad, int count,
                           BoundGradients& bounds, float* grad_x) {
    for (int i = 0; i < count; i += LANES) {
        vf value = load_up_to(grad + i, count - i);
        if (quantizer.on) {
            value = quantize_backward(quantizer, load_up_to(x + i, count - i), value, bounds);
        }
        store_up_to(grad_x + i, value, count - i);
    }
}

// The projections of a block of tokens in scratch; rows are padded to whole vectors.
template <int N>
class Projection {
public:
    Projection(const ScanShape& shape, const StateSpaceInputs& in)
        : shape(shape),
          in(in),
          outputs(in.rank + 2 * N),
          x_proj(in.x_proj, shape.channels, outputs, true),
          dt_proj(in.dt_proj, in.rank, shape.channels, true) {
        for (int i = 0; i < QUANTIZED_TENSORS; i++) {
            quantizers[i] = Quantizer(in.bounds[i], in.bits[i]);
        }
    }

    struct Block {
        float* u;  // quantized, [BLOCK_TOKENS][padded channels]
        float*
            projected;  // dt, B, C with its prompt, before their quantizers, [BLOCK_TOKENS][padded outputs]
        float* dt;      // quantized, [BLOCK_TOKENS][padded rank]
        float* delta;   // before its quantizer, like u
    };

    int channel_width() const { return padded(shape.channels); }
    int output_width() const { return padded(outputs); }
    int rank_width() const { return padded(in.rank); }
    std::size_t block_size() const {
        return BLOCK_TOKENS * (2 * channel_width() + output_width() + rank_width());
    }

    // Returns what it watched.
    vf project(std::int64_t row, int rows, float* scratch, Block& block) const {
        block.u = scratch;
        block.delta = block.u + BLOCK_TOKENS * channel_width();
        block.projected = block.delta + BLOCK_TOKENS * channel_width();
        block.dt = block.projected + BLOCK_TOKENS * output_width();
        vf watched = quantize_rows(in.u + row * shape.channels, shape.channels, shape.channels, rows,
                                   quantizers[Q_U], block.u);
        multiply_rows(block.u, channel_width(), rows, x_proj, [&](int r, int column, vf sums) {
            store(block.projected + r * output_width() + column, sums);
        });
        for (int r = 0; r < rows; r++) {
            float* own = block.projected + r * output_width();
            float* C = own + in.rank + N;
            for (int n = 0; n < N; n++) {
                C[n] += in.prompt[(row + r) * N + n];
            }
            for (int i = 0; i < output_width(); i += LANES) {
                watched = watch(watched, load(own + i));
            }
            quantize_slice(quantizers[Q_DT], own, in.rank, block.dt + r * rank_width());
        }
        multiply_rows(block.dt, rank_width(), rows, dt_proj, [&](int r, int column, vf sums) {
            watched = watch(watched, sums);
            store(block.delta + r * channel_width() + column, sums);
        });
        return watched;
    }

    ScanShape shape;
    StateSpaceInputs in;
    int outputs;
    PackedMatrix x_proj;
    PackedMatrix dt_proj;
    Quantizer quantizers[QUANTIZED_TENSORS];
};

// What the scan reads, for all tokens.
template <int N>
struct ScanOperands {
    Buffer u;
    Buffer delta;
    Buffer B;
    Buffer C;

    ScanOperands(std::int64_t tokens, int channels)
        : u(tokens * channels), delta(tokens * channels), B(tokens * N), C(tokens * N) {}

    ScanInputs inputs(const Projection<N>& projection) const {
        return {u.data(), delta.data(),    projection.in.A,       B.data(),
                C.data(), projection.in.D, projection.in.dt_bias, projection.quantizers[Q_STATES]};
    }
};

// False when something is not finite.
template <int N>
bool fill_operands(const Projection<N>& projection, const ScanOperands<N>& operands) {
    const ScanShape& shape = projection.shape;
    const int channels = shape.channels;
    const RowTasks split(shape.batch * shape.length, LINEAR_LEAST);
    std::atomic<bool> finite(true);
    parallel_tasks(split.tasks, projection.block_size(), [&](std::int64_t task, float* scratch) {
        vf watched = {};
        for (std::int64_t row = split.begin(task); row < split.end(task); row += BLOCK_TOKENS) {
            const int rows = static_cast<int>(std::min<std::int64_t>(BLOCK_TOKENS, split.end(task) - row));
            typename Projection<N>::Block block;
            watched += projection.project(row, rows, scratch, block);
            for (int r = 0; r < rows; r++) {
                const std::int64_t token = row + r;
                const float* own = block.projected + r * projection.output_width() + projection.in.rank;
                const float* u = block.u + r * projection.channel_width();
                std::copy(u, u + channels, operands.u.data() + token * channels);
                quantize_slice(projection.quantizers[Q_DELTA], block.delta + r * projection.channel_width(),
                               channels, operands.delta.data() + token * channels);
                quantize_slice(projection.quantizers[Q_B], own, N, operands.B.data() + token * N);
                quantize_slice(projection.quantizers[Q_C], own + N, N, operands.C.data() + token * N);
            }
        }
        if (!all_finite(watched)) {
            finite = false;
        }
    });
    return finite;
}

// Where the parts of a task's partial gradients lie.
template <int N>
struct StateSpacePartial {
    std::int64_t dt_proj;  // behind x_proj [outputs][padded channels]: [channels][padded rank]
    std::int64_t bounds;   // then [5][2]
    std::int64_t size;

    explicit StateSpacePartial(const Projection<N>& p)
        : dt_proj(static_cast<std::int64_t>(p.outputs) * p.channel_width()),
          bounds(dt_proj + static_cast<std::int64_t>(p.shape.channels) * p.rank_width()),
          size(bounds + 16) {}
};

// From the gradients of the scan's operands (out.u and delta, B, C in scan) to those of the inputs, for one
// task.
template <int N>
void project_backward(const Projection<N>& projection, const PackedMatrix& x_proj,
                      const PackedMatrix& dt_proj, std::int64_t begin, std::int64_t end,
                      const ScanGradients& scan, const StateSpaceGradients& out,
                      const StateSpacePartial<N>& layout, float* scratch, float* partial) {
    const ScanShape& shape = projection.shape;
    const int rank = projection.in.rank;
    const int width = projection.channel_width();
    const int output_width = projection.output_width();
    float* grad_delta = scratch + projection.block_size();
    float* grad_projected = grad_delta + BLOCK_TOKENS * width;
    BoundGradients bounds[QUANTIZED_TENSORS];
    std::fill(partial, partial + layout.size, 0.0f);
    for (std::int64_t row = begin; row < end; row += BLOCK_TOKENS) {
        const int rows = static_cast<int>(std::min<std::int64_t>(BLOCK_TOKENS, end - row));
        typename Projection<N>::Block block;
        projection.project(row, rows, scratch, block);
        std::fill(grad_delta, grad_delta + BLOCK_TOKENS * (width + output_width), 0.0f);
        for (int r = 0; r < rows; r++) {
            slice_backward(projection.quantizers[Q_DELTA], block.delta + r * width,
                           scan.delta + (row + r) * shape.channels, shape.channels, bounds[Q_DELTA],
                           grad_delta + r * width);
        }
        add_outer_products(grad_delta, width, block.dt, projection.rank_width(), rows, shape.channels, rank,
                           partial + layout.dt_proj);
        multiply_rows(grad_delta, width, rows, dt_proj, [&](int r, int column, vf sums) {
            store_up_to(grad_projected + r * output_width + column, sums, rank - column);
        });
        for (int r = 0; r < rows; r++) {
            const float* own = block.projected + r * output_width;
            float* grad = grad_projected + r * output_width;
            slice_backward(projection.quantizers[Q_DT], own, grad, rank, bounds[Q_DT], grad);
            slice_backward(projection.quantizers[Q_B], own + rank, scan.B + (row + r) * N, N, bounds[Q_B],
                           grad + rank);
            slice_backward(projection.quantizers[Q_C], own + rank + N, scan.C + (row + r) * N, N, bounds[Q_C],
                           grad + rank + N);
            std::copy(grad + rank + N, grad + rank + 2 * N, out.prompt + (row + r) * N);
        }
        add_outer_products(grad_projected, output_width, block.u, width, rows, projection.outputs,
                           shape.channels, partial);
        multiply_rows(grad_projected, output_width, rows, x_proj, [&](int r, int column, vf sums) {
            const std::int64_t at = (row + r) * shape.channels + column;
            const int exist = shape.channels - column;
            vf grad = sums + load_up_to(out.u + at, exist);
            if (projection.quantizers[Q_U].on) {
                grad = quantize_backward(projection.quantizers[Q_U], load_up_to(projection.in.u + at, exist),
                                         grad, bounds[Q_U]);
            }
            store_up_to(out.u + at, grad, exist);
        });
    }
    for (int i = 0; i < Q_STATES; i++) {
        partial[layout.bounds + 2 * i] = sum(bounds[i].lower);
        partial[layout.bounds + 2 * i + 1] = sum(bounds[i].upper);
    }
}

}  // namespace detail

// y [tokens][channels]; checkpoints as in selective_scan_forward. False when something is not finite.
template <int N>
bool state_space_forward(const ScanShape& shape, const StateSpaceInputs& in, float* y, float* checkpoints) {
    const detail::Projection<N> projection(shape, in);
    const detail::ScanOperands<N> operands(shape.batch * shape.length, shape.channels);
    return detail::fill_operands(projection, operands) &&
           selective_scan_forward<N>(shape, operands.inputs(projection), y, checkpoints, nullptr);
}

template <int N>
void state_space_backward(const ScanShape& shape, const StateSpaceInputs& in, const float* checkpoints,
                          const float* grad_y, const StateSpaceGradients& out) {
    const std::int64_t tokens = shape.batch * shape.length;
    const detail::Projection<N> projection(shape, in);
    const detail::ScanOperands<N> operands(tokens, shape.channels);
    Buffer grad_delta(tokens * shape.channels);
    Buffer grad_B(tokens * N);
    Buffer grad_C(tokens * N);
    const ScanGradients scan{out.u,         grad_delta.data(),
                             out.A,         grad_B.data(),
                             grad_C.data(), out.D,
                             out.dt_bias,   out.bounds + 2 * detail::Q_STATES};
    detail::fill_operands(projection, operands);
    selective_scan_backward<N>(shape, operands.inputs(projection), checkpoints, grad_y, scan);

    const detail::PackedMatrix x_proj(in.x_proj, projection.outputs, shape.channels, false);
    const detail::PackedMatrix dt_proj(in.dt_proj, shape.channels, in.rank, false);
    const detail::StateSpacePartial<N> layout(projection);
    const RowTasks split(tokens, LINEAR_LEAST);
    Buffer partial(split.tasks * layout.size);
    const std::size_t scratch_size =
        projection.block_size() + BLOCK_TOKENS * (projection.channel_width() + projection.output_width());
    parallel_tasks(split.tasks, scratch_size, [&](std::int64_t task, float* scratch) {
        detail::project_backward<N>(projection, x_proj, dt_proj, split.begin(task), split.end(task), scan,
                                    out, layout, scratch, partial.data() + task * layout.size);
    });
    std::vector<float> total(layout.size);
    add_partials(partial.data(), split.tasks, layout.size, layout.size, total.data());
    for (int i = 0; i < projection.outputs; i++) {
        const float* own = total.data() + i * projection.channel_width();
        std::copy(own, own + shape.channels, out.x_proj + i * shape.channels);
    }
    for (int c = 0; c < shape.channels; c++) {
        const float* own = total.data() + layout.dt_proj + c * projection.rank_width();
        std::copy(own, own + in.rank, out.dt_proj + c * in.rank);
    }
    std::copy(total.data() + layout.bounds, total.data() + layout.bounds + 2 * detail::Q_STATES, out.bounds);
}

}  // namespace ppsr2q
