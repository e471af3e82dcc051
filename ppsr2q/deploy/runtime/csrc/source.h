// The packed model as the caller hands it over: parameters and quantizers by name.
#pragma once

#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

#include "codes.h"

namespace ppsr2q {
namespace runtime {

struct Parameter {              // C layout; runtime/library.py declares the same
    const char* name;           // as in the Paddle network, or a folded point
    const float* values;        // count floats, or null where there are codes
    const std::uint8_t* codes;  // count codes of the parameter's quantizer, or null
    std::int64_t count;
};

struct QuantizerBounds {  // C layout
    const char* name;     // in the plan
    std::int32_t bits;
    float lower;
    float upper;
};

// What is wrong with a model, in words.
struct ModelError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// A parameter in floats and, when it is quantized, its codes.
struct Weight {
    std::vector<float> values;
    std::vector<std::uint8_t> codes;
    Levels levels;
};

class Source {
public:
    Source(const Parameter* parameters, std::int64_t parameter_count, const QuantizerBounds* quantizers,
           std::int64_t quantizer_count) {
        for (std::int64_t i = 0; i < parameter_count; i++) {
            parameters_[parameters[i].name] = parameters[i];
        }
        for (std::int64_t i = 0; i < quantizer_count; i++) {
            const QuantizerBounds& q = quantizers[i];
            if (q.bits < 1 || q.bits > 8 || !std::isfinite(q.lower) || !std::isfinite(q.upper) ||
                !(q.lower < q.upper)) {
                throw ModelError(std::string(q.name) + ": expected 1 to 8 bits and finite bounds a < b");
            }
            quantizers_[q.name] = Levels(q.lower, q.upper, q.bits);
        }
    }

    // The quantizer of a tensor; off when the plan leaves the tensor in floating point.
    Levels quantizer(const std::string& name) const {
        const auto found = quantizers_.find(name);
        return found == quantizers_.end() ? Levels() : found->second;
    }

    // Refuse a quantizer of a tensor that stays in floating point here.
    void expect_floating(const std::string& name) const {
        if (quantizer(name).on) {
            throw ModelError(name + ": the runtime takes it in floating point only, the plan quantizes it");
        }
    }

    std::vector<float> floats(const std::string& name, std::int64_t count) const {
        const Parameter& p = parameter(name, count);
        if (!p.values) {
            throw ModelError(name + ": the runtime takes it in floating point only, got codes");
        }
        return std::vector<float>(p.values, p.values + count);
    }

    // A parameter that quantizer_name may quantize.
    Weight weight(const std::string& name, const std::string& quantizer_name, std::int64_t count) const {
        const Parameter& p = parameter(name, count);
        Weight weight;
        weight.levels = quantizer(quantizer_name);
        if (weight.levels.on != (p.codes != nullptr)) {
            throw ModelError(name + (p.codes ? ": has codes but no quantizer" : ": has a quantizer but no codes"));
        }
        weight.values.resize(count);
        if (p.values) {
            weight.values.assign(p.values, p.values + count);
            return weight;
        }
        weight.codes.assign(p.codes, p.codes + count);
        for (std::int64_t i = 0; i < count; i++) {
            if (p.codes[i] > weight.levels.top) {
                throw ModelError(name + ": a code is above the largest one of its quantizer");
            }
            weight.values[i] = weight.levels.value(p.codes[i]);
        }
        return weight;
    }

    // Whether the codes of a point stand for the parameters that it is computed from.
    bool folded(const std::string& point) const { return parameters_.count(point) > 0; }

    // The values of a folded point.
    std::vector<float> point(const std::string& name, std::int64_t count) const {
        return weight(name, name, count).values;
    }

private:
    const Parameter& parameter(const std::string& name, std::int64_t count) const {
        const auto found = parameters_.find(name);
        if (found == parameters_.end()) {
            throw ModelError(name + ": missing");
        }
        if (found->second.count != count) {
            throw ModelError(name + ": expected " + std::to_string(count) + " numbers, got " +
                             std::to_string(found->second.count));
        }
        return found->second;
    }

    std::unordered_map<std::string, Parameter> parameters_;
    std::unordered_map<std::string, Levels> quantizers_;
};

}  // namespace runtime
}  // namespace ppsr2q
