// Vectors of float for every kernel, on GCC/Clang vector extensions: AVX-512, AVX2, SSE2 or NEON, as the
// compiler's target has them. Elementary functions are accurate to a few ulp where they are not tiny; NaN
// survives them all.
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
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#elif defined(__AVX2__)
    return (vf)_mm256_maskload_ps(p, (__m256i)(vi{0, 1, 2, 3, 4, 5, 6, 7} < count));
#else
    vf x = {};
    for (int i = 0; i < count; i++) {
        x[i] = p[i];
    }
    return x;
#endif
}

inline void store_partial(float* p, vf x, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)x);
#elif defined(__AVX2__)
    __m128 rest = _mm256_castps256_ps128((__m256)x);  // masked stores take tens of cycles on AMD
    if (count & 8) {
        _mm256_storeu_ps(p, (__m256)x);
        return;
    }
    if (count & 4) {
        _mm_storeu_ps(p, rest);
        rest = _mm256_extractf128_ps((__m256)x, 1);
        p += 4;
    }
    if (count & 2) {
        _mm_storel_pi(reinterpret_cast<__m64*>(p), rest);
        rest = _mm_movehl_ps(rest, rest);
        p += 2;
    }
    if (count & 1) {
        _mm_store_ss(p, rest);
    }
#else
    for (int i = 0; i < count; i++) {
        p[i] = x[i];
    }
#endif
}

// The same where most vectors are whole: count may exceed LANES.
inline vf load_up_to(const float* p, int count) { return count >= LANES ? load(p) : load_partial(p, count); }

inline void store_up_to(float* p, vf x, int count) {
    if (count >= LANES) {
        store(p, x);
    } else {
        store_partial(p, x, count);
    }
}

inline vi as_int(vf x) { return reinterpret_cast<vi>(x); }
inline vf as_float(vi x) { return reinterpret_cast<vf>(x); }

// mask lanes are 0 or -1, as comparisons give them.
inline vf select(vi mask, vf x, vf otherwise) { return mask ? x : otherwise; }
inline vf keep(vi mask, vf x) { return as_float(mask & as_int(x)); }

// x in the first count lanes (count may exceed LANES), 0 in the others.
inline vf first_lanes(vf x, int count) {
    vi lane;
    for (int i = 0; i < LANES; i++) {
        lane[i] = i;
    }
    return keep(lane < count, x);
}

// ---------------------------------------------------------------- arithmetic

// In both, a NaN in x survives: x is what a comparison with NaN falls back to, in the instructions as well.
inline vf at_least(vf x, vf lower) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_max_ps(0xffff, (__m512)lower, (__m512)x);
#elif defined(__AVX2__)
    return (vf)_mm256_max_ps((__m256)lower, (__m256)x);
#else
    return lower > x ? lower : x;
#endif
}

inline vf at_most(vf x, vf upper) {
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_min_ps(0xffff, (__m512)upper, (__m512)x);
#elif defined(__AVX2__)
    return (vf)_mm256_min_ps((__m256)upper, (__m256)x);
#else
    return upper < x ? upper : x;
#endif
}

inline vf absolute(vf x) { return as_float(as_int(x) & 0x7fffffff); }

// a b + c, contracted to one fused operation where the target has it.
inline vf multiply_add(vf a, vf b, vf c) { return a * b + c; }

constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for a fraction

// Nearest integer, ties to even, for |x| < 2^22. x must not be a bare product: contraction skips its
// rounding.
inline vf round_half_even(vf x) { return (x + ROUNDING) - ROUNDING; }

// x / y, correctly rounded, given inverse = 1 / y correctly rounded (Markstein's theorem: the remainder is
// exact).
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

// Lanes a[i ^ A] where bit H of i is clear, b[i ^ B] elsewhere.
template <int H, int A, int B, int... I>
inline vf pick_lanes(vf a, vf b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, (I & H ? LANES + (I ^ B) : I ^ A)...);
#else
    return __builtin_shuffle(a, b, vi{(I & H ? LANES + (I ^ B) : I ^ A)...});
#endif
}

template <int H, int A, int B>
inline vf pick_lanes(vf a, vf b) {
    return pick_lanes<H, A, B>(a, b, std::make_integer_sequence<int, LANES>());
}

template <int H>
inline vf fold(vf x) {
    if constexpr (H == 0) {
        return x;
    } else {
        return fold<H / 2>(x + pick_lanes<H, H, H>(x, x));
    }
}

template <int H>
inline vf fold_maximum(vf x) {
    if constexpr (H == 0) {
        return x;
    } else {
        return fold_maximum<H / 2>(at_least(x, pick_lanes<H, H, H>(x, x)));
    }
}

template <int H>
inline void exchange_blocks(vf* x) {
    if constexpr (H > 0) {
        for (int i = 0; i < LANES; i++) {
            if (!(i & H)) {
                vf a = x[i];
                vf b = x[i + H];
                x[i] = pick_lanes<H, 0, H>(a, b);
                x[i + H] = pick_lanes<H, H, 0>(a, b);
            }
        }
        exchange_blocks<H / 2>(x);
    }
}

template <int H>
inline vf fold_each(vf* x) {
    if constexpr (H == 0) {
        return x[0];
    } else {
        for (int i = 0; i < H; i++) {
            x[i] = pick_lanes<H, 0, 0>(x[i], x[i + H]) + pick_lanes<H, H, H>(x[i], x[i + H]);
        }
        return fold_each<H / 2>(x);
    }
}

}  // namespace detail

// Matrix of LANES rows, transposed in place.
inline void transpose(vf (&x)[LANES]) { detail::exchange_blocks<LANES / 2>(x); }

// Sum over the lanes, in an order that depends on LANES only.
inline float sum(vf x) { return detail::fold<LANES / 2>(x)[0]; }

inline float maximum(vf x) { return detail::fold_maximum<LANES / 2>(x)[0]; }

// Lane i of the result is sum(x[i]); overwrites x.
inline vf sums(vf (&x)[LANES]) { return detail::fold_each<LANES / 2>(x); }

// Cheap check for NaN and infinities: start at 0, feed it everything, then ask all_finite.
inline vf watch(vf watched, vf x) { return x * 0.0f + watched; }

inline bool all_finite(vf watched) { return sum(watched) == 0.0f; }

// ---------------------------------------------------------------- elementary functions

// exp(x) for |x| < 87: 2^n times a minimax polynomial of the rest.
inline vf exp_in_range(vf x) {
    vf shifted = x * 1.44269504f + ROUNDING;  // its low bits hold n = round(x / ln 2)
    vf n = shifted - ROUNDING;
    vf r = n * -0.693359375f + x;  // ln 2 in two parts (Cody and Waite), n times the first is exact
    r = n * 2.12194440e-4f + r;
    vf p = r * 1.384355863e-3f + 8.374236229e-3f;
    p = p * r + 4.166800746e-2f;
    p = p * r + 1.666643033e-1f;
    p = p * r + 4.999999417e-1f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    vi exponent = (as_int(shifted) << 23) + (127 << 23);  // the rest of ROUNDING's bits leave at the top
    return p * as_float(exponent);
}

// exp(x); 0 below about -87.7, infinity above 88.4.
inline vf exp(vf x) { return exp_in_range(at_most(at_least(x, broadcast(-88.0f)), broadcast(89.0f))); }

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
// The tail is exp(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.39 |x|), fitted to an absolute error
// of 1.2e-8.
inline vf normal_cdf(vf x, vf& density) {
    vf magnitude = absolute(x);
    vf t = 1.0f / (magnitude * 0.39f + 1.0f);
    vf e = exp(magnitude * magnitude * -0.5f);
    vf p = t * 5.369723563e-2f - 2.576547219e-1f;
    p = p * t + 3.742497056e-1f;
    p = p * t - 1.592538878e-2f;
    p = p * t + 1.941648838e-1f;
    p = p * t + 1.514682851e-1f;
    vf tail = p * t * e;
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

// Eq. 8 for a quantizer that is on: the gradient with respect to x, given x before quantization and the
// gradient of x_q; adds to the gradients of the bounds. Lanes that must not count need grad = 0.
inline vf quantize_backward(const Quantizer& quantizer, vf x, vf grad, BoundGradients& bounds) {
    vf position = quantizer.position(x);
    vf rounding = grad * ((round_half_even(position) - position) * quantizer.inverse_levels);
    bounds.lower += keep(x <= quantizer.lower, grad) - rounding;
    bounds.upper += keep(x >= quantizer.upper, grad) + rounding;
    return keep(~((x < quantizer.lower) | (x > quantizer.upper)), grad);
}

}  // namespace ppsr2q
