// The selective scan where u and delta are codes: at most 2^bits timesteps and decay factors a channel exist, so all of
// them are tables made with the model, and no exponential is left to compute. Where one of them is not quantized, the
// kernel of ops computes instead.
//
// The states of a channel fill a vector; a task runs the recurrence of eight channels.
#pragma once

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "../../../ops/csrc/scan.h"
#include "codes.h"
#include "constants.h"
#include "source.h"

namespace ppsr2q {
namespace runtime {

constexpr int SCAN_CHANNELS = 8;  // of a task
constexpr int SCAN_TASKS = CHANNELS / SCAN_CHANNELS;

typedef float vs __attribute__((vector_size(STATES * 4)));  // the states of one channel
typedef float vs_unaligned __attribute__((vector_size(STATES * 4), aligned(4), may_alias));
typedef std::int32_t vs_int __attribute__((vector_size(STATES * 4)));

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

// x clipped to [0, top].
inline vs clip_states(vs x, float top) {
#if defined(__AVX__)
    const __m256 clipped = _mm256_min_ps((__m256)x, _mm256_set1_ps(top));
    return (vs)_mm256_max_ps(clipped, _mm256_setzero_ps());
#else
    x = x > top ? vs{} + top : x;
    return x < 0.0f ? vs{} : x;
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

// Lane i of the result is the sum of the lanes of x[i]; overwrites x.
template <int H = STATES / 2>
inline vs sum_states(vs* x) {
    if constexpr (H == 0) {
        return x[0];
    } else {
        constexpr auto lanes = std::make_integer_sequence<int, STATES>();
        for (int i = 0; i < H; i++) {
            x[i] = pick_states<H, 0, 0>(x[i], x[i + H], lanes) + pick_states<H, H, H>(x[i], x[i + H], lanes);
        }
        return sum_states<H / 2>(x);
    }
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

    static int tasks(bool codes) { return codes ? SCAN_TASKS : padded(CHANNELS) / LANES; }

    // y [tokens][CHANNELS] of the channels of one task. Tasks that follow each other share no line of y.
    void operator()(const ScanPlanes& planes, std::int64_t tokens, std::int64_t task, float* y) const {
        if (reads_codes()) {
            const int group = static_cast<int>(task * 2 % SCAN_TASKS + task * 2 / SCAN_TASKS);
            states_.on ? run<true>(planes, tokens, group, y) : run<false>(planes, tokens, group, y);
            return;
        }
        const ScanShape shape{1, tokens, CHANNELS};
        const ScanInputs in{planes.u, planes.delta, A_.data(), planes.B, planes.C, D_.data(), bias_.data(), states_};
        if (states_.on) {
            ppsr2q::detail::scan_channels_forward<STATES, true>(shape, in, task, y, nullptr, nullptr);
        } else {
            ppsr2q::detail::scan_channels_forward<STATES, false>(shape, in, task, y, nullptr, nullptr);
        }
    }

private:
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

    template <bool QUANTIZED>
    void run(const ScanPlanes& planes, std::int64_t tokens, int group, float* y) const {
        const int first = group * SCAN_CHANNELS;
        const int codes = delta_.top + 1;
        const float* decays = decays_.data() + static_cast<std::size_t>(first) * codes * STATES;
        const float* timesteps = timesteps_.data() + first * codes;
        const vs D = detail::load_states(D_.data() + first);
        const float inverse_step = states_.inverse_step;
        const float place_offset = -states_.lower * inverse_step;
        const float top = static_cast<float>(states_.top);
        vs h[SCAN_CHANNELS] = {};
        for (std::int64_t t = 0; t < tokens; t++) {
            const std::uint8_t* u_codes = planes.u_codes + t * CHANNELS + first;
            const std::uint8_t* delta_codes = planes.delta_codes + t * CHANNELS + first;
            const vs B = detail::load_states(planes.B + t * STATES);
            const vs C = detail::load_states(planes.C + t * STATES);
            vs u;
            vs products[SCAN_CHANNELS];
#pragma GCC unroll 8
            for (int c = 0; c < SCAN_CHANNELS; c++) {
                const int row = c * codes + delta_codes[c];
                const float value = u_.value(u_codes[c]);
                u[c] = value;
                h[c] = detail::load_states(decays + row * STATES) * h[c] + timesteps[row] * value * B;
                vs seen = h[c];
                if (QUANTIZED) {
                    const vs place = detail::clip_states(h[c] * inverse_step + place_offset, top);
                    seen = ((place + ROUNDING) - ROUNDING) * states_.step + states_.lower;
                }
                products[c] = seen * C;
            }
            *reinterpret_cast<vs_unaligned*>(y + t * CHANNELS + first) = detail::sum_states(products) + D * u;
        }
    }

    Levels u_, delta_, states_;
    std::vector<float> A_, D_, bias_;
    std::vector<float> timesteps_;  // [channel][code of delta]
    std::vector<float> decays_;     // [channel][code of delta][state]
};

}  // namespace runtime
}  // namespace ppsr2q
