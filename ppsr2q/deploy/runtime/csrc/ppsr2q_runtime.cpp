// The C interface of the runtime. Functions never throw; those that compute return a Status.
#include <cstdio>
#include <system_error>

#include "../../../ops/csrc/status.h"
#include "network.h"

#define PPSR2Q_API extern "C" __attribute__((visibility("default")))

using ppsr2q::runtime::Network;
using ppsr2q::runtime::Team;

namespace {

template <class Body>
int guarded(const Body& body) {
    try {
        body();
        return ppsr2q::OK;
    } catch (const std::bad_alloc&) {
        return ppsr2q::OUT_OF_MEMORY;
    } catch (const std::system_error&) {
        return ppsr2q::NO_THREADS;
    } catch (...) {
        return ppsr2q::FAILED;
    }
}

}  // namespace

// A network of the arrays (which it copies), or null with the reason in message [message_size].
PPSR2Q_API void* ppsr2q_runtime_create(const ppsr2q::runtime::Parameter* parameters, int64_t parameter_count,
                                       const ppsr2q::runtime::QuantizerBounds* quantizers,
                                       int64_t quantizer_count, int scale, char* message,
                                       int64_t message_size) {
    try {
        return new Network(
            ppsr2q::runtime::Source(parameters, parameter_count, quantizers, quantizer_count), scale);
    } catch (const std::bad_alloc&) {
        std::snprintf(message, message_size, "not enough memory");
        return nullptr;
    } catch (const std::exception& error) {
        std::snprintf(message, message_size, "%s", error.what());
        return nullptr;
    }
}

PPSR2Q_API void ppsr2q_runtime_destroy(void* network) {
    delete static_cast<Network*>(network);
}

// image [height][width][3] -> out [scale height][scale width][3]. Any number of calls may run at a time.
PPSR2Q_API int ppsr2q_runtime_upscale(const void* network, const float* image, int height, int width,
                                      int threads, float* out) {
    return guarded([&] {
        Team team(threads);
        static_cast<const Network*>(network)->upscale(image, height, width, team, out);
    });
}

// One AttentiveLayer on tokens [height][width][48], in place; height and width are multiples of 16.
PPSR2Q_API int ppsr2q_runtime_run_layer(const void* network, int index, int height, int width, int threads,
                                        float* tokens) {
    return guarded([&] {
        Team team(threads);
        static_cast<const Network*>(network)->run_layer(index, height, width, team, tokens);
    });
}

// codes [count] of values, as every step quantizes them; for comparisons with the quantizer in Paddle.
PPSR2Q_API void ppsr2q_runtime_codes(const float* values, int64_t count, float lower, float upper, int bits,
                                     uint8_t* codes) {
    ppsr2q::runtime::quantize_codes(values, count, ppsr2q::runtime::Levels(lower, upper, bits), codes);
}
