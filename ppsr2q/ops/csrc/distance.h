// Squared distance of two tensors, sample by sample, after each was divided by its norm.
#pragma once

#include <cmath>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace ppsr2q {

constexpr std::int64_t DISTANCE_PIECE = 16384;  // elements a task
constexpr double SMALLEST_NORM = 1e-12;

// a, b [batch][size]. The samples are cut into pieces, which are tasks.
struct FeatureDistance {
    const float* a;
    const float* b;
    std::int64_t batch;
    std::int64_t size;

    std::int64_t pieces() const { return (size + DISTANCE_PIECE - 1) / DISTANCE_PIECE; }

    // body(task, sample, begin, end) for every piece: elements begin to end of a and b.
    template <class Body>
    void for_each_piece(const Body& body) const {
        parallel_tasks(batch * pieces(), 0, [&](std::int64_t task, float*) {
            const std::int64_t sample = task / pieces();
            const std::int64_t begin = task % pieces() * DISTANCE_PIECE;
            body(task, sample, sample * size + begin, sample * size + std::min(size, begin + DISTANCE_PIECE));
        });
    }

    // totals[sample] = sum of partial[sample's pieces], in their order.
    std::vector<double> add_pieces(const std::vector<double>& partial) const {
        std::vector<double> totals(batch);
        for (std::int64_t task = 0; task < batch * pieces(); task++) {
            totals[task / pieces()] += partial[task];
        }
        return totals;
    }
};

namespace detail {

// sum of value(i, count) over [begin, end), a vector at a time; lanes beyond count must be 0.
template <class Value>
inline double sum_range(std::int64_t begin, std::int64_t end, const Value& value) {
    double total = 0.0;
    while (begin < end) {  // float32 sums of a few hundred terms each
        const std::int64_t stop = std::min(end, begin + 512 * LANES);
        vf part = {};
        for (; begin < stop; begin += LANES) {
            part += value(begin, static_cast<int>(std::min<std::int64_t>(LANES, stop - begin)));
        }
        total += sum(part);
    }
    return total;
}

}  // namespace detail

// inverses [2][batch]: 1 / |a| and 1 / |b|.
inline void inverse_norms(const FeatureDistance& in, float* inverses) {
    const float* sources[] = {in.a, in.b};
    for (int which = 0; which < 2; which++) {
        const float* x = sources[which];
        std::vector<double> partial(in.batch * in.pieces());
        in.for_each_piece([&](std::int64_t task, std::int64_t, std::int64_t begin, std::int64_t end) {
            partial[task] = detail::sum_range(begin, end, [&](std::int64_t i, int count) {
                const vf value = load_up_to(x + i, count);
                return value * value;
            });
        });
        const std::vector<double> squares = in.add_pieces(partial);
        for (std::int64_t sample = 0; sample < in.batch; sample++) {
            const double norm = std::sqrt(squares[sample]);
            inverses[which * in.batch + sample] =
                static_cast<float>(1.0 / (norm < SMALLEST_NORM ? SMALLEST_NORM : norm));
        }
    }
}

// distance[sample] = sum of (a / |a| - b / |b|)^2, given inverse_norms (ones: the plain distance). Whether all
// of it is finite.
inline bool feature_distance_forward(const FeatureDistance& in, const float* inverses, float* distance) {
    std::vector<double> partial(in.batch * in.pieces());
    in.for_each_piece([&](std::int64_t task, std::int64_t sample, std::int64_t begin, std::int64_t end) {
        const float own = inverses[sample];
        const float other = inverses[in.batch + sample];
        partial[task] = detail::sum_range(begin, end, [&](std::int64_t i, int count) {
            const vf difference = load_up_to(in.a + i, count) * own - load_up_to(in.b + i, count) * other;
            return difference * difference;
        });
    });
    const std::vector<double> totals = in.add_pieces(partial);
    bool finite = true;
    for (std::int64_t sample = 0; sample < in.batch; sample++) {
        distance[sample] = static_cast<float>(totals[sample]);
        finite = finite && std::isfinite(distance[sample]);
    }
    return finite;
}

// grad_a from the gradient of the distances; the norms count as constants.
inline void feature_distance_backward(const FeatureDistance& in, const float* inverses,
                                      const float* grad_distance, float* grad_a) {
    in.for_each_piece([&](std::int64_t, std::int64_t sample, std::int64_t begin, std::int64_t end) {
        const float own = inverses[sample];
        const float other = inverses[in.batch + sample];
        const float factor = 2.0f * grad_distance[sample] * own;
        for (std::int64_t i = begin; i < end; i += LANES) {
            const int count = static_cast<int>(std::min<std::int64_t>(LANES, end - i));
            const vf difference = load_up_to(in.a + i, count) * own - load_up_to(in.b + i, count) * other;
            store_up_to(grad_a + i, difference * factor, count);
        }
    });
}

}  // namespace ppsr2q
