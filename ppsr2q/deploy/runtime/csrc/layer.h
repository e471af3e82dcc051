// One AttentiveLayer in seven steps, each a list of tasks that reads and writes planes of the whole image and keeps all
// else in cache:
//   attend       window by window: norm, q, k, v, attention, proj, residual; first half of the feed-forward network
//   route        rows together: its second half, residual; norm, route, in_proj
//   sort         positions of the pixels ordered by class
//   project      rows together: positional gate, projections of the state space model, moved to scan order
//   scan         channels: the recurrence
//   mix_channels row by row: back to raster order, norm, out_proj, residual; first half of the second network
//   finish       rows together: its second half, residual
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "../../../ops/csrc/routing.h"
#include "attention.h"
#include "depthwise.h"
#include "matrix.h"
#include "planes.h"
#include "state_space.h"
#include "team.h"

namespace ppsr2q {
namespace runtime {

// x + fc2(p * DWConv(LN(g))), (p, g) = split(GELU(fc1(norm(x)))), in two halves around the convolution's halo.
class FeedForward {
public:
    FeedForward(const Source& source, const std::string& name, const std::string& norm)
        : norm_(source, norm),
          fc1_(Linear::named(source, name + ".fc1", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
          gate_norm_(source, name + ".sg.norm"),
          conv_(source, name + ".sg.conv"),
          fc2_(Linear::named(source, name + ".fc2", Layout::INPUT_FIRST, GATE_CHANNELS, CHANNELS)) {}

    const Levels& gate_levels() const { return conv_.input(); }

    // From rows x [count][CHANNELS]: values p and gates LN(g), codes where they are quantized.
    void open(const float* x, int count, GateRows& rows) const {
        RowBuffer normed, hidden;
        norm_(x, CHANNELS, count, normed);
        fc1_(normed, count, [&](int row, int column, vf sums) {
            store(hidden + row * CHANNELS + column, gelu(sums));
        });
        for (int r = 0; r < count; r++) {
            copy_floats(hidden + r * CHANNELS, GATE_CHANNELS, rows.values + r * GATE_CHANNELS);
        }
        gate_norm_(hidden + GATE_CHANNELS, CHANNELS, count, rows.gates);
        if (gate_levels().on) {
            quantize_codes(rows.gates, count * GATE_CHANNELS, gate_levels(), rows.codes);
        }
    }

    using Convolution = Depthwise<GATE_CHANNELS, 5>;
    const Convolution& convolution() const { return conv_; }

    // fc2 of count pixels of a row that scratch was opened for: epilogue(row, column, sums).
    template <class Epilogue>
    void close(const GatePlanes& planes, int y, int x, int count, DepthwiseScratch& scratch,
               const Epilogue& epilogue) const {
        RowBuffer mixed;
        conv_(planes.gates, y, x, count, scratch, mixed);
        const float* values = planes.values + (std::int64_t{y} * planes.gates.width + x) * GATE_CHANNELS;
        for (int i = 0; i < count * GATE_CHANNELS; i += LANES) {
            store(mixed + i, load(mixed + i) * load(values + i));
        }
        fc2_(mixed, count, epilogue);
    }

private:
    Norm<CHANNELS> norm_;
    Linear fc1_;
    Norm<GATE_CHANNELS> gate_norm_;
    Convolution conv_;
    Linear fc2_;
};

class AttentiveLayer {
public:
    AttentiveLayer(const Source& source, const std::string& name, int shift);

    PlaneKinds kinds() const {
        const bool gate_codes1 = feed_forward1_.gate_levels().on, gate_codes2 = feed_forward2_.gate_levels().on;
        PlaneKinds kinds;
        kinds.gate_floats = !gate_codes1 || !gate_codes2;
        kinds.gate_codes = gate_codes1 || gate_codes2;
        kinds.positional_codes = cpe_.input().on;
        kinds.scan_floats = !scan_.reads_codes();
        kinds.scan_codes = scan_.reads_codes();
        return kinds;
    }

    // planes.x -> planes.x.
    void run(Planes& planes, Team& team) const {
        const std::int64_t windows =
            std::int64_t{planes.height / WINDOW} * (planes.width / WINDOW);
        team.run(windows, [&](std::int64_t task, int thread) { attend(planes, task, planes.scratch(thread)); });
        each_rows<FeedForward::Convolution>(planes, team, [&](int y, Scratch& scratch) { route(planes, y, scratch); });
        sort(planes);
        each_rows<Positional>(planes, team, [&](int y, Scratch& scratch) { project(planes, y, scratch); });
        scan_(planes.scan, planes.tokens(), planes.y, team);
        team.run(planes.height,
                 [&](std::int64_t y, int) { mix_channels(planes, static_cast<int>(y)); });
        each_rows<FeedForward::Convolution>(planes, team, [&](int y, Scratch& scratch) { finish(planes, y, scratch); });
    }

private:
    using Positional = Depthwise<CHANNELS, 3>;

    // body(y, scratch) for the first of all rows that Convolution takes together.
    template <class Convolution, class Body>
    static void each_rows(Planes& planes, Team& team, const Body& body) {
        team.run(planes.height / Convolution::ROWS, [&](std::int64_t task, int thread) {
            body(static_cast<int>(task) * Convolution::ROWS, planes.scratch(thread));
        });
    }

    // body(row, column, count) for the blocks of the rows from y on, which convolution has been opened for.
    template <class Convolution, class Body>
    static void each_block(const Convolution& convolution, const ImagePlane& plane, int y, DepthwiseScratch& scratch,
                           const Body& body) {
        for (int column = 0; column < plane.width; column += BLOCK) {
            const int count = std::min(BLOCK, plane.width - column);
            convolution.open(plane, y, column, count, scratch);
            for (int row = y; row < y + Convolution::ROWS; row++) {
                body(row, column, count);
            }
        }
    }

    void attend(Planes& planes, std::int64_t task, Scratch& scratch) const;
    void route(Planes& planes, int first_row, Scratch& scratch) const;
    static void sort(Planes& planes);
    void project(Planes& planes, int first_row, Scratch& scratch) const;
    void mix_channels(Planes& planes, int y) const;
    void finish(Planes& planes, int first_row, Scratch& scratch) const;
    static void close(const FeedForward& feed_forward, const std::vector<float>& scale, Planes& planes, int y,
                      int column, int count, Scratch& scratch);

    static std::vector<float> prompt_table(const Source& source, const std::string& name);

    int shift_;
    Norm<CHANNELS> norm1_;
    Linear q_, k_, v_, proj_;
    WindowAttention attention_;
    FeedForward feed_forward1_;
    std::vector<float> scale1_;
    Norm<CHANNELS> norm3_;
    Linear route0_, route2_, in_proj_;
    Positional cpe_;
    std::vector<float> prompts_;  // [class][state]
    SelectiveScan scan_;
    Linear x_proj_, dt_proj_;
    Levels B_, C_;
    Norm<CHANNELS> out_norm_;
    Linear out_proj_;
    FeedForward feed_forward2_;
    std::vector<float> scale2_;
};

inline AttentiveLayer::AttentiveLayer(const Source& source, const std::string& name, int shift)
    : shift_(shift),
      norm1_(source, name + ".norm1"),
      q_(Linear::named(source, name + ".q", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
      k_(Linear::named(source, name + ".k", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
      v_(Linear::named(source, name + ".v", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
      proj_(Linear::named(source, name + ".win_mhsa.proj", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
      attention_(source, name + ".win_mhsa"),
      feed_forward1_(source, name + ".convffn1", name + ".norm2"),
      scale1_(source.floats(name + ".scale1", CHANNELS)),
      norm3_(source, name + ".norm3"),
      route0_(Linear::named(source, name + ".assm.route.0", Layout::INPUT_FIRST, CHANNELS, ROUTE_CHANNELS)),
      route2_(Linear::named(source, name + ".assm.route.2", Layout::INPUT_FIRST, ROUTE_CHANNELS, CLASSES)),
      in_proj_(Linear::named(source, name + ".assm.in_proj.0", Layout::OUTPUT_FIRST, CHANNELS, CHANNELS)),
      cpe_(source, name + ".assm.CPE.0"),
      prompts_(prompt_table(source, name)),
      scan_(source, name + ".assm.selectiveScan"),
      x_proj_(source.weight(name + ".assm.selectiveScan.x_proj_weight",
                            name + ".assm.selectiveScan.points.x_proj_weight", PROJECTED * CHANNELS),
              Layout::OUTPUT_FIRST, CHANNELS, PROJECTED, scan_.u(), {}),
      dt_proj_(source.weight(name + ".assm.selectiveScan.dt_projs_weight",
                             name + ".assm.selectiveScan.points.dt_projs_weight", CHANNELS * DT_RANK),
               Layout::OUTPUT_FIRST, DT_RANK, CHANNELS,
               source.quantizer(name + ".assm.selectiveScan.points.dt"), {}),
      B_(source.quantizer(name + ".assm.selectiveScan.points.B")),
      C_(source.quantizer(name + ".assm.selectiveScan.points.C")),
      out_norm_(source, name + ".assm.out_norm"),
      out_proj_(Linear::named(source, name + ".assm.out_proj", Layout::INPUT_FIRST, CHANNELS, CHANNELS)),
      feed_forward2_(source, name + ".convffn2", name + ".norm4"),
      scale2_(source.floats(name + ".scale2", CHANNELS)) {}

// Q(Q(embeddingB) Q(embeddingA)); the one-hot matrix in front of it picks rows exactly.
inline std::vector<float> AttentiveLayer::prompt_table(const Source& source, const std::string& name) {
    const Levels one_hot = source.quantizer(name + ".assm.points.one_hot");
    if (one_hot.on && (one_hot.value(0) != 0.0f || one_hot.value(one_hot.top) != 1.0f)) {
        throw ModelError(name + ".assm.points.one_hot: the runtime takes bounds of 0 and 1 only");
    }
    const std::string point = name + ".assm.points.prompt_table";
    if (source.folded(point)) {
        return source.point(point, CLASSES * STATES);
    }
    const std::vector<float> A =
        source.weight(name + ".embeddingA.weight", name + ".points.embeddingA", INNER_RANK * STATES).values;
    const std::vector<float> B = source.weight(name + ".assm.embeddingB.weight",
                                               name + ".assm.points.embeddingB", CLASSES * INNER_RANK)
                                     .values;
    std::vector<float> table(CLASSES * STATES, 0.0f);
    for (int c = 0; c < CLASSES; c++) {
        for (int k = 0; k < INNER_RANK; k++) {
            for (int n = 0; n < STATES; n++) {
                table[c * STATES + n] += B[c * INNER_RANK + k] * A[k * STATES + n];
            }
        }
    }
    return table;
}

inline void AttentiveLayer::attend(Planes& planes, std::int64_t task, Scratch& scratch) const {
    const AttentionShape shape{1, planes.height, planes.width, HEADS, HEAD_CHANNELS, WINDOW, shift_};
    const Window window(shape, task);
    AttentionRows& rows = scratch.attention;
    const float q_scale = 1.0f / std::sqrt(static_cast<float>(HEAD_CHANNELS));
    RowBuffer x, normed, mixed;
    for (int first = 0; first < WINDOW_TOKENS; first += BLOCK) {
        planes.gather(window, first, planes.x, x);
        norm1_(x, CHANNELS, BLOCK, normed);
        float* q = rows.q + first * CHANNELS;
        q_(normed, BLOCK, [=](int row, int column, vf sums) {
            store(q + row * CHANNELS + column, sums * q_scale);
        });
        k_.write(normed, BLOCK, rows.k + first * CHANNELS);
        v_.write(normed, BLOCK, rows.v + first * CHANNELS);
    }
    attention_.quantize(rows);
    attention_.attend(window, rows);
    for (int first = 0; first < WINDOW_TOKENS; first += BLOCK) {
        planes.gather(window, first, planes.x, x);
        proj_(rows.out + first * CHANNELS, BLOCK, [&](int row, int column, vf sums) {
            const int at = row * CHANNELS + column;
            store(mixed + at, sums + load(x + at));
        });
        feed_forward1_.open(mixed, BLOCK, scratch.gates);
        planes.scatter(window, first, mixed, planes.mixed);
        planes.scatter_gates(window, first, scratch.gates, feed_forward1_.gate_levels().on);
    }
}

// The second half of a feed-forward network for count pixels of a row: x = x scale + mixed + its result.
inline void AttentiveLayer::close(const FeedForward& feed_forward, const std::vector<float>& scale, Planes& planes,
                                  int y, int column, int count, Scratch& scratch) {
    const std::int64_t token = std::int64_t{y} * planes.width + column;
    float* x = planes.x + token * CHANNELS;
    const float* mixed = planes.mixed + token * CHANNELS;
    feed_forward.close(planes.gate_planes(), y, column, count, scratch.depthwise, [&](int row, int c, vf sums) {
        const int at = row * CHANNELS + c;
        const vf scaled = load(x + at) * load(scale.data() + c);
        store(x + at, sums + load(mixed + at) + scaled);
    });
}

inline void AttentiveLayer::route(Planes& planes, int first_row, Scratch& scratch) const {
    RowBuffer normed, hidden, logits;
    each_block(feed_forward1_.convolution(), planes.gate_planes().gates, first_row, scratch.depthwise,
               [&](int y, int column, int count) {
        const std::int64_t token = std::int64_t{y} * planes.width + column;
        close(feed_forward1_, scale1_, planes, y, column, count, scratch);
        norm3_(planes.x + token * CHANNELS, CHANNELS, count, normed);
        route0_(normed, count, [&](int row, int c, vf sums) {
            store(hidden + row * ROUTE_CHANNELS + c, gelu(sums));
        });
        route2_.write(hidden, count, logits);
        for (int r = 0; r < count; r++) {
            // A class that does not exist (of logits that overflowed) must not become an index.
            planes.classes[token + r] =
                static_cast<std::uint8_t>(std::max(first_maximum(logits + r * CLASSES, CLASSES), 0));
        }
        in_proj_.write(normed, count, planes.y + token * CHANNELS);
        if (cpe_.input().on) {
            quantize_codes(planes.y + token * CHANNELS, count * CHANNELS, cpe_.input(),
                           planes.positional + token * CHANNELS);
        }
    });
}

inline void AttentiveLayer::sort(Planes& planes) {
    std::int64_t next[CLASSES + 1] = {};
    for (std::int64_t t = 0; t < planes.tokens(); t++) {
        next[planes.classes[t] + 1]++;
    }
    for (int c = 0; c < CLASSES; c++) {
        next[c + 1] += next[c];
    }
    for (std::int64_t t = 0; t < planes.tokens(); t++) {
        planes.position[t] = static_cast<std::int32_t>(next[planes.classes[t]]++);
    }
}

inline void AttentiveLayer::project(Planes& planes, int first_row, Scratch& scratch) const {
    RowBuffer u, projected, dt, delta;
    CodeBuffer u_codes, dt_codes, delta_codes;
    const bool codes = scan_.reads_codes();
    const ImagePlane plane{planes.positional, planes.y, planes.height, planes.width};
    each_block(cpe_, plane, first_row, scratch.depthwise, [&](int y, int column, int count) {
        const std::int64_t token = std::int64_t{y} * planes.width + column;
        cpe_(plane, y, column, count, scratch.depthwise, u);
        for (int i = 0; i < count * CHANNELS; i += LANES) {
            store(u + i, sigmoid(load(u + i)) * load(planes.y + token * CHANNELS + i));
        }
        auto keep = [&](int row, int c, vf sums) {
            store_up_to(projected + row * PROJECTED + c, sums, PROJECTED - c);
        };
        if (scan_.u().on) {
            quantize_codes(u, count * CHANNELS, scan_.u(), u_codes);
        }
        if (x_proj_.multiplies_codes()) {
            x_proj_.multiply_codes(u_codes, CHANNELS, count, keep);
        } else {
            x_proj_(u, count, keep);
        }
        for (int r = 0; r < count; r++) {
            std::copy_n(projected + r * PROJECTED, DT_RANK, dt + r * DT_RANK);
        }
        auto keep_delta = [&](int row, int c, vf sums) { store(delta + row * CHANNELS + c, sums); };
        if (dt_proj_.multiplies_codes()) {
            quantize_codes(dt, count * DT_RANK, dt_proj_.input(), dt_codes);
            CodeBuffer padded_codes;  // rows of a whole word
            for (int r = 0; r < count; r++) {
                std::copy_n(dt_codes + r * DT_RANK, DT_RANK, padded_codes + r * DT_WIDTH);
                padded_codes[r * DT_WIDTH + DT_RANK] = 0;
            }
            dt_proj_.multiply_codes(padded_codes, DT_WIDTH, count, keep_delta);
        } else {
            dt_proj_(dt, count, keep_delta);
        }
        if (codes) {
            quantize_codes(delta, count * CHANNELS, scan_.delta(), delta_codes);
        } else {
            for (int i = 0; i < count * CHANNELS; i += LANES) {
                store(u + i, scan_.u()(load(u + i)));
                store(delta + i, scan_.delta()(load(delta + i)));
            }
        }
        const ScanPlanes& scan = planes.scan;
        for (int r = 0; r < count; r++) {
            const std::int64_t to = planes.position[token + r];
            const float* own = projected + r * PROJECTED + DT_RANK;
            // The prompt of the pixel at raster position to, as the official network adds it.
            const float* prompt = prompts_.data() + planes.classes[to] * STATES;
            for (int n = 0; n < STATES; n += LANES) {
                const int rest = STATES - n;
                store_up_to(scan.B + to * STATES + n, B_(load_up_to(own + n, rest)), rest);
                const vf C = load_up_to(own + STATES + n, rest) + load_up_to(prompt + n, rest);
                store_up_to(scan.C + to * STATES + n, C_(C), rest);
            }
            if (codes) {
                std::copy_n(u_codes + r * CHANNELS, CHANNELS, scan.u_codes + to * CHANNELS);
                std::copy_n(delta_codes + r * CHANNELS, CHANNELS, scan.delta_codes + to * CHANNELS);
            } else {
                copy_floats(u + r * CHANNELS, CHANNELS, scan.u + to * CHANNELS);
                copy_floats(delta + r * CHANNELS, CHANNELS, scan.delta + to * CHANNELS);
            }
        }
    });
}

inline void AttentiveLayer::mix_channels(Planes& planes, int y) const {
    RowBuffer scanned, normed;
    GateRows gates;
    for (int column = 0; column < planes.width; column += BLOCK) {
        const int count = std::min(BLOCK, planes.width - column);
        const std::int64_t token = std::int64_t{y} * planes.width + column;
        for (int r = 0; r < count; r++) {
            copy_floats(planes.y + planes.position[token + r] * std::int64_t{CHANNELS}, CHANNELS,
                        scanned + r * CHANNELS);
        }
        out_norm_(scanned, CHANNELS, count, normed);
        float* mixed = planes.mixed + token * CHANNELS;
        const float* x = planes.x + token * CHANNELS;
        out_proj_(normed, count, [&](int row, int c, vf sums) {
            const int at = row * CHANNELS + c;
            store(mixed + at, sums + load(x + at));
        });
        feed_forward2_.open(mixed, count, gates);
        planes.keep_gates(token, count, 0, gates, feed_forward2_.gate_levels().on);
    }
}

inline void AttentiveLayer::finish(Planes& planes, int first_row, Scratch& scratch) const {
    each_block(feed_forward2_.convolution(), planes.gate_planes().gates, first_row, scratch.depthwise,
               [&](int y, int column, int count) {
        close(feed_forward2_, scale2_, planes, y, column, count, scratch);
    });
}

}  // namespace runtime
}  // namespace ppsr2q
