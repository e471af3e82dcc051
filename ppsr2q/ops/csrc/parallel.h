// Work shared between threads so that results do not depend on how many there are: tasks are cut by the shape
// of the data alone, write to places of their own, and partial sums are added in the order of the tasks.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "denormals.h"
#include "simd.h"

namespace ppsr2q {

// OpenMP's threads; one where the code is compiled without it, as in the deployment runtime, which brings its own.
inline int available_threads() {
#if defined(_OPENMP)
    return omp_get_max_threads();
#else
    return 1;
#endif
}

inline int thread_number() {
#if defined(_OPENMP)
    return omp_get_thread_num();
#else
    return 0;
#endif
}

struct FreeBuffer {
    void operator()(float* p) const { std::free(p); }
};

// Uninitialized floats, aligned for vectors.
class Buffer {
public:
    explicit Buffer(std::size_t count) {
        std::size_t bytes = (count * sizeof(float) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
        memory_.reset(
            static_cast<float*>(std::aligned_alloc(ALIGNMENT, std::max<std::size_t>(bytes, ALIGNMENT))));
        if (!memory_) {
            throw std::bad_alloc();
        }
    }
    float* data() const { return memory_.get(); }
    float& operator[](std::size_t i) const { return memory_.get()[i]; }

private:
    std::unique_ptr<float, FreeBuffer> memory_;
};

// body(task, scratch) for every task in [0, tasks), denormals flushed; scratch holds scratch_size floats and belongs
// to the thread. Scratch is allocated here, not in the body, because no exception may leave a parallel region.
template <class Body>
void parallel_tasks(std::int64_t tasks, std::size_t scratch_size, const Body& body) {
    const int threads = static_cast<int>(std::min<std::int64_t>(available_threads(), tasks));
    const std::size_t stride = (scratch_size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    Buffer scratch(stride * threads);
    std::atomic<std::int64_t> next(0);
#if defined(_OPENMP)
#pragma omp parallel num_threads(threads)
#endif
    {
        const FlushDenormals flush;
        float* own = scratch.data() + stride * thread_number();
        for (std::int64_t task = next++; task < tasks; task = next++) {
            body(task, own);
        }
    }
}

// total[i] = sum over parts of partial[part * stride + i], in the order of the parts.
inline void add_partials(const float* partial, std::int64_t parts, std::int64_t stride, std::int64_t count,
                         float* total) {
    std::fill(total, total + count, 0.0f);
    for (std::int64_t part = 0; part < parts; part++) {
        const float* row = partial + part * stride;
        for (std::int64_t i = 0; i < count; i++) {
            total[i] += row[i];
        }
    }
}

// A range of rows cut into equal tasks: at most 64 (what partial sums cost), at least least_rows each.
struct RowTasks {
    std::int64_t rows;
    std::int64_t rows_per_task;
    std::int64_t tasks;

    RowTasks(std::int64_t rows, std::int64_t least_rows) : rows(rows) {
        rows_per_task = std::max<std::int64_t>(least_rows, (rows + 63) / 64);
        tasks = (rows + rows_per_task - 1) / rows_per_task;
    }
    std::int64_t begin(std::int64_t task) const { return task * rows_per_task; }
    std::int64_t end(std::int64_t task) const { return std::min(rows, (task + 1) * rows_per_task); }
};

// The first finding of any task that is not OK, in whatever order tasks run.
class Finding {
public:
    void report(int status) {
        int seen = found_.load();
        while ((seen == 0 || status < seen) && !found_.compare_exchange_weak(seen, status)) {
        }
    }
    int status() const { return found_.load(); }

private:
    std::atomic<int> found_{0};
};

}  // namespace ppsr2q
