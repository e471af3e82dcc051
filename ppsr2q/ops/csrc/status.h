// What the functions of the C interface return.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

namespace ppsr2q {

enum Status : int {
    OK = 0,            // 1 to 99: the argument of that number (counted from 1) holds NaN or an infinity
    NOT_FINITE = 100,  // every argument is finite, the result is not
    OUT_OF_MEMORY = -1,
    BAD_INDEX = -2,
    UNSUPPORTED = -3,  // a size that is not compiled in; the dispatcher does not let it come here
    NO_THREADS = -4,   // the system gives no more threads
    FAILED = -5,       // anything else
    BAD_BOUNDS =
        101,  // BAD_BOUNDS + i: quantizer i (counted from 0) has bounds that are not finite with a < b
};

// Whether a quantizer can be made of bounds; with bits = 0 there is none and bounds are not read.
inline bool valid_bounds(const float* bounds, int bits) {
    return bits == 0 || (std::isfinite(bounds[0]) && std::isfinite(bounds[1]) && bounds[0] < bounds[1]);
}

struct Argument {
    const float* data;  // may be null
    std::int64_t count;
};

// Which argument is to blame after a kernel met something that is not finite: the slow search that kernels
// are spared.
inline int blame(const std::vector<Argument>& arguments) {
    int number = 0;
    for (const Argument& argument : arguments) {
        number++;
        for (std::int64_t i = 0; argument.data && i < argument.count; i++) {
            if (!std::isfinite(argument.data[i])) {
                return number;
            }
        }
    }
    return NOT_FINITE;
}

}  // namespace ppsr2q
