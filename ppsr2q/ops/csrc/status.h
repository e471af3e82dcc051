// What the functions of the C interface return.
#pragma once

#include <cmath>

namespace ppsr2q {

enum Status : int {
    OK = 0,  // 1 to 100: the argument of that number (counted from 1) holds NaN or an infinity
    OUT_OF_MEMORY = -1,
    BAD_INDEX = -2,
    BAD_BOUNDS = 101,  // BAD_BOUNDS + i: quantizer i (counted from 0) has bounds that are not finite with a < b
};

// Whether a quantizer can be made of bounds; with bits = 0 there is none and bounds are not read.
inline bool valid_bounds(const float* bounds, int bits) {
    return bits == 0 || (std::isfinite(bounds[0]) && std::isfinite(bounds[1]) && bounds[0] < bounds[1]);
}

}  // namespace ppsr2q
