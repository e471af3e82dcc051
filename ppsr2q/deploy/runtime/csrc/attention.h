// Attention inside one window, from rows of q, k, v to rows of the mixed values. Queries fill the lanes, so that
// softmax needs no sums across lanes; the scores of one vector of queries stay in the first-level cache. All
// scores are in units of log2, where exp is cheapest.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "../../../ops/csrc/windows.h"
#include "codes.h"
#include "constants.h"
#include "source.h"

namespace ppsr2q {
namespace runtime {

constexpr float LOG2_E = 1.44269504f;
constexpr float SMALLEST_POWER = -100.0f;  // of 2: softmax clips there, and nothing gets denormal
constexpr int BIAS_SIDE = 2 * WINDOW - 1;
constexpr int MIX_CHANNELS = 6;  // of the mixed values that are summed together: as many as registers hold
constexpr int MIXED_ROWS = (HEAD_CHANNELS + LANES - 1) / LANES * LANES;
constexpr int SUM_CHAINS = 2;  // partial sums of a softmax, so that additions need not wait for each other

// 2^x for |x| < 126: a minimax polynomial around the nearest whole number (relative error 8e-8).
inline vf exp2_in_range(vf x) {
    const vf shifted = x + ROUNDING;
    const vf r = x - (shifted - ROUNDING);
    vf p = r * 1.327647199e-3f + 9.675541334e-3f;
    p = p * r + 5.550713274e-2f;
    p = p * r + 2.402211972e-1f;
    p = p * r + 6.931469671e-1f;
    p = p * r + 1.0f;
    return as_float(as_int(p) + (as_int(shifted) << 23));  // ROUNDING's own bits leave at the top
}

// Rows of one window, token by token in raster order, codes where the quantizer is on and floats otherwise. out holds
// the mixed values.
struct alignas(ALIGNMENT) AttentionRows {
    float q[WINDOW_TOKENS * CHANNELS], k[WINDOW_TOKENS * CHANNELS], v[WINDOW_TOKENS * CHANNELS];
    float out[WINDOW_TOKENS * CHANNELS];
    std::uint8_t q_codes[WINDOW_TOKENS * CHANNELS], k_codes[WINDOW_TOKENS * CHANNELS];
    std::uint8_t v_codes[WINDOW_TOKENS * CHANNELS];
    float mask[4 * WINDOW_TOKENS];
    // One head at a time:
    std::int32_t q_words[HEAD_CHANNELS / 2 * WINDOW_TOKENS];  // [word][query]
    std::int32_t k_words[WINDOW_TOKENS * HEAD_CHANNELS / 2];  // [key][word]
    float q_columns[HEAD_CHANNELS * WINDOW_TOKENS];           // [channel][query]
    float key_terms[WINDOW_TOKENS];
    float scores[WINDOW_TOKENS * LANES];  // [key][query of one vector]
    std::int32_t map_words[WINDOW_TOKENS / 2 * LANES];
    float mixed[MIXED_ROWS * LANES];      // [channel][query of one vector]
    // All heads:
    std::int32_t v_words[WINDOW_TOKENS / 2 * CHANNELS];  // [group of keys][channel]
    float value_terms[CHANNELS];
};

class WindowAttention {
public:
    WindowAttention(const Source& source, const std::string& name)
        : q_(source.quantizer(name + ".points.q")),
          k_(source.quantizer(name + ".points.k")),
          v_(source.quantizer(name + ".points.v")),
          map_(source.quantizer(name + ".points.map")),
          score_codes_(q_.on && k_.on),
          mix_codes_(map_.on && v_.on && places_are_small(map_)),
          score_bytes_(score_codes_ && bytes_fit(q_, k_, HEAD_CHANNELS)),
          mix_bytes_(mix_codes_ && bytes_fit(map_, v_, WINDOW_TOKENS)),
          bias_(HEADS * BIAS_SIDE * BIAS_SIDE + LANES, 0.0f) {
        const int size = BIAS_SIDE * BIAS_SIDE;
        const std::vector<float> table =
            source.floats(name + ".relative_position_bias_table", std::int64_t{size} * HEADS);
        for (int row = 0; row < size; row++) {
            for (int head = 0; head < HEADS; head++) {
                bias_[head * size + row] = table[row * HEADS + head] * LOG2_E;
            }
        }
    }

    // q (scaled already), k and v as the linear layers made them -> what the products read.
    void quantize(AttentionRows& rows) const {
        quantize_factor(q_, score_codes_, rows.q, rows.q_codes);
        quantize_factor(k_, score_codes_, rows.k, rows.k_codes);
        quantize_factor(v_, mix_codes_, rows.v, rows.v_codes);
    }

    // rows.out from what quantize left.
    void attend(const Window& window, AttentionRows& rows) const {
        const bool masked = window.masked();
        if (masked) {
            window.fill_mask(rows.mask);
            for (float& entry : rows.mask) {
                entry *= LOG2_E;
            }
        }
        gather_values(rows);
        for (int head = 0; head < HEADS; head++) {
            gather_scores(head, rows);
            for (int first = 0; first < WINDOW_TOKENS; first += LANES) {
                const vf largest = masked ? score<true>(window, head, first, rows)
                                          : score<false>(window, head, first, rows);
                const vf inverse_sum = 1.0f / numerators(largest, rows.scores);
                mix(head, inverse_sum, rows);
                scatter_mixed(rows.mixed, rows.out + first * CHANNELS + head * HEAD_CHANNELS);
            }
        }
    }

private:
    // Whether no number from 0 to 1, the range of the map, has a place too large for round_to_words.
    static bool places_are_small(const Levels& levels) {
        return (1.0f + std::abs(levels.lower)) * levels.inverse_step < 1e9f;
    }

    static void quantize_factor(const Levels& levels, bool to_codes, float* x, std::uint8_t* codes) {
        const int count = WINDOW_TOKENS * CHANNELS;
        if (to_codes) {
            quantize_codes(x, count, levels, codes);
        } else if (levels.on) {
            for (int i = 0; i < count; i += LANES) {
                store(x + i, levels.quantize(load(x + i)));
            }
        }
    }

    // ---------------------------------------------------------------- scores

    // Terms of a score that are the same for all keys cancel in the softmax and are left out; what depends on the key
    // alone is a_q s_k times the sum of its codes.
    void gather_scores(int head, AttentionRows& rows) const {
        const int first = head * HEAD_CHANNELS;
        if (!score_codes_) {
            for (int c = 0; c < HEAD_CHANNELS; c++) {
                for (int i = 0; i < WINDOW_TOKENS; i++) {
                    rows.q_columns[c * WINDOW_TOKENS + i] = rows.q[i * CHANNELS + first + c];
                }
            }
            return;
        }
        const SignedCodes keys(k_, score_bytes_);
        const float term = q_.lower * k_.step * LOG2_E;
        with_dot(score_bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            constexpr int words = HEAD_CHANNELS / Dot::GROUP;
            for (int i = 0; i < WINDOW_TOKENS; i++) {
                const std::uint8_t* q = rows.q_codes + i * CHANNELS + first;
                const std::uint8_t* k = rows.k_codes + i * CHANNELS + first;
                rows.key_terms[i] = term * static_cast<float>(sum_codes(k, HEAD_CHANNELS));
                for (int word = 0; word < words; word++) {
                    rows.q_words[word * WINDOW_TOKENS + i] = load_word<Dot>(q + word * Dot::GROUP, 0);
                    rows.k_words[i * words + word] = load_word<Dot>(k + word * Dot::GROUP, keys.shift);
                }
            }
        });
    }

    // Scores of all keys for one vector of queries; returns the largest of each query.
    template <bool MASKED>
    vf score(const Window& window, int head, int first, AttentionRows& rows) const {
        vf largest = broadcast(-3e38f);
        if (!score_codes_) {
            vf q[HEAD_CHANNELS];
            for (int c = 0; c < HEAD_CHANNELS; c++) {
                q[c] = load(rows.q_columns + c * WINDOW_TOKENS + first);
            }
            const float* k = rows.k + head * HEAD_CHANNELS;
            add_biases<MASKED>(window, head, first, rows, largest, [&](int key) {
                vf sum = q[0] * broadcast(k[key * CHANNELS]);
                for (int c = 1; c < HEAD_CHANNELS; c++) {
                    sum = multiply_add(q[c], broadcast(k[key * CHANNELS + c]), sum);
                }
                return sum * LOG2_E;
            });
            return largest;
        }
        const vf scale = broadcast(q_.step * k_.step * LOG2_E);
        with_dot(score_bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            constexpr int words = HEAD_CHANNELS / Dot::GROUP;
            vi q[words];
            for (int word = 0; word < words; word++) {
                q[word] = load_words(rows.q_words + word * WINDOW_TOKENS + first);
            }
            add_biases<MASKED>(window, head, first, rows, largest, [&](int key) {
                vi sum = {};
                for (int word = 0; word < words; word++) {
                    sum = Dot::add(sum, q[word], broadcast_word(rows.k_words[key * words + word]));
                }
                return to_float(Dot::finish(sum)) * scale + broadcast(rows.key_terms[key]);
            });
        });
        return largest;
    }

    template <bool MASKED, class Product>
    void add_biases(const Window& window, int head, int first, AttentionRows& rows, vf& largest,
                    const Product& product) const {
        const float* bias = bias_.data() + head * BIAS_SIDE * BIAS_SIDE +
                            (first / WINDOW + WINDOW - 1) * BIAS_SIDE + first % WINDOW + WINDOW - 1;
        for (int y = 0; y < WINDOW; y++) {
            for (int x = 0; x < WINDOW; x++) {
                const int key = y * WINDOW + x;
                vf score = product(key) + load(bias - y * BIAS_SIDE - x);
                if (MASKED) {  // the mask is symmetric: the key's region chooses the row
                    score += load(rows.mask + window.region(key) * WINDOW_TOKENS + first);
                }
                largest = at_least(score, largest);
                store(rows.scores + key * LANES, score);
            }
        }
    }

    // Scores -> numerators of the softmax, in place; returns their sum.
    static vf numerators(vf largest, float* scores) {
        vf sums[SUM_CHAINS] = {};
        for (int key = 0; key < WINDOW_TOKENS; key += SUM_CHAINS) {
            for (int i = 0; i < SUM_CHAINS; i++) {
                float* p = scores + (key + i) * LANES;
                const vf e = exp2_in_range(at_least(load(p) - largest, broadcast(SMALLEST_POWER)));
                sums[i] += e;
                store(p, e);
            }
        }
        return sums[0] + sums[1];
    }

    // ---------------------------------------------------------------- values

    void gather_values(AttentionRows& rows) const {
        if (!mix_codes_) {
            return;
        }
        const SignedCodes values(v_, mix_bytes_);
        with_dot(mix_bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            for (int c = 0; c < CHANNELS; c += LANES) {
                vi total = {};
                for (int group = 0; group < WINDOW_TOKENS / Dot::GROUP; group++) {
                    vi codes[Dot::GROUP];
                    for (int i = 0; i < Dot::GROUP; i++) {
                        codes[i] = load_bytes(rows.v_codes + (group * Dot::GROUP + i) * CHANNELS + c);
                        total += codes[i];
                        codes[i] ^= values.shift;  // takes it off: a byte has no other bits
                    }
                    store_words(rows.v_words + group * CHANNELS + c, join_words<Dot>(codes));
                }
                const vf sum = to_float(total - WINDOW_TOKENS * values.shift);
                store(rows.value_terms + c, map_.lower * (v_.step * sum + WINDOW_TOKENS * values.lower));
            }
        });
    }

    // mixed [channel][query] of a head -> its channels in the rows of the queries.
    static void scatter_mixed(const float* mixed, float* out) {
        for (int c = 0; c < HEAD_CHANNELS; c += LANES) {
            vf block[LANES];
            for (int i = 0; i < LANES; i++) {
                block[i] = load(mixed + (c + i) * LANES);
            }
            transpose(block);
            for (int lane = 0; lane < LANES; lane++) {
                store_up_to(out + lane * CHANNELS + c, block[lane], HEAD_CHANNELS - c);
            }
        }
    }

    // rows.mixed = map times values for the queries of rows.scores.
    void mix(int head, vf inverse_sum, AttentionRows& rows) const {
        if (mix_codes_) {
            with_dot(mix_bytes_, [&](auto dot) { mix_codes<decltype(dot)>(head * HEAD_CHANNELS, inverse_sum, rows); });
            return;
        }
        vf sums[HEAD_CHANNELS] = {};
        const float* v = rows.v + head * HEAD_CHANNELS;
        for (int key = 0; key < WINDOW_TOKENS; key++) {
            vf weight = load(rows.scores + key * LANES);
            if (map_.on) {
                weight = map_.quantize(weight * inverse_sum);
            }
            for (int c = 0; c < HEAD_CHANNELS; c++) {
                sums[c] = multiply_add(weight, broadcast(v[key * CHANNELS + c]), sums[c]);
            }
        }
        for (int c = 0; c < HEAD_CHANNELS; c++) {
            store(rows.mixed + c * LANES, map_.on ? sums[c] : sums[c] * inverse_sum);
        }
    }

    // sum over keys of (s p + a)(t v + b) = s t sum p v + s b sum p + [a t sum v + keys a b].
    template <class Dot>
    void mix_codes(int channel, vf inverse_sum, AttentionRows& rows) const {
        const vf map_sum = to_float(map_words<Dot>(inverse_sum, rows)) * map_.step;
        const SignedCodes values(v_, mix_bytes_);
        const float scale = map_.step * v_.step;
        for (int first = 0; first < HEAD_CHANNELS; first += MIX_CHANNELS) {
            vi sums[MIX_CHANNELS] = {};
            for (int group = 0; group < WINDOW_TOKENS / Dot::GROUP; group++) {
                const vi word = load_words(rows.map_words + group * LANES);
                const std::int32_t* v = rows.v_words + group * CHANNELS + channel + first;
#pragma GCC unroll 6
                for (int c = 0; c < MIX_CHANNELS; c++) {
                    sums[c] = Dot::add(sums[c], word, broadcast_word(v[c]));
                }
            }
            for (int c = 0; c < MIX_CHANNELS; c++) {
                store(rows.mixed + (first + c) * LANES,
                      to_float(Dot::finish(sums[c])) * scale +
                          (map_sum * values.lower + rows.value_terms[channel + first + c]));
            }
        }
    }

    // Codes of the map, as words of neighbouring keys; returns their sums.
    template <class Dot>
    vi map_words(vf inverse_sum, AttentionRows& rows) const {
        const vi ones = broadcast_word(make_word<Dot>([](int) { return 1; }));
        const vf scale = inverse_sum * map_.inverse_step;
        const vf offset = broadcast(-map_.lower * map_.inverse_step);
        vi sum = {};
        for (int group = 0; group < WINDOW_TOKENS / Dot::GROUP; group++) {
            vf places[Dot::GROUP];
            for (int i = 0; i < Dot::GROUP; i++) {
                places[i] = load(rows.scores + (group * Dot::GROUP + i) * LANES) * scale + offset;
            }
            const vi word = round_to_words<Dot>(places, map_.top);
            store_words(rows.map_words + group * LANES, word);
            sum = Dot::add(sum, word, ones);
        }
        return Dot::finish(sum);
    }

    Levels q_, k_, v_, map_;
    bool score_codes_, mix_codes_;
    bool score_bytes_, mix_bytes_;
    std::vector<float> bias_;  // [head][row of the table], in units of log2
};

}  // namespace runtime
}  // namespace ppsr2q
