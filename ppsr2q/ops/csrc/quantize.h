// The quantizer of Eq. 1 on whole tensors, and its gradients (Eq. 8).
#pragma once

#include "parallel.h"
#include "simd.h"
#include "status.h"

namespace ppsr2q {

constexpr std::int64_t QUANTIZE_LEAST =
    8192;  // elements a task; below, starting threads costs more than it gains

// y = Q(x), count elements.
inline int fake_quantize_forward(const float* x, const float* bounds, int bits, std::int64_t count,
                                 float* y) {
    if (!valid_bounds(bounds, bits)) {
        return BAD_BOUNDS;
    }
    const Quantizer quantizer(bounds, bits);
    const RowTasks split(count, QUANTIZE_LEAST);
    Finding finding;
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        vf watched = {};
        const std::int64_t end = split.end(task);
        std::int64_t i = split.begin(task);
        for (; i + LANES <= end; i += LANES) {
            vf value = load(x + i);
            watched = watch(watched, value);
            store(y + i, quantizer.quantize(value));
        }
        if (i < end) {
            vf value = load_partial(x + i, static_cast<int>(end - i));
            watched = watch(watched, value);
            store_partial(y + i, quantizer.quantize(value), static_cast<int>(end - i));
        }
        if (!all_finite(watched)) {
            finding.report(1);
        }
    });
    return finding.status();
}

// grad_x and grad_bounds [2] from x and the gradient of y. grad_x may be null.
inline int fake_quantize_backward(const float* x, const float* bounds, int bits, const float* grad_y,
                                  std::int64_t count, float* grad_x, float* grad_bounds) {
    const Quantizer quantizer(bounds, bits);
    const RowTasks split(count, QUANTIZE_LEAST);
    Buffer partial(2 * split.tasks);
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        BoundGradients sums;
        const std::int64_t end = split.end(task);
        std::int64_t i = split.begin(task);
        for (; i + LANES <= end; i += LANES) {
            vf grad = quantize_backward(quantizer, load(x + i), load(grad_y + i), sums);
            if (grad_x) {
                store(grad_x + i, grad);
            }
        }
        if (i < end) {
            const int rest = static_cast<int>(end - i);
            vf grad =
                quantize_backward(quantizer, load_partial(x + i, rest), load_partial(grad_y + i, rest), sums);
            if (grad_x) {
                store_partial(grad_x + i, grad, rest);
            }
        }
        partial[2 * task] = sum(sums.lower);
        partial[2 * task + 1] = sum(sums.upper);
    });
    add_partials(partial.data(), split.tasks, 2, 2, grad_bounds);
    return OK;
}

}  // namespace ppsr2q
