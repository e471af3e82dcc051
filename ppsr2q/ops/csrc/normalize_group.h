// GELU, LayerNorm and a quantizer on as many pixels at a time as a vector has lanes: channels fill the lanes
// of the elementwise work, pixels those of the statistics, so that no horizontal sum stands alone.
#pragma once

#include <cmath>

#include "simd.h"

namespace ppsr2q {

// Scale and offset of a LayerNorm over channels; null for 1 and 0.
struct Affine {
    const float* weight;
    const float* bias;
    float epsilon;

    vf scale(int c, int count) const { return weight ? load_up_to(weight + c, count) : broadcast(1.0f); }
    vf offset(int c, int count) const { return bias ? load_up_to(bias + c, count) : vf{}; }
};

// Up to LANES pixels: read() first, then one of the others.
class PixelGroup {
public:
    // Floats of scratch that a group of so many channels needs.
    static std::size_t size(int channels) { return 3 * static_cast<std::size_t>(LANES) * padded(channels); }

    PixelGroup(float* scratch, int channels)
        : channels_(channels), width_(padded(channels)), normalized_(scratch),
          derivative_(scratch + LANES * width_), grad_(derivative_ + LANES * width_) {}

    // gelu(x) of the pixels, stride apart, and its derivative; then normalized, before scale and offset.
    void read(const float* x, int stride, int pixels, float epsilon) {
        pixels_ = pixels;
        vf partial[LANES] = {};
        for (int i = 0; i < pixels; i++) {
            for (int c = 0; c < channels_; c += LANES) {
                vf derivative;
                vf value = gelu(load_up_to(x + i * stride + c, channels_ - c), derivative);
                partial[i] += value;
                store(normalized_ + i * width_ + c, value);
                store(derivative_ + i * width_ + c, derivative);
            }
        }
        const vf mean = sums(partial) / static_cast<float>(channels_);
        for (int i = 0; i < LANES; i++) {
            partial[i] = vf{};
        }
        for (int i = 0; i < pixels; i++) {
            for (int c = 0; c < channels_; c += LANES) {
                float* p = normalized_ + i * width_ + c;
                vf deviation = first_lanes(load(p) - mean[i], channels_ - c);
                partial[i] += deviation * deviation;
                store(p, deviation);
            }
        }
        const vf variance = sums(partial) / static_cast<float>(channels_);
        for (int i = 0; i < pixels; i++) {
            inverse_deviation_[i] = 1.0f / std::sqrt(variance[i] + epsilon);
            for (int c = 0; c < channels_; c += LANES) {
                float* p = normalized_ + i * width_ + c;
                store(p, load(p) * inverse_deviation_[i]);
            }
        }
    }

    // out (pixels, channels) = Q(norm(gelu(x))).
    void normalize(const Affine& norm, const Quantizer& quantizer, float* out) const {
        for (int c = 0; c < channels_; c += LANES) {
            const int count = channels_ - c;
            const vf scale = norm.scale(c, count);
            const vf offset = norm.offset(c, count);
            for (int i = 0; i < pixels_; i++) {
                vf value = quantizer(load(normalized_ + i * width_ + c) * scale + offset);
                store_up_to(out + i * channels_ + c, value, count);
            }
        }
    }

    // From grad (pixels, channels), the gradient of normalize's result: that of x (pixels stride apart),
    // added those of the scale and the offset (channels, padded to vectors) and of the bounds.
    void normalize_backward(const Affine& norm, const Quantizer& quantizer, const float* grad, float* grad_x,
                            int stride, float* grad_scale, float* grad_offset, BoundGradients& bounds) {
        vf partial[LANES] = {};
        vf partial_product[LANES] = {};
        for (int c = 0; c < channels_; c += LANES) {
            const int count = channels_ - c;
            const vf scale = norm.scale(c, count);
            const vf offset = norm.offset(c, count);
            vf scale_sum = load(grad_scale + c);
            vf offset_sum = load(grad_offset + c);
            for (int i = 0; i < pixels_; i++) {
                vf normalized = load(normalized_ + i * width_ + c);
                vf g = load_up_to(grad + i * channels_ + c, count);
                if (quantizer.on) {
                    g = quantize_backward(quantizer, normalized * scale + offset, g, bounds);
                }
                scale_sum += g * normalized;
                offset_sum += g;
                g *= scale;
                partial[i] += g;
                partial_product[i] += g * normalized;
                store(grad_ + i * width_ + c, g);
            }
            store(grad_scale + c, scale_sum);
            store(grad_offset + c, offset_sum);
        }
        const vf mean = sums(partial) / static_cast<float>(channels_);
        const vf mean_product = sums(partial_product) / static_cast<float>(channels_);
        for (int i = 0; i < pixels_; i++) {
            for (int c = 0; c < channels_; c += LANES) {
                const int at = i * width_ + c;
                vf g = load(grad_ + at) - mean[i] - load(normalized_ + at) * mean_product[i];
                store_up_to(grad_x + i * stride + c, g * inverse_deviation_[i] * load(derivative_ + at),
                            channels_ - c);
            }
        }
    }

private:
    int channels_;
    int width_;
    int pixels_ = 0;
    float* normalized_;
    float* derivative_;
    float* grad_;
    float inverse_deviation_[LANES];
};

}  // namespace ppsr2q
