// The planes of one image that the steps of a layer hand to each other, and each thread's scratch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "../../../ops/csrc/parallel.h"
#include "attention.h"
#include "depthwise.h"
#include "matrix.h"
#include "state_space.h"

namespace ppsr2q {
namespace runtime {

constexpr int PROJECTED = DT_RANK + 2 * STATES;  // dt, B, C
constexpr int DT_WIDTH = 4;                      // DT_RANK codes padded to a whole word

// Values p and gates g of one block of the feed-forward network's hidden rows; gates as codes where they are quantized.
struct alignas(ALIGNMENT) GateRows {
    float values[BLOCK * GATE_CHANNELS + LANES];
    float gates[BLOCK * GATE_CHANNELS + LANES];
    std::uint8_t codes[BLOCK * GATE_CHANNELS];
};

struct GatePlanes {
    const float* values;
    ImagePlane gates;
};

struct alignas(ALIGNMENT) Scratch {
    AttentionRows attention;
    DepthwiseScratch depthwise;
    GateRows gates;
};

// Which planes hold codes; the others hold floats.
struct PlaneKinds {
    bool gate_floats = false;  // of some layer
    bool gate_codes = false;
    bool positional_codes = false;
    bool scan_floats = false;
    bool scan_codes = false;

    PlaneKinds& operator|=(const PlaneKinds& other) {
        gate_floats |= other.gate_floats;
        gate_codes |= other.gate_codes;
        positional_codes |= other.positional_codes;
        scan_floats |= other.scan_floats;
        scan_codes |= other.scan_codes;
        return *this;
    }
};

class Planes {
public:
    Planes(int height, int width, int threads, const PlaneKinds& kinds)
        : height(height),
          width(width),
          x(floats(CHANNELS)),
          mixed(floats(CHANNELS)),
          y(floats(CHANNELS)),
          values(floats(GATE_CHANNELS)),
          gates(kinds.gate_floats ? floats(GATE_CHANNELS) : nullptr),
          gate_codes(kinds.gate_codes ? bytes(GATE_CHANNELS) : nullptr),
          positional(kinds.positional_codes ? bytes(CHANNELS) : nullptr),
          classes(bytes(1)),
          position(reinterpret_cast<std::int32_t*>(floats(1))),
          scan{kinds.scan_codes ? bytes(CHANNELS) : nullptr,   kinds.scan_codes ? bytes(CHANNELS) : nullptr,
               kinds.scan_floats ? floats(CHANNELS) : nullptr, kinds.scan_floats ? floats(CHANNELS) : nullptr,
               floats(STATES),                                 floats(STATES)} {
        for (int i = 0; i < threads; i++) {
            memory_.emplace_back(sizeof(Scratch) / sizeof(float));
            scratch_.push_back(new (memory_.back().data()) Scratch);
            std::memset(scratch_.back()->depthwise.zeros, 0, sizeof(scratch_.back()->depthwise.zeros));
        }
    }

    std::int64_t tokens() const { return std::int64_t{height} * width; }
    Scratch& scratch(int thread) const { return *scratch_[thread]; }
    GatePlanes gate_planes() const { return {values, {gate_codes, gates, height, width}}; }

    // Rows [BLOCK][CHANNELS] of the tokens first to first + BLOCK of a window.
    void gather(const Window& window, int first, const float* plane, float* rows) const {
        for_each_run(window, first, [&](int row, std::int64_t token, int count) {
            copy_floats(plane + token * CHANNELS, count * CHANNELS, rows + row * CHANNELS);
        });
    }

    void scatter(const Window& window, int first, const float* rows, float* plane) const {
        for_each_run(window, first, [&](int row, std::int64_t token, int count) {
            copy_floats(rows + row * CHANNELS, count * CHANNELS, plane + token * CHANNELS);
        });
    }

    void scatter_gates(const Window& window, int first, const GateRows& rows, bool codes) const {
        for_each_run(window, first, [&](int row, std::int64_t token, int count) {
            keep_gates(token, count, row, rows, codes);
        });
    }

    // count rows from row on -> the planes from token on.
    void keep_gates(std::int64_t token, int count, int row, const GateRows& rows, bool codes) const {
        const std::int64_t to = token * GATE_CHANNELS;
        const int from = row * GATE_CHANNELS;
        copy_floats(rows.values + from, count * GATE_CHANNELS, values + to);
        if (codes) {
            std::copy_n(rows.codes + from, count * GATE_CHANNELS, gate_codes + to);
        } else {
            copy_floats(rows.gates + from, count * GATE_CHANNELS, gates + to);
        }
    }

private:
    std::vector<Buffer> memory_;
    std::vector<Scratch*> scratch_;

    float* floats(int channels) {
        memory_.emplace_back(tokens() * channels + LANES);
        return memory_.back().data();
    }
    std::uint8_t* bytes(int channels) {
        memory_.emplace_back((tokens() * channels + sizeof(float) - 1) / sizeof(float) + LANES);
        return reinterpret_cast<std::uint8_t*>(memory_.back().data());
    }

    // body(row, token, count) for the runs of neighbouring pixels among the tokens first to first + BLOCK.
    template <class Body>
    void for_each_run(const Window& window, int first, const Body& body) const {
        for (int row = 0; row < BLOCK; row += WINDOW) {
            const std::int64_t line = std::int64_t{(window.top + (first + row) / WINDOW) % height} * width;
            const int before_border = std::min(WINDOW, width - window.left);
            body(row, line + window.left, before_border);
            if (before_border < WINDOW) {
                body(row + before_border, line, WINDOW - before_border);
            }
        }
    }

public:
    const int height, width;
    float* x;             // input and output of a layer
    float* mixed;         // behind the attention; behind the state space model
    float* const y;       // output of in_proj; of the scan, in its order
    float* const values;  // of the feed-forward network
    float* const gates;
    std::uint8_t* const gate_codes;
    std::uint8_t* const positional;  // what the convolution of the positional gate reads
    std::uint8_t* const classes;
    std::int32_t* const position;  // of every pixel in the scan
    const ScanPlanes scan;
};

}  // namespace runtime
}  // namespace ppsr2q
