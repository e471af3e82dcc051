// The selective scan where u and delta are codes: at most 2^bits timesteps and decay factors a channel exist, so all of
// them are tables made with the model, and no exponential is left to compute. Where one of them is not quantized, the
// kernel of ops computes instead.
//
// The states of a channel fill a vector. The recurrence runs for groups of four channels, as many as registers hold; a
// task takes one group after another through a piece of the tokens, so that lines of the planes are fetched once.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../../../ops/csrc/scan.h"
#include "codes.h"
#include "constants.h"
#include "source.h"
#include "team.h"

namespace ppsr2q {
namespace runtime {

constexpr int SCAN_CHANNELS = 4;  // of a group
constexpr int SCAN_GROUPS = CHANNELS / SCAN_CHANNELS;
constexpr std::int64_t SCAN_TOKENS = 256;  // of a piece

typedef float vs __attribute__((vector_size(STATES * 4)));  // the states of one channel
typedef float vs_unaligned __attribute__((vector_size(STATES * 4), aligned(4), may_alias));
typedef std::int32_t vs_int __attribute__((vector_size(STATES * 4)));
typedef float vsum __attribute__((vector_size(SCAN_CHANNELS * 4)));  // a number a channel of a group

// The operands of one scan, in scan order.
struct ScanPlanes {
    std::uint8_t* u_codes;  // [tokens][CHANNELS], where u and delta are quantized
    std::uint8_t* delta_codes;
    float* u;  // the same otherwise
    float* delta;
    float* B;  // [tokens][STATES]
    float* C;
};

namespace detail {

inline vs load_states(const float* p) { return *reinterpret_cast<const vs_unaligned*>(p); }

// The code nearest to x, ties to even, as a float.
inline vs nearest_code(vs x, float top) {
#if defined(__AVX__)
    const __m256 clipped = _mm256_min_ps((__m256)x, _mm256_set1_ps(top));
    return (vs)_mm256_round_ps(_mm256_max_ps(clipped, _mm256_setzero_ps()),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    x = x > top ? vs{} + top : x;
    x = x < 0.0f ? vs{} : x;
    return (x + ROUNDING) - ROUNDING;
#endif
}

// Lanes a[i ^ A] where bit H of i is clear, b[i ^ B] elsewhere.
template <int H, int A, int B, int... I>
inline vs pick_states(vs a, vs b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I & H ? STATES + (I ^ B) : I ^ A)...);
#else
    return __builtin_shuffle(a, b, vs_int{(I & H ? STATES + (I ^ B) : I ^ A)...});
#endif
}

// Lane i of the result is the sum of the lanes of x[i].
inline vsum sum_states(const vs (&x)[SCAN_CHANNELS]) {
    constexpr auto lanes = std::make_integer_sequence<int, STATES>();
    const vs a = pick_states<2, 0, 0>(x[0], x[2], lanes) + pick_states<2, 2, 2>(x[0], x[2], lanes);
    const vs b = pick_states<2, 0, 0>(x[1], x[3], lanes) + pick_states<2, 2, 2>(x[1], x[3], lanes);
    const vs c = pick_states<1, 0, 0>(a, b, lanes) + pick_states<1, 1, 1>(a, b, lanes);
    vsum halves[2];
    std::memcpy(halves, &c, sizeof(c));
    return halves[0] + halves[1];
}

}  // namespace detail

class SelectiveScan {
public:
    SelectiveScan(const Source& source, const std::string& name)
        : u_(source.quantizer(name + ".points.u")),
          delta_(source.quantizer(name + ".points.delta")),
          states_(source.quantizer(name + ".points.states")),
          A_(decay_rates(source, name)),
          D_(source.floats(name + ".Ds", CHANNELS)),
          bias_(source.folded(name + ".points.dt_bias") ? source.point(name + ".points.dt_bias", CHANNELS)
                                                        : source.floats(name + ".dt_projs_bias", CHANNELS)) {
        if (reads_codes()) {
            fill_tables();
        }
    }

    const Levels& u() const { return u_; }
    const Levels& delta() const { return delta_; }
    bool reads_codes() const { return u_.on && delta_.on; }

    // y [tokens][CHANNELS]. Channels do not meet: how they are shared between threads changes no result.
    void operator()(const ScanPlanes& planes, std::int64_t tokens, float* y, Team& team) const {
        if (!reads_codes()) {
            team.run(padded(CHANNELS) / LANES, [&](std::int64_t task, int) { run_floats(planes, tokens, task, y); });
            return;
        }
        const int groups = std::max(1, SCAN_GROUPS / team.size());
        team.run((SCAN_GROUPS + groups - 1) / groups, [&](std::int64_t task, int) {
            const int first = static_cast<int>(task) * groups;
            const int last = std::min(first + groups, SCAN_GROUPS);
            states_.on ? run<true>(planes, tokens, first, last, y) : run<false>(planes, tokens, first, last, y);
        });
    }

private:
    void run_floats(const ScanPlanes& planes, std::int64_t tokens, std::int64_t task, float* y) const {
        const ScanShape shape{1, tokens, CHANNELS};
        const ScanInputs in{planes.u, planes.delta, A_.data(), planes.B, planes.C, D_.data(), bias_.data(), states_};
        if (states_.on) {
            ppsr2q::detail::scan_channels_forward<STATES, true>(shape, in, task, y, nullptr, nullptr);
        } else {
            ppsr2q::detail::scan_channels_forward<STATES, false>(shape, in, task, y, nullptr, nullptr);
        }
    }

    static std::vector<float> decay_rates(const Source& source, const std::string& name) {
        if (source.folded(name + ".points.A")) {
            return source.point(name + ".points.A", CHANNELS * STATES);
        }
        std::vector<float> rates = source.floats(name + ".A_logs", CHANNELS * STATES);
        for (float& rate : rates) {
            rate = -std::exp(rate);
        }
        return rates;
    }

    void fill_tables() {
        for (int code = 0; code <= u_.top; code++) {
            values_.push_back(u_.value(code));
        }
        for (int channel = 0; channel < CHANNELS; channel++) {
            for (const float value : values_) {
                skips_.push_back(D_[channel] * value);
            }
        }
        const int codes = delta_.top + 1;
        timesteps_.resize(CHANNELS * codes);
        decays_.resize(static_cast<std::size_t>(CHANNELS) * codes * STATES + LANES);
        for (int channel = 0; channel < CHANNELS; channel++) {
            for (int code = 0; code < codes; code++) {
                const int row = channel * codes + code;
                const vf timestep = softplus(broadcast(delta_.value(code) + bias_[channel]));
                timesteps_[row] = timestep[0];
                for (int n = 0; n < STATES; n += LANES) {
                    const vf A = load_up_to(A_.data() + channel * STATES + n, STATES - n);
                    store_up_to(decays_.data() + row * STATES + n, exp(timestep * A), STATES - n);
                }
            }
        }
    }

    // Groups first .. last of all tokens.
    template <bool QUANTIZED>
    void run(const ScanPlanes& planes, std::int64_t tokens, int first, int last, float* y) const {
        vs states[SCAN_GROUPS][SCAN_CHANNELS] = {};
        for (std::int64_t begin = 0; begin < tokens; begin += SCAN_TOKENS) {
            const std::int64_t end = std::min(begin + SCAN_TOKENS, tokens);
            for (int group = first; group < last; group++) {
                run_piece<QUANTIZED>(planes, begin, end, group, states[group], y);
            }
        }
    }

    template <bool QUANTIZED>
    void run_piece(const ScanPlanes& planes, std::int64_t begin, std::int64_t end, int group,
                   vs (&states)[SCAN_CHANNELS], float* y) const {
        const int first = group * SCAN_CHANNELS;
        const int deltas = delta_.top + 1;
        const int us = u_.top + 1;
        const float* decays = decays_.data() + static_cast<std::size_t>(first) * deltas * STATES;
        const float* timesteps = timesteps_.data() + first * deltas;
        const float* values = values_.data();
        const float* skips = skips_.data() + first * us;
        const float inverse_step = states_.inverse_step;
        const float offset = -states_.lower * inverse_step;
        const float top = static_cast<float>(states_.top);
        const float step = states_.step;
        const float lower = states_.lower;
        vs h[SCAN_CHANNELS];
        std::copy(states, states + SCAN_CHANNELS, h);
        for (std::int64_t t = begin; t < end; t++) {
            const std::uint8_t* u = planes.u_codes + t * CHANNELS + first;
            const std::uint8_t* delta = planes.delta_codes + t * CHANNELS + first;
            const vs B = detail::load_states(planes.B + t * STATES);
            const vs C = detail::load_states(planes.C + t * STATES);
            vs products[SCAN_CHANNELS];
#pragma GCC unroll 4
            for (int c = 0; c < SCAN_CHANNELS; c++) {
                const int row = c * deltas + delta[c];
                const float driven = timesteps[row] * values[u[c]];
                h[c] = detail::load_states(decays + row * STATES) * h[c] + driven * B;
                const vs skip = {skips[c * us + u[c]]};  // D u, in the first lane of the sum
                if (QUANTIZED) {
                    const vs code = detail::nearest_code(h[c] * inverse_step + offset, top);
                    products[c] = (code * step + lower) * C + skip;
                } else {
                    products[c] = h[c] * C + skip;
                }
            }
            const vsum result = detail::sum_states(products);
            std::memcpy(y + t * CHANNELS + first, &result, sizeof(result));
        }
        std::copy(h, h + SCAN_CHANNELS, states);
    }

    Levels u_, delta_, states_;
    std::vector<float> A_, D_, bias_;
    std::vector<float> timesteps_;  // [channel][code of delta]
    std::vector<float> decays_;     // [channel][code of delta][state]
    std::vector<float> values_;     // [code of u]
    std::vector<float> skips_;      // [channel][code of u]: D u
};

}  // namespace runtime
}  // namespace ppsr2q
