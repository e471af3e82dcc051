// Sizes of MambaIRv2-light; ppsr2q/models/mambairv2.py has the same.
#pragma once

namespace ppsr2q {
namespace runtime {

constexpr int CHANNELS = 48;
constexpr int GATE_CHANNELS = 24;  // half of the feed-forward network's hidden channels
constexpr int STATES = 8;
constexpr int DT_RANK = 3;
constexpr int ROUTE_CHANNELS = 16;
constexpr int CLASSES = 64;
constexpr int INNER_RANK = 32;
constexpr int HEADS = 4;
constexpr int HEAD_CHANNELS = CHANNELS / HEADS;
constexpr int WINDOW = 16;
constexpr int WINDOW_TOKENS = WINDOW * WINDOW;
constexpr int STAGES = 4;
constexpr int STAGE_LAYERS = 5;

}  // namespace runtime
}  // namespace ppsr2q
