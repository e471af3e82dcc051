// Semantic guided neighbouring: the class of every token, the stable order by class, rows moved by an order,
// and the prompt row of every class with the straight-through gradient of the softmax.
#pragma once

#include <cstring>
#include <limits>
#include <vector>

#include "linear.h"
#include "parallel.h"
#include "simd.h"
#include "status.h"

namespace ppsr2q {

constexpr std::int64_t ROUTING_LEAST = 512;  // tokens a task

// Position of the first maximum of count floats; -1 when one is NaN or infinite.
inline std::int32_t first_maximum(const float* x, int count) {
    vf watched = {};
    vf largest = broadcast(x[0]);
    for (int i = 0; i < count; i += LANES) {
        const int exist = std::min(LANES, count - i);
        vf value = broadcast(x[0]);
        if (exist == LANES) {
            value = load(x + i);
        } else {
            std::memcpy(&value, x + i, exist * sizeof(float));
        }
        watched = watch(watched, value);
        largest = select(value > largest, value, largest);
    }
    if (!all_finite(watched)) {
        return -1;
    }
    const float top = maximum(largest);
    std::int32_t i = 0;
    while (x[i] != top) {
        i++;
    }
    return i;
}

// index [batch][tokens]: class of every token, the first maximum of logits [batch][tokens][classes]; order:
// tokens sorted by class, ties in raster order; inverse: the inverse permutation of order.
inline int route(const float* logits, std::int64_t batch, std::int64_t tokens, int classes,
                 std::int32_t* index, std::int32_t* order, std::int32_t* inverse) {
    const RowTasks split(batch * tokens, ROUTING_LEAST);
    std::atomic<bool> finite(true);
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        for (std::int64_t row = split.begin(task); row < split.end(task); row++) {
            index[row] = first_maximum(logits + row * classes, classes);
            if (index[row] < 0) {
                finite = false;
            }
        }
    });
    if (!finite) {
        return 1;
    }
    std::vector<std::int64_t> starts(batch * (classes + 1));
    parallel_tasks(batch, 0, [&](std::int64_t image, float*) {
        std::int64_t* next = starts.data() + image * (classes + 1);  // where the next token of a class goes
        const std::int32_t* own = index + image * tokens;
        for (std::int64_t t = 0; t < tokens; t++) {
            next[own[t] + 1]++;
        }
        for (int c = 0; c < classes; c++) {
            next[c + 1] += next[c];
        }
        for (std::int64_t t = 0; t < tokens; t++) {
            const std::int64_t place = next[own[t]]++;
            order[image * tokens + place] = static_cast<std::int32_t>(t);
            inverse[image * tokens + t] = static_cast<std::int32_t>(place);
        }
    });
    return OK;
}

// y[b][t] = x[b][order[b][t]] + residual[b][t] for rows of channels floats; residual may be null.
inline int gather_rows(const float* x, const std::int32_t* order, const float* residual, std::int64_t batch,
                       std::int64_t tokens, int channels, float* y) {
    const RowTasks split(batch * tokens, ROUTING_LEAST);
    std::atomic<bool> in_range(true);
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        for (std::int64_t row = split.begin(task); row < split.end(task); row++) {
            const std::int64_t from = order[row];
            if (from < 0 || from >= tokens) {
                in_range = false;
                return;
            }
            const float* source = x + (row / tokens * tokens + from) * channels;
            if (!residual) {
                std::memcpy(y + row * channels, source, channels * sizeof(float));
                continue;
            }
            for (int c = 0; c < channels; c += LANES) {
                const std::int64_t at = row * channels + c;
                const int count = channels - c;
                store_up_to(y + at, load_up_to(source + c, count) + load_up_to(residual + at, count), count);
            }
        }
    });
    return in_range ? OK : BAD_INDEX;
}

// prompt [rows][width] = table[index], table [classes][width].
inline int routed_prompt_forward(const float* table, const std::int32_t* index, std::int64_t rows,
                                 int classes, int width, float* prompt) {
    const RowTasks split(rows, ROUTING_LEAST);
    std::atomic<bool> in_range(true);
    parallel_tasks(split.tasks, 0, [&](std::int64_t task, float*) {
        for (std::int64_t row = split.begin(task); row < split.end(task); row++) {
            if (index[row] < 0 || index[row] >= classes) {
                in_range = false;
                return;
            }
            std::memcpy(prompt + row * width, table + index[row] * width, width * sizeof(float));
        }
    });
    return in_range ? OK : BAD_INDEX;
}

namespace detail {

// grad_logits = p (d - p.d) with p = softmax(logits) and d = grad table^T, the softmax's gradient; d comes in
// scores (padded). Columns that do not exist hold logits of -infinity.
inline void softmax_backward(const float* logits, int classes, const float* scores, float* scratch,
                             float* grad_logits) {
    const int width = padded(classes);
    std::copy(logits, logits + classes, scratch);
    std::fill(scratch + classes, scratch + width, -std::numeric_limits<float>::infinity());
    vf largest = load(scratch);
    for (int c = LANES; c < width; c += LANES) {
        const vf value = load(scratch + c);
        largest = select(value > largest, value, largest);
    }
    const vf top = broadcast(maximum(largest));
    vf total = {};
    vf product = {};
    for (int c = 0; c < width; c += LANES) {
        const vf e = exp(load(scratch + c) - top);
        total += e;
        product = multiply_add(e, load(scores + c), product);
        store(scratch + c, e);
    }
    const float scale = 1.0f / sum(total);
    const float mean = sum(product) * scale;
    for (int c = 0; c < width; c += LANES) {
        const vf result = load(scratch + c) * scale * (load(scores + c) - mean);
        if (c + LANES <= classes) {
            store(grad_logits + c, result);
        } else {
            store_partial(grad_logits + c, result, classes - c);
        }
    }
}

}  // namespace detail

// From grad [rows][width]: grad_table [classes][width], and grad_logits [rows][classes] straight through the
// argmax as if the prompt were softmax(logits) table. Either may be null.
inline void routed_prompt_backward(const float* logits, const float* table, const std::int32_t* index,
                                   const float* grad, std::int64_t rows, int classes, int width,
                                   float* grad_logits, float* grad_table) {
    const RowTasks split(rows, ROUTING_LEAST);
    const std::int64_t table_size = static_cast<std::int64_t>(classes) * width;
    const detail::PackedMatrix transposed(table, width, classes, true);
    const int padded_classes = padded(classes);
    Buffer partial(grad_table ? split.tasks * table_size : 0);
    parallel_tasks(split.tasks, (BLOCK_TOKENS + 1) * padded_classes, [&](std::int64_t task, float* scratch) {
        float* own = partial.data() + task * table_size;
        if (grad_table) {
            std::fill(own, own + table_size, 0.0f);
            for (std::int64_t row = split.begin(task); row < split.end(task); row++) {
                float* to = own + index[row] * width;
                for (int n = 0; n < width; n++) {
                    to[n] += grad[row * width + n];
                }
            }
        }
        if (!grad_logits) {
            return;
        }
        float* scores = scratch + padded_classes;
        for (std::int64_t row = split.begin(task); row < split.end(task); row += BLOCK_TOKENS) {
            const int block = static_cast<int>(std::min<std::int64_t>(BLOCK_TOKENS, split.end(task) - row));
            detail::multiply_rows(
                grad + row * width, width, block, transposed,
                [&](int r, int column, vf sums) { store(scores + r * padded_classes + column, sums); });
            for (int r = 0; r < block; r++) {
                detail::softmax_backward(logits + (row + r) * classes, classes, scores + r * padded_classes,
                                         scratch, grad_logits + (row + r) * classes);
            }
        }
    });
    if (grad_table) {
        add_partials(partial.data(), split.tasks, table_size, table_size, grad_table);
    }
}

}  // namespace ppsr2q
