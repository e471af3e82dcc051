// Linear layers on rows of tokens: products of codes where both factors are quantized, of floats otherwise.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "../../../ops/csrc/linear.h"
#include "codes.h"
#include "source.h"

namespace ppsr2q {
namespace runtime {

constexpr int BLOCK = 32;          // rows that one step works on, so that they stay in the first-level cache
constexpr int MOST_COLUMNS = 64;   // of a row
constexpr int CODE_TILE_ROWS = 4;  // rows of a register tile
constexpr int CODE_PANEL = 2;      // vectors of columns of a register tile

// Room for one block of rows. Vectors may be written behind the last row.
struct alignas(ALIGNMENT) RowBuffer {
    float data[BLOCK * MOST_COLUMNS + LANES];
    operator float*() { return data; }
};

struct alignas(ALIGNMENT) CodeBuffer {
    std::uint8_t data[BLOCK * MOST_COLUMNS];
    operator std::uint8_t*() { return data; }
};

// A quantized matrix [depth][columns] behind quantized rows, with all that makes the product of their codes the product
// of what they stand for: sum (s c + a)(t d + b) = s t sum c d + s b sum c + [a t sum d + depth a b], the bracket
// being a constant of the column.
class CodeMatrix {
public:
    // codes(k, n) is the code of row k, column n; bias [columns] may be null.
    template <class CodeOf>
    CodeMatrix(const CodeOf& codes, int depth, int columns, const Levels& weight, const Levels& input,
               const float* bias)
        : depth_(depth),
          columns_(columns),
          bytes_(bytes_fit(input, weight, depth)),
          constants_(padded(columns)) {
        const SignedCodes signed_codes(weight, bytes_);
        scale_ = input.step * weight.step;
        row_scale_ = input.step * signed_codes.lower;
        for (int n = 0; n < padded(columns); n++) {
            std::int64_t sum = 0;
            for (int k = 0; n < columns && k < depth; k++) {
                sum += codes(k, n) - signed_codes.shift;
            }
            constants_[n] = (n < columns && bias ? bias[n] : 0.0f) +
                            input.lower * (weight.step * static_cast<float>(sum) + depth * signed_codes.lower);
        }
        with_dot(bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            words_ = (depth + Dot::GROUP - 1) / Dot::GROUP;
            for (int first = 0; first < padded(columns); first += CODE_PANEL * LANES) {
                const int width = vectors(first) * LANES;
                for (int word = 0; word < words_; word++) {
                    for (int n = first; n < first + width; n++) {
                        memory_.push_back(make_word<Dot>([&](int i) {
                            const int k = word * Dot::GROUP + i;
                            return k < depth && n < columns ? codes(k, n) - signed_codes.shift : 0;
                        }));
                    }
                }
            }
        });
    }

    // epilogue(row, column, sums) for every row of codes [count][stride], a vector of columns at a time. Rows are
    // padded with 0 to whole words, count is a multiple of CODE_TILE_ROWS.
    template <class Epilogue>
    void multiply(const std::uint8_t* codes, int stride, int count, const Epilogue& epilogue) const {
        with_dot(bytes_, [&](auto dot) {
            using Dot = decltype(dot);
            for (int first = 0; first < count; first += CODE_TILE_ROWS) {
                const std::uint8_t* rows[CODE_TILE_ROWS];
                float offsets[CODE_TILE_ROWS];
                std::int16_t wide[Dot::GROUP == 2 ? CODE_TILE_ROWS * MOST_COLUMNS : 1];
                for (int r = 0; r < CODE_TILE_ROWS; r++) {
                    rows[r] = codes + (first + r) * stride;
                    offsets[r] = row_scale_ * static_cast<float>(sum_codes(rows[r], depth_));
                    if (Dot::GROUP == 2) {
                        std::int16_t* to = wide + r * MOST_COLUMNS;
                        std::copy(rows[r], rows[r] + words_ * Dot::GROUP, to);
                        rows[r] = reinterpret_cast<const std::uint8_t*>(to);
                    }
                }
                for (int column = 0; column < padded(columns_); column += CODE_PANEL * LANES) {
                    const std::int32_t* panel = memory_.data() + static_cast<std::size_t>(column) * words_;
                    if (vectors(column) == CODE_PANEL) {
                        tile<Dot, CODE_PANEL>(rows, panel, offsets, first, column, epilogue);
                    } else {
                        tile<Dot, 1>(rows, panel, offsets, first, column, epilogue);
                    }
                }
            }
        });
    }

private:
    int vectors(int first) const { return std::min(CODE_PANEL, (padded(columns_) - first) / LANES); }

    template <class Dot, int VECTORS, class Epilogue>
    void tile(const std::uint8_t* const (&rows)[CODE_TILE_ROWS], const std::int32_t* panel,
              const float (&offsets)[CODE_TILE_ROWS], int first, int column, const Epilogue& epilogue) const {
        vi sums[CODE_TILE_ROWS][VECTORS] = {};
        for (int word = 0; word < words_; word++) {
            vi weights[VECTORS];
            for (int v = 0; v < VECTORS; v++) {
                weights[v] = load_words(panel + (word * VECTORS + v) * LANES);
            }
#pragma GCC unroll 4
            for (int r = 0; r < CODE_TILE_ROWS; r++) {
                std::int32_t codes;
                std::memcpy(&codes, rows[r] + 4 * word, sizeof(codes));
                for (int v = 0; v < VECTORS; v++) {
                    sums[r][v] = Dot::add(sums[r][v], broadcast_word(codes), weights[v]);
                }
            }
        }
        const float scale = scale_;
        vf constants[VECTORS];
        for (int v = 0; v < VECTORS; v++) {
            constants[v] = load(constants_.data() + column + v * LANES);
        }
#pragma GCC unroll 4
        for (int r = 0; r < CODE_TILE_ROWS; r++) {
            for (int v = 0; v < VECTORS; v++) {
                const vf product = to_float(Dot::finish(sums[r][v])) * scale;
                epilogue(first + r, column + v * LANES, product + (constants[v] + offsets[r]));
            }
        }
    }

    int depth_;
    int columns_;
    bool bytes_;
    int words_ = 0;
    float scale_;
    float row_scale_;
    std::vector<std::int32_t> memory_;
    std::vector<float> constants_;
};

// Where a Linear finds its weight: the index of input k, output n.
enum class Layout { INPUT_FIRST, OUTPUT_FIRST };

// Q(x) Q(W) + bias on rows of floats.
class Linear {
public:
    // bias may be empty.
    Linear(const Weight& weight, Layout layout, int inputs, int outputs, const Levels& input,
           const std::vector<float>& bias)
        : inputs_(inputs), outputs_(outputs), input_(input), bias_(padded(outputs), 0.0f) {
        std::copy(bias.begin(), bias.end(), bias_.begin());
        auto index = [=](int k, int n) { return layout == Layout::INPUT_FIRST ? k * outputs + n : n * inputs + k; };
        if (weight.levels.on && input.on) {
            codes_ = std::make_unique<CodeMatrix>([&](int k, int n) { return int{weight.codes[index(k, n)]}; },
                                                  inputs, outputs, weight.levels, input, bias_.data());
        } else {
            floats_ = std::make_unique<ppsr2q::detail::PackedMatrix>(weight.values.data(), inputs, outputs,
                                                                     layout == Layout::OUTPUT_FIRST);
        }
    }

    // The layer of that name in the plan.
    static Linear named(const Source& source, const std::string& name, Layout layout, int inputs, int outputs) {
        return Linear(source.weight(name + ".weight", name + ".weight", std::int64_t{inputs} * outputs), layout,
                      inputs, outputs, source.quantizer(name + ".input"), source.floats(name + ".bias", outputs));
    }

    const Levels& input() const { return input_; }
    bool multiplies_codes() const { return codes_ != nullptr; }

    // epilogue(row, column, sums) for x [count][inputs].
    template <class Epilogue>
    void operator()(const float* x, int count, const Epilogue& epilogue) const {
        if (codes_) {
            CodeBuffer codes;
            quantize_codes(x, std::int64_t{count} * inputs_, input_, codes);
            codes_->multiply(codes, inputs_, count, epilogue);
            return;
        }
        RowBuffer quantized;
        if (input_.on) {
            for (int i = 0; i < count * inputs_; i += LANES) {
                store(quantized + i, input_.quantize(load(x + i)));
            }
            x = quantized;
        }
        ppsr2q::detail::multiply_rows(x, inputs_, count, *floats_, [&](int row, int column, vf sums) {
            epilogue(row, column, sums + load(bias_.data() + column));
        });
    }

    // The same for codes [count][stride] of a layer that multiplies codes; padded with 0 to whole words.
    template <class Epilogue>
    void multiply_codes(const std::uint8_t* codes, int stride, int count, const Epilogue& epilogue) const {
        codes_->multiply(codes, stride, count, epilogue);
    }

    // y [count][outputs] for x [count][inputs].
    void write(const float* x, int count, float* y) const {
        const int outputs = outputs_;
        (*this)(x, count, [=](int row, int column, vf sums) {
            store_up_to(y + row * outputs + column, sums, outputs - column);
        });
    }

private:
    int inputs_;
    int outputs_;
    Levels input_;
    std::vector<float> bias_;
    std::unique_ptr<CodeMatrix> codes_;
    std::unique_ptr<ppsr2q::detail::PackedMatrix> floats_;
};

// LayerNorm of rows of SIZE channels, held in registers.
template <int SIZE>
class Norm {
public:
    Norm(const Source& source, const std::string& name)
        : scale_(source.floats(name + ".weight", SIZE)), shift_(source.floats(name + ".bias", SIZE)) {
        scale_.resize(padded(SIZE));
        shift_.resize(padded(SIZE));
    }

    // y [count][SIZE] from rows of x, stride apart. The last vector of each row may reach into the next.
    void operator()(const float* x, int stride, int count, float* y) const {
        constexpr int vectors = padded(SIZE) / LANES;
        constexpr float epsilon = 1e-5f;
        for (int r = 0; r < count; r++) {
            const float* row = x + static_cast<std::int64_t>(r) * stride;
            vf values[vectors];
            vf total = {};
            for (int v = 0; v < vectors; v++) {
                values[v] = load_up_to(row + v * LANES, SIZE - v * LANES);
                total += values[v];
            }
            const float mean = sum(total) / SIZE;
            vf squares = {};
            for (int v = 0; v < vectors; v++) {
                values[v] -= mean;
                if (SIZE < (v + 1) * LANES) {
                    values[v] = first_lanes(values[v], SIZE - v * LANES);
                }
                squares += values[v] * values[v];
            }
            const float inverse = 1.0f / std::sqrt(sum(squares) / SIZE + epsilon);
            for (int v = 0; v < vectors; v++) {
                store(y + r * SIZE + v * LANES, values[v] * inverse * load(scale_.data() + v * LANES) +
                                                    load(shift_.data() + v * LANES));
            }
        }
    }

private:
    std::vector<float> scale_, shift_;
};

// Copies rows of whole vectors; the library's function costs more than a row.
inline void copy_floats(const float* from, int count, float* to) {
    for (int i = 0; i < count; i += LANES) {
        store(to + i, load(from + i));
    }
}

}  // namespace runtime
}  // namespace ppsr2q
