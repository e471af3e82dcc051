// Depth-wise convolution of a run of pixels of one row, channels last, padded with an exact 0 behind the quantizer:
// on codes where input and weight are quantized, on floats otherwise.
//
// On codes a word holds the codes of one channel in neighbouring rows, so that one product takes several taps. Some
// rows of output share the words that they read, each with taps of its own, 0 for rows that are not its neighbours.
// Rows are flat (pixel x, channel c at x channels + c), taps repeated to a period that vectors divide.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../../../ops/csrc/convolution.h"
#include "codes.h"
#include "constants.h"
#include "matrix.h"
#include "source.h"

namespace ppsr2q {
namespace runtime {

constexpr int PERIOD = 48;  // a multiple of every LANES and of both numbers of channels
constexpr int LARGEST_KERNEL = 5;
constexpr int MOST_ROWS = 4;  // of output that share their words
constexpr int DEPTHWISE_VECTORS = 4;  // vectors, a period apart, that share their taps

// What is convolved: codes where the convolution's input is quantized, floats otherwise.
struct ImagePlane {
    const std::uint8_t* codes;  // [height][width][channels]
    const float* values;        // the same
    int height, width;
};

struct alignas(ALIGNMENT) DepthwiseScratch {
    static constexpr int ROW = (BLOCK + LARGEST_KERNEL - 1) * CHANNELS + PERIOD;
    std::int32_t words[LARGEST_KERNEL * ROW];  // of codes; or the rows as floats
    std::int32_t column_sums[MOST_ROWS * ROW];
    float start[BLOCK * CHANNELS];
    std::uint8_t zeros[ROW];  // all 0
};

// SIDE x SIDE taps, SIDE odd.
template <int SIZE, int SIDE>
class Depthwise {
public:
    // Rows of output that share words: with their halo they fill whole ones.
    static constexpr int ROWS = (SIDE + 3) / 4 * 4 - SIDE + 1;
    static_assert(ROWS <= MOST_ROWS && SIDE <= LARGEST_KERNEL && WINDOW % ROWS == 0, "sizes of the scratch");

    Depthwise(const Source& source, const std::string& name) : input_(source.quantizer(name + ".input")) {
        const Weight weight = source.weight(name + ".weight", name + ".weight", SIZE * TAPS);
        const std::vector<float> bias = source.floats(name + ".bias", SIZE);
        multiplies_codes_ = weight.levels.on && input_.on;
        shape_ = DepthwiseShape{1, 0, 0, SIZE, SIDE};
        taps_.resize(TAPS * shape_.period());
        bias_.resize(shape_.period());
        repeat_taps(shape_, weight.values.data(), false, taps_.data());
        repeat_bias(shape_, bias.data(), bias_.data());
        if (multiplies_codes_) {
            bytes_ = bytes_fit(input_, weight.levels, 4 * SIDE * ((SIDE + 3) / 4));  // as many as a sum has
            const SignedCodes codes(weight.levels, bytes_);
            scale_ = input_.step * weight.levels.step;
            sum_scale_ = input_.step * codes.lower;
            pack_words(weight, codes.shift);
            fill_edges(weight.values, bias);
        }
    }

    const Levels& input() const { return input_; }

    // Prepares scratch for ROWS rows from y on, a multiple of ROWS, at count pixels from column x on; x, count and the
    // image's width are even.
    void open(const ImagePlane& plane, int y, int x, int count, DepthwiseScratch& scratch) const {
        if (multiplies_codes_) {
            with_dot(bytes_, [&](auto dot) { fill_words<decltype(dot)>(plane, y, x, count, scratch); });
        }
    }

    // out [count][channels], the convolution at the pixels of row y, one of those that scratch was opened for.
    void operator()(const ImagePlane& plane, int y, int x, int count, DepthwiseScratch& scratch,
                    float* out) const {
        if (multiplies_codes_) {
            with_dot(bytes_, [&](auto dot) { convolve_codes<decltype(dot)>(plane, y, x, count, scratch, out); });
        } else {
            convolve_floats(plane, y, x, count, scratch, out);
        }
    }

private:
    static constexpr int TAPS = SIDE * SIDE;
    static constexpr int HALO = SIDE / 2;
    static constexpr int INPUT_ROWS = ROWS + SIDE - 1;

    // Places in a word at which the first row of an output's neighbours may lie.
    template <class Dot>
    static constexpr int offsets() {
        return std::min(ROWS, Dot::GROUP);
    }

    // Words that hold the neighbours of an output.
    template <class Dot>
    static constexpr int words() {
        return (offsets<Dot>() - 1 + SIDE + Dot::GROUP - 1) / Dot::GROUP;
    }

    void pack_words(const Weight& weight, int shift) {
        with_dot(bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            for (int offset = 0; offset < offsets<Dot>(); offset++) {
                auto word_of = [&](int word, const auto& code) {
                    return make_word<Dot>([&](int j) {
                        const int ty = word * Dot::GROUP + j - offset;
                        return 0 <= ty && ty < SIDE ? code(ty) : 0;
                    });
                };
                for (int tx = 0; tx < SIDE; tx++) {
                    for (int word = 0; word < words<Dot>(); word++) {
                        for (int i = 0; i < PERIOD; i++) {
                            memory_.push_back(word_of(word, [&](int ty) {
                                return tap(weight.codes, i % SIZE, ty, tx) - shift;
                            }));
                        }
                    }
                }
                for (int word = 0; word < words<Dot>(); word++) {
                    ones_.push_back(word_of(word, [](int) { return 1; }));
                }
            }
        });
    }

    template <class T>
    int tap(const T& weight, int channel, int ty, int tx) const {
        return weight[(channel * SIDE + ty) * SIDE + tx];
    }

    // edges_[row class][column class]: bias + a times the weights of the taps inside the image. Classes 0 to 2 halo:
    // which of the first or last pixels of the axis it is, halo standing for all inner ones.
    void fill_edges(const std::vector<float>& weight, const std::vector<float>& bias) {
        edges_.resize(SIDE * SIDE * PERIOD);
        for (int row = 0; row < SIDE; row++) {
            for (int column = 0; column < SIDE; column++) {
                for (int i = 0; i < PERIOD; i++) {
                    const int channel = i % SIZE;
                    float sum = 0.0f;
                    for (int ty = std::max(0, HALO - row); ty < std::min(SIDE, SIDE + HALO - row); ty++) {
                        for (int tx = std::max(0, HALO - column);
                             tx < std::min(SIDE, SIDE + HALO - column); tx++) {
                            sum += weight[(channel * SIDE + ty) * SIDE + tx];
                        }
                    }
                    edges_[(row * SIDE + column) * PERIOD + i] = bias[channel] + input_.lower * sum;
                }
            }
        }
    }

    int edge_class(int at, int size) const {
        return at < HALO ? at : at >= size - HALO ? SIDE - size + at : HALO;
    }

    // The range (first, last) of flat positions of the run and its halo that lie inside the image, from the halo's
    // begin.
    std::pair<int, int> inside(const ImagePlane& plane, int x, int count) const {
        return {std::max(0, HALO - x) * SIZE,
                (std::min(count + 2 * HALO, plane.width + HALO - x)) * SIZE};
    }

    template <class Dot>
    void convolve_codes(const ImagePlane& plane, int y, int x, int count, DepthwiseScratch& scratch,
                        float* out) const {
        const int flat = count * SIZE, row = y % ROWS;
        const float* start = edges_.data() + edge_class(y, plane.height) * SIDE * PERIOD;
        const bool inner = x >= HALO && x + count <= plane.width - HALO;
        if (!inner) {
            for (int i = 0; i < count; i++) {
                std::copy_n(start + edge_class(x + i, plane.width) * PERIOD, SIZE,
                            scratch.start + i * SIZE);
            }
        }
        start = inner ? start + HALO * PERIOD : scratch.start;
        for (int phase = 0; phase < std::min(PERIOD, flat); phase += LANES) {
            int i = phase;
            for (; i + (DEPTHWISE_VECTORS - 1) * PERIOD < flat; i += DEPTHWISE_VECTORS * PERIOD) {
                convolve_vectors<Dot, DEPTHWISE_VECTORS>(scratch, row, start + (inner ? phase : i),
                                                         inner ? 0 : PERIOD, phase, i, out);
            }
            for (; i < flat; i += PERIOD) {
                convolve_vectors<Dot, 1>(scratch, row, start + (inner ? phase : i), 0, phase, i, out);
            }
        }
    }

    // scratch.words [word][flat] and column_sums [row][flat] of ROWS rows and their halo; 0 outside the image.
    template <class Dot>
    void fill_words(const ImagePlane& plane, int y, int x, int count, DepthwiseScratch& scratch) const {
        constexpr int FILLED = INPUT_ROWS / Dot::GROUP;
        const auto [first, last] = inside(plane, x, count);
        const std::uint8_t* rows[INPUT_ROWS];
        for (int ty = 0; ty < INPUT_ROWS; ty++) {
            const int at = y + ty - HALO;
            rows[ty] = at < 0 || at >= plane.height
                           ? scratch.zeros
                           : plane.codes + ((std::int64_t{at} * plane.width + x - HALO) * SIZE + first);
        }
        clear(0, first, FILLED, scratch);
        clear(last, (count + 2 * HALO) * SIZE, FILLED, scratch);
        for (int i = first; i < last; i += LANES) {  // pixels, or pairs of them, are whole vectors
            vi joined[FILLED];
            for (int word = 0; word < FILLED; word++) {
                vi codes[Dot::GROUP];
                for (int j = 0; j < Dot::GROUP; j++) {
                    codes[j] = load_bytes(rows[word * Dot::GROUP + j] + i - first);
                }
                joined[word] = join_words<Dot>(codes);
                store_words(scratch.words + word * DepthwiseScratch::ROW + i, joined[word]);
            }
            for (int row = 0; row < ROWS; row++) {
                const std::int32_t* ones = ones_.data() + row % Dot::GROUP * words<Dot>();
                vi sum = {};
                for (int word = 0; word < words<Dot>(); word++) {
                    sum = Dot::add(sum, joined[row / Dot::GROUP + word], broadcast_word(ones[word]));
                }
                store_words(scratch.column_sums + row * DepthwiseScratch::ROW + i, Dot::finish(sum));
            }
        }
    }

    static void clear(int first, int last, int word_count, DepthwiseScratch& scratch) {
        if (first < last) {
            for (int row = 0; row < ROWS; row++) {
                std::int32_t* to = scratch.column_sums + row * DepthwiseScratch::ROW;
                std::fill(to + first, to + last, 0);
            }
            for (int word = 0; word < word_count; word++) {
                std::int32_t* to = scratch.words + word * DepthwiseScratch::ROW;
                std::fill(to + first, to + last, 0);
            }
        }
    }

    template <class Dot, int VECTORS>
    void convolve_vectors(const DepthwiseScratch& scratch, int row, const float* start, int start_step, int phase,
                          int at, float* out) const {
        const std::int32_t* row_taps = memory_.data() + row % Dot::GROUP * SIDE * words<Dot>() * PERIOD + phase;
        const std::int32_t* row_words = scratch.words + row / Dot::GROUP * DepthwiseScratch::ROW + at;
        const std::int32_t* row_sums = scratch.column_sums + row * DepthwiseScratch::ROW + at;
        vi sums[VECTORS] = {};
        vi boxes[VECTORS] = {};
        for (int tx = 0; tx < SIDE; tx++) {
            for (int word = 0; word < words<Dot>(); word++) {
                const vi taps = load_words(row_taps + (tx * words<Dot>() + word) * PERIOD);
                const std::int32_t* p = row_words + word * DepthwiseScratch::ROW + tx * SIZE;
                for (int v = 0; v < VECTORS; v++) {
                    sums[v] = Dot::add(sums[v], load_words(p + v * PERIOD), taps);
                }
            }
            for (int v = 0; v < VECTORS; v++) {
                boxes[v] += load_words(row_sums + tx * SIZE + v * PERIOD);
            }
        }
        for (int v = 0; v < VECTORS; v++) {
            store(out + at + v * PERIOD, to_float(Dot::finish(sums[v])) * scale_ +
                                             (to_float(boxes[v]) * sum_scale_ + load(start + v * start_step)));
        }
    }

    void convolve_floats(const ImagePlane& plane, int y, int x, int count, DepthwiseScratch& scratch,
                         float* out) const {
        float* rows = reinterpret_cast<float*>(scratch.words);
        const auto [first, last] = inside(plane, x, count);
        for (int ty = 0; ty < SIDE; ty++) {
            float* row = rows + ty * DepthwiseScratch::ROW;
            const int at = y + ty - HALO;
            float* end = row + (count + 2 * HALO) * SIZE + LANES;
            if (at < 0 || at >= plane.height) {
                std::fill(row, end, 0.0f);
                continue;
            }
            std::fill(row, row + first, 0.0f);
            std::fill(row + last, end, 0.0f);
            const std::int64_t from = (std::int64_t{at} * plane.width + x - HALO) * SIZE + first;
            if (input_.on) {
                dequantize_codes(plane.codes + from, last - first, input_, row + first);
            } else {
                std::copy(plane.values + from, plane.values + from + (last - first), row + first);
            }
        }
        convolve_row(shape_, rows, DepthwiseScratch::ROW, taps_.data(), bias_.data(), count, out);
    }

    Levels input_;
    DepthwiseShape shape_;
    bool multiplies_codes_ = false;
    bool bytes_ = false;
    std::vector<float> taps_, bias_;  // of the convolution of floats, repeated to its period
    float scale_ = 0.0f;              // the rest belongs to the convolution of codes
    float sum_scale_ = 0.0f;
    std::vector<std::int32_t> memory_;  // [offset][tap column][word][PERIOD]
    std::vector<std::int32_t> ones_;    // [offset][word], 1 for every tap row
    std::vector<float> edges_;          // [row class][column class][PERIOD]
};

}  // namespace runtime
}  // namespace ppsr2q
