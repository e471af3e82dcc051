// MambaIRv2-light from an image to its enlargement.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "convolution3x3.h"
#include "layer.h"
#include "planes.h"
#include "team.h"

namespace ppsr2q {
namespace runtime {

constexpr int COLORS = 3;
constexpr float RGB_MEAN[COLORS] = {0.4488f, 0.4371f, 0.4040f};

class Network {
public:
    Network(const Source& source, int scale)
        : scale_(scale),
          conv_first_(source, "conv_first", COLORS, CHANNELS),
          patch_norm_(source, "patch_embed.norm"),
          norm_(source, "norm"),
          conv_after_body_(source, "conv_after_body", CHANNELS, CHANNELS),
          upsample_(source, "upsample.0", CHANNELS, COLORS * scale * scale) {
        for (int stage = 0; stage < STAGES; stage++) {
            const std::string name = "layers." + std::to_string(stage);
            for (int i = 0; i < STAGE_LAYERS; i++) {
                layers_.push_back(std::make_unique<AttentiveLayer>(
                    source, name + ".residual_group.layers." + std::to_string(i), i % 2 == 0 ? 0 : WINDOW / 2));
                kinds_ |= layers_.back()->kinds();
            }
            stage_convs_.emplace_back(source, name + ".conv", CHANNELS, CHANNELS);
        }
    }

    // image [height][width][COLORS] -> out [scale height][scale width][COLORS].
    void upscale(const float* image, int height, int width, Team& team, float* out) const {
        Planes planes(round_up(height), round_up(width), team.size(), kinds_);
        const std::size_t size = planes.tokens() * CHANNELS;
        Buffer shallow(size), stage_input(size);
        const ConvolutionScratch scratch(conv_after_body_, planes, team);
        {
            const Buffer input = pad(image, height, width, planes);
            convolve(conv_first_, input.data(), planes, scratch, team, [&](std::int64_t at, vf sums) {
                store(shallow.data() + at, sums);
            });
        }
        each_row(planes, team, [&](std::int64_t token) {
            float* x = planes.x + token * CHANNELS;
            patch_norm_(shallow.data() + token * CHANNELS, CHANNELS, planes.width, x);
            std::copy_n(x, planes.width * CHANNELS, stage_input.data() + token * CHANNELS);
        });
        for (int stage = 0; stage < STAGES; stage++) {
            for (int i = 0; i < STAGE_LAYERS; i++) {
                layers_[stage * STAGE_LAYERS + i]->run(planes, team);
            }
            convolve(stage_convs_[stage], planes.x, planes, scratch, team, [&](std::int64_t at, vf sums) {
                const vf x = sums + load(stage_input.data() + at);
                store(stage_input.data() + at, x);
                store(planes.mixed + at, x);
            });
            std::swap(planes.x, planes.mixed);
        }
        each_row(planes, team, [&](std::int64_t token) {
            norm_(planes.x + token * CHANNELS, CHANNELS, planes.width, planes.mixed + token * CHANNELS);
        });
        convolve(conv_after_body_, planes.mixed, planes, scratch, team, [&](std::int64_t at, vf sums) {
            store(planes.x + at, sums + load(shallow.data() + at));
        });
        enlarge(planes, height, width, scratch, team, out);
    }

    // One AttentiveLayer on tokens [height][width][CHANNELS], height and width multiples of WINDOW, in place.
    void run_layer(int index, int height, int width, Team& team, float* tokens) const {
        Planes planes(height, width, team.size(), kinds_);
        std::copy_n(tokens, planes.tokens() * CHANNELS, planes.x);
        layers_[index]->run(planes, team);
        std::copy_n(planes.x, planes.tokens() * CHANNELS, tokens);
    }

private:
    // Each thread's rows for the convolution with the most input channels.
    struct ConvolutionScratch {
        std::size_t size;
        Buffer memory;

        ConvolutionScratch(const Convolution3x3& largest, const Planes& planes, const Team& team)
            : size(largest.scratch_size(planes.width)), memory(size * team.size()) {}
        float* of(int thread) const { return memory.data() + size * thread; }
    };

    static int round_up(int size) { return (size + WINDOW - 1) / WINDOW * WINDOW; }

    // Mirrored below and to the right with the edge repeated, as often as it takes; minus the mean.
    static Buffer pad(const float* image, int height, int width, const Planes& planes) {
        auto mirrored = [](int at, int size) { return std::min(at % (2 * size), 2 * size - 1 - at % (2 * size)); };
        Buffer padded_image(planes.tokens() * COLORS);
        float* to = padded_image.data();
        for (int y = 0; y < planes.height; y++) {
            const float* row = image + std::int64_t{mirrored(y, height)} * width * COLORS;
            for (int x = 0; x < planes.width; x++) {
                for (int c = 0; c < COLORS; c++) {
                    *to++ = row[mirrored(x, width) * COLORS + c] - RGB_MEAN[c];
                }
            }
        }
        return padded_image;
    }

    // body(first token) for every row of the image.
    template <class Body>
    static void each_row(const Planes& planes, Team& team, const Body& body) {
        team.run(planes.height, [&](std::int64_t y, int) { body(y * planes.width); });
    }

    // epilogue(position in a plane of CHANNELS, sums).
    template <class Epilogue>
    static void convolve(const Convolution3x3& convolution, const float* image, const Planes& planes,
                         const ConvolutionScratch& scratch, Team& team, const Epilogue& epilogue) {
        team.run(planes.height, [&](std::int64_t y, int thread) {
            const std::int64_t first = y * planes.width;
            convolution(image, planes.height, planes.width, static_cast<int>(y), scratch.of(thread),
                        [&](int pixel, int column, vf sums) {
                            epilogue((first + pixel) * CHANNELS + column, sums);
                        });
        });
    }

    // The last convolution, its channels moved to pixels; rows and columns of the padding are left out.
    void enlarge(const Planes& planes, int height, int width, const ConvolutionScratch& scratch, Team& team,
                 float* out) const {
        const int outputs = padded(upsample_.outputs());
        const std::size_t row_size = static_cast<std::size_t>(planes.width) * outputs;
        const Buffer rows(row_size * team.size());
        team.run(height, [&](std::int64_t y, int thread) {
            float* row = rows.data() + row_size * thread;
            upsample_(planes.x, planes.height, planes.width, static_cast<int>(y), scratch.of(thread),
                      [&](int pixel, int column, vf sums) {
                          store(row + static_cast<std::size_t>(pixel) * outputs + column, sums);
                      });
            for (int i = 0; i < scale_; i++) {
                float* to = out + (y * scale_ + i) * width * scale_ * COLORS;
                for (int x = 0; x < width; x++) {
                    for (int j = 0; j < scale_; j++) {
                        for (int c = 0; c < COLORS; c++) {
                            *to++ = row[x * outputs + (c * scale_ + i) * scale_ + j] + RGB_MEAN[c];
                        }
                    }
                }
            }
        });
    }

    int scale_;
    Convolution3x3 conv_first_;
    Norm<CHANNELS> patch_norm_;
    std::vector<std::unique_ptr<AttentiveLayer>> layers_;
    std::vector<Convolution3x3> stage_convs_;
    PlaneKinds kinds_;
    Norm<CHANNELS> norm_;
    Convolution3x3 conv_after_body_;
    Convolution3x3 upsample_;
};

}  // namespace runtime
}  // namespace ppsr2q
