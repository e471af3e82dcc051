// 3x3 convolution of floats, channels last, zero padding: for each row of output pixels, three products with rows of
// padded input, whose three neighbouring pixels lie side by side.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../../../ops/csrc/linear.h"
#include "source.h"

namespace ppsr2q {
namespace runtime {

class Convolution3x3 {
public:
    Convolution3x3(const Source& source, const std::string& name, int inputs, int outputs)
        : inputs_(inputs), outputs_(outputs), bias_(padded(outputs), 0.0f) {
        source.expect_floating(name + ".input");
        const std::vector<float> weight = source.floats(name + ".weight", std::int64_t{outputs} * inputs * 9);
        const std::vector<float> bias = source.floats(name + ".bias", outputs);
        std::copy(bias.begin(), bias.end(), bias_.begin());
        std::vector<float> taps(3 * inputs * outputs);
        for (int ty = 0; ty < 3; ty++) {
            for (int tx = 0; tx < 3; tx++) {
                for (int k = 0; k < inputs; k++) {
                    for (int n = 0; n < outputs; n++) {
                        taps[(tx * inputs + k) * outputs + n] = weight[((n * inputs + k) * 3 + ty) * 3 + tx];
                    }
                }
            }
            rows_.emplace_back(taps.data(), 3 * inputs, outputs, false);
        }
    }

    int outputs() const { return outputs_; }

    // Floats of scratch for rows of so many pixels.
    std::size_t scratch_size(int width) const { return 3 * stride(width); }

    // epilogue(pixel, column, sums) for row y of image [height][width][inputs].
    template <class Epilogue>
    void operator()(const float* image, int height, int width, int y, float* scratch,
                    const Epilogue& epilogue) const {
        const float* lines[3];
        for (int ty = 0; ty < 3; ty++) {
            float* line = scratch + ty * stride(width);
            lines[ty] = line;
            const int at = y + ty - 1;
            if (at < 0 || at >= height) {
                std::fill_n(line, stride(width), 0.0f);
                continue;
            }
            const std::size_t count = static_cast<std::size_t>(width) * inputs_;
            std::fill_n(line, inputs_, 0.0f);
            std::copy_n(image + at * count, count, line + inputs_);
            std::fill_n(line + inputs_ + count, inputs_, 0.0f);
        }
        for (int first = 0; first < padded(outputs_); first += PANEL * LANES) {
            switch (rows_[0].vectors(first)) {
                case 1: panel<1>(lines, width, first, epilogue); break;
                case 2: panel<2>(lines, width, first, epilogue); break;
                default: panel<3>(lines, width, first, epilogue); break;
            }
        }
    }

private:
    std::size_t stride(int width) const { return static_cast<std::size_t>(width + 2) * inputs_; }

    template <int VECTORS, class Epilogue>
    void panel(const float* const (&lines)[3], int width, int first, const Epilogue& epilogue) const {
        for (int pixel = 0; pixel < width; pixel += TILE_ROWS_LINEAR) {  // width is a multiple of it
            vf tile[TILE_ROWS_LINEAR][VECTORS];
            for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
                for (int v = 0; v < VECTORS; v++) {
                    tile[r][v] = load(bias_.data() + first + v * LANES);
                }
            }
            for (int ty = 0; ty < 3; ty++) {
                const float* rows[TILE_ROWS_LINEAR];
                for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
                    rows[r] = lines[ty] + (pixel + r) * inputs_;
                }
                ppsr2q::detail::multiply_tile<VECTORS>(rows, rows_[ty].panel(first), 3 * inputs_, tile);
            }
            for (int r = 0; r < TILE_ROWS_LINEAR; r++) {
                for (int v = 0; v < VECTORS; v++) {
                    epilogue(pixel + r, first + v * LANES, tile[r][v]);
                }
            }
        }
    }

    int inputs_;
    int outputs_;
    std::vector<float> bias_;
    std::vector<ppsr2q::detail::PackedMatrix> rows_;  // of the three rows of taps: [column of taps, input][output]
};

}  // namespace runtime
}  // namespace ppsr2q
