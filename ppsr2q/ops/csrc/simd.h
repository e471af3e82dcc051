// Vectors of float for every kernel, on GCC/Clang vector extensions: AVX-512, AVX2, SSE2 or NEON, chosen by the
// compiler's target. Elementary functions are accurate to about 1 ulp where they are not tiny; NaN survives them all.
//
// Compile with -O3 -ffp-contract=fast -fno-math-errno, never with -ffast-math.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace ppsr2q {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef std::int32_t vi __attribute__((vector_size(LANES * 4)));
typedef float vf_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

constexpr int ALIGNMENT = 64;  // of scratch buffers: a cache line, and the widest vector

// n rounded up to whole vectors.
constexpr int padded(int n) { return (n + LANES - 1) / LANES * LANES; }

// ---------------------------------------------------------------- moving data

inline vf broadcast(float x) { return x - vf{}; }  // x - 0 keeps -0, unlike x + 0

inline vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }

inline void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }

// The first count (0..LANES) floats, the other lanes 0. Nothing behind them is touched.
inline vf load_partial(const float* p, int count) {
    vf x = {};
    std::memcpy(&x, p, static_cast<std::size_t>(count) * sizeof(float));
    return x;
}

inline void store_partial(float* p, vf x, int count) {
    std::memcpy(p, &x, static_cast<std::size_t>(count) * sizeof(float));
}

inline vi as_int(vf x) { return reinterpret_cast<vi>(x); }
inline vf as_float(vi x) { return reinterpret_cast<vf>(x); }

// mask lanes are 0 or -1, as comparisons give them.
inline vf select(vi mask, vf x, vf otherwise) { return mask ? x : otherwise; }
inline vf keep(vi mask, vf x) { return as_float(mask & as_int(x)); }

// ---------------------------------------------------------------- arithmetic

// In both, a NaN in x survives: x is what a comparison with NaN falls back to.
inline vf at_least(vf x, vf lower) { return lower > x ? lower : x; }
inline vf at_most(vf x, vf upper) { return upper < x ? upper : x; }

inline vf absolute(vf x) { return as_float(as_int(x) & 0x7fffffff); }

// a b + c, contracted to one fused operation where the target has it.
inline vf multiply_add(vf a, vf b, vf c) { return a * b + c; }

constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: x + ROUNDING - ROUNDING rounds to the nearest, ties to even

// Nearest integer, ties to even, for |x| < 2^22. x must not be a bare product: contraction would skip its rounding.
inline vf round_half_even(vf x) { return (x + ROUNDING) - ROUNDING; }

// x / y, correctly rounded, given inverse = 1 / y correctly rounded (Markstein's theorem; the remainder is exact).
inline vf divide(vf x, vf y, vf inverse) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
    vf quotient = x * inverse;
    vf remainder = x - quotient * y;
    return quotient + remainder * inverse;
#else
    (void)inverse;
    return x / y;
#endif
}

// ---------------------------------------------------------------- across lanes

namespace detail {

template <int H, int... I>
inline vf fold_lanes(vf a, vf b, std::integer_sequence<int, I...>) {
    // Lanes with bit H clear get a[i] + a[i ^ H], the others b[i] + b[i ^ H].
#if defined(__clang__)
    vf own = __builtin_shufflevector(a, b, ((I & H) ? LANES + I : I)...);
    vf other = __builtin_shufflevector(a, b, ((I & H) ? LANES + (I ^ H) : (I ^ H))...);
#else
    vf own = __builtin_shuffle(a, b, vi{((I & H) ? LANES + I : I)...});
    vf other = __builtin_shuffle(a, b, vi{((I & H) ? LANES + (I ^ H) : (I ^ H))...});
#endif
    return own + other;
}

template <int H>
inline vf fold_lanes(vf a, vf b) {
    return fold_lanes<H>(a, b, std::make_integer_sequence<int, LANES>());
}

template <int H>
inline vf fold_all(vf* x) {
    for (int i = 0; i < H; i++) {
        x[i] = fold_lanes<H>(x[i], x[i + H]);
    }
    if constexpr (H > 1) {
        return fold_all<H / 2>(x);
    }
    return x[0];
}

template <int H>
inline float fold_one(vf x) {
    x = fold_lanes<H>(x, x);
    if constexpr (H > 1) {
        return fold_one<H / 2>(x);
    }
    return x[0];
}

}  // namespace detail

// Sum over the lanes, in an order that depends on LANES only.
inline float sum(vf x) { return detail::fold_one<LANES / 2>(x); }

// Lane i of the result is sum(x[i]); overwrites x.
inline vf sums(vf (&x)[LANES]) { return detail::fold_all<LANES / 2>(x); }

inline float maximum(vf x) {
    float result = x[0];
    for (int i = 1; i < LANES; i++) {
        result = x[i] > result ? x[i] : result;
    }
    return result;
}

// Cheap check for NaN and infinities: start at 0, feed it everything, then ask all_finite.
inline vf watch(vf watched, vf x) { return x * 0.0f + watched; }

inline bool all_finite(vf watched) { return sum(watched) == 0.0f; }

// ---------------------------------------------------------------- elementary functions

// exp(x): 2^n times a minimax polynomial of the rest; 0 below about -87.7, infinity above 88.4.
inline vf exp(vf x) {
    x = at_most(at_least(x, broadcast(-88.0f)), broadcast(89.0f));
    vf shifted = x * 1.44269504f + ROUNDING;  // its low bits hold n = round(x / ln 2)
    vf n = shifted - ROUNDING;
    vf r = n * -0.693359375f + x;  // ln 2 in two parts (Cody and Waite); the first has few bits, so n * it is exact
    r = n * 2.12194440e-4f + r;
    vf p = r * EXP6 + EXP5;
    p = p * r + EXP4;
    p = p * r + EXP3;
    p = p * r + EXP2;
    p = p * r + EXP1;
    p = p * r + 1.0f;
    vi exponent = (as_int(shifted) << 23) + (127 << 23);  // the rest of ROUNDING's bits leave at the top
    return p * as_float(exponent);
}

// 1 / (1 + exp(-x)).
inline vf sigmoid(vf x) {
    vf e = exp(-absolute(x));
    return select(x < 0.0f, e, broadcast(1.0f)) / (1.0f + e);
}

// log(1 + exp(x)), without cancellation at either end; its derivative is sigmoid(x).
inline vf softplus(vf x, vf& derivative) {
    vf e = exp(-absolute(x));
    vf inverse = 1.0f / ((1.0f + e) * (2.0f + e));
    vf s = e * (1.0f + e) * inverse;  // e / (2 + e), so that log(1 + e) = 2 artanh(s), 0 <= s <= 1/3
    vf z = s * s;
    vf p = z * 1.409928417e-1f + 1.397814765e-1f;
    p = p * z + 2.001259815e-1f;
    p = p * z + 3.333315431e-1f;
    p = p * z + 1.000000004f;
    derivative = select(x < 0.0f, e, broadcast(1.0f)) * ((2.0f + e) * inverse);
    return (s + s) * p + at_least(x, vf{});
}

inline vf softplus(vf x) {
    vf derivative;
    return softplus(x, derivative);
}

// Distribution function of the standard normal, and its density: gelu(x) = x cdf, gelu'(x) = cdf + x density.
// erfc by Abramowitz and Stegun 7.1.26 (absolute error of the distribution function below 1e-7).
inline vf normal_cdf(vf x, vf& density) {
    vf magnitude = absolute(x);
    vf t = 1.0f / (magnitude * (0.3275911f * 0.70710678f) + 1.0f);
    vf e = exp(magnitude * magnitude * -0.5f);
    vf p = t * 1.061405429f - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    vf tail = p * t * (e * 0.5f);
    density = e * 0.39894228f;
    return select(x < 0.0f, tail, 1.0f - tail);
}

inline vf gelu(vf x) {
    vf density;
    return x * normal_cdf(x, density);
}

inline vf gelu(vf x, vf& derivative) {
    vf density;
    vf cdf = normal_cdf(x, density);
    derivative = x * density + cdf;
    return x * cdf;
}

// ---------------------------------------------------------------- quantizers

// Eq. 1: c = clip(x, a, b), s = (b - a) / (2^n - 1), x_q = round((c - a) / s) s + a; off with bits = 0.
struct Quantizer {
    bool on = false;
    float lower = 0.0f;
    float upper = 0.0f;
    float step = 1.0f;
    float inverse_step = 1.0f;
    float inverse_levels = 1.0f;  // 1 / (2^n - 1)

    Quantizer() = default;

    Quantizer(const float* bounds, int bits) {
        if (bits == 0) {
            return;
        }
        float levels = static_cast<float>((1 << bits) - 1);
        on = true;
        lower = bounds[0];
        upper = bounds[1];
        step = (upper - lower) / levels;
        inverse_step = 1.0f / step;
        inverse_levels = 1.0f / levels;
    }

    // (c - a) / s, the code before it is rounded.
    vf position(vf x) const {
        vf clipped = at_most(at_least(x, broadcast(lower)), broadcast(upper));
        return divide(clipped - lower, broadcast(step), broadcast(inverse_step));
    }

    // Forward, whether on or off.
    vf operator()(vf x) const { return on ? quantize(x) : x; }

    // Forward of a quantizer that is on, for loops that have asked once.
    vf quantize(vf x) const { return round_half_even(position(x)) * step + lower; }
};

// Sums, lane by lane, of the gradients with respect to the two bounds.
struct BoundGradients {
    vf lower = {};
    vf upper = {};

    BoundGradients& operator+=(const BoundGradients& other) {
        lower += other.lower;
        upper += other.upper;
        return *this;
    }
};

// Eq. 8 for a quantizer that is on: the gradient with respect to x, given x before quantization and the gradient of
// x_q; adds to the gradients of the bounds. Lanes that must not count need grad = 0.
inline vf quantize_backward(const Quantizer& quantizer, vf x, vf grad, BoundGradients& bounds) {
    vf position = quantizer.position(x);
    vf rounding = grad * ((round_half_even(position) - position) * quantizer.inverse_levels);
    vi below = x < quantizer.lower;
    vi above = x > quantizer.upper;
    bounds.lower += keep(below, grad) - rounding;
    bounds.upper += keep(above, grad) + rounding;
    return keep(~(below | above), grad);
}

}  // namespace ppsr2q
