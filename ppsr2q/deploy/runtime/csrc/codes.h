// Codes: what quantizers make of floats, and products of codes. A code is one byte in memory; products read words of
// 32 bits that hold GROUP neighbouring codes, a vector of words being multiplied lane by lane and summed within
// each word.
//
// The two ways to multiply differ in width only:
//   ByteDot  four bytes a word, unsigned times signed: VNNI, or maddubs, whose 16-bit sums must not overflow;
//   WordDot  two 16-bit numbers a word: any codes on any machine.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../../ops/csrc/simd.h"

namespace ppsr2q {
namespace runtime {

typedef std::int32_t vi_unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef std::uint8_t vb __attribute__((vector_size(LANES)));

inline vi load_words(const std::int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }
inline void store_words(std::int32_t* p, vi x) { *reinterpret_cast<vi_unaligned*>(p) = x; }
inline vi broadcast_word(std::int32_t x) { return vi{} + x; }
inline vf to_float(vi x) { return __builtin_convertvector(x, vf); }

// LANES bytes as numbers. By intrinsics where there are any: GCC converts a vector byte by byte.
inline vi load_bytes(const std::uint8_t* p) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
    return (vi)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#elif defined(__SSE2__)
    std::int32_t word;
    std::memcpy(&word, p, sizeof(word));
    const __m128i zero = _mm_setzero_si128();
    return (vi)_mm_unpacklo_epi16(_mm_unpacklo_epi8(_mm_cvtsi32_si128(word), zero), zero);
#else
    vb bytes;
    std::memcpy(&bytes, p, sizeof(bytes));
    return __builtin_convertvector(bytes, vi);
#endif
}

// Nearest integer, ties to even, for |x| < 2^22.
inline vi to_nearest(vf x) {
#if defined(__AVX512F__)
    return (vi)_mm512_cvtps_epi32((__m512)x);
#elif defined(__AVX2__)
    return (vi)_mm256_cvtps_epi32((__m256)x);
#elif defined(__SSE2__)
    return (vi)_mm_cvtps_epi32((__m128)x);
#else
    return as_int(x + ROUNDING) - as_int(broadcast(ROUNDING));
#endif
}

// ---------------------------------------------------------------- quantizers

// A quantizer of the plan (Eq. 1) with its largest code.
struct Levels : Quantizer {
    int top = 0;

    Levels() = default;
    Levels(float lower_bound, float upper_bound, int bits) {
        const float bounds[2] = {lower_bound, upper_bound};
        static_cast<Quantizer&>(*this) = Quantizer(bounds, bits);
        top = (1 << bits) - 1;
    }

    float value(int code) const { return static_cast<float>(code) * step + lower; }

    // The code before it is rounded, not below 0 clipped.
    vf place(vf x) const { return at_most((x - lower) * inverse_step, broadcast(static_cast<float>(top))); }

    vi code(vf x) const { return to_nearest(at_least(place(x), vf{})); }
    int code(float x) const { return code(broadcast(x))[0]; }
};

#if defined(__AVX2__) && !defined(__AVX512F__)
// Four vectors of numbers as bytes, clipped to [0, 255].
inline __m256i pack_bytes(vi a, vi b, vi c, vi d) {
    const __m256i ab = _mm256_packs_epi32((__m256i)a, (__m256i)b);
    const __m256i cd = _mm256_packs_epi32((__m256i)c, (__m256i)d);
    return _mm256_packus_epi16(ab, cd);  // in each half: four bytes of a, of b, of c, of d
}
#endif

// codes[i] = code of x[i].
inline void quantize_codes(const float* x, std::int64_t count, const Levels& levels, std::uint8_t* codes) {
    std::int64_t i = 0;
#if defined(__AVX2__) && !defined(__AVX512F__)
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (; i + 4 * LANES <= count; i += 4 * LANES) {
        vi place[4];
        for (int v = 0; v < 4; v++) {
            place[v] = to_nearest(levels.place(load(x + i + v * LANES)));
        }
        const __m256i bytes = pack_bytes(place[0], place[1], place[2], place[3]);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i),
                            _mm256_permutevar8x32_epi32(bytes, in_order));
    }
#endif
    for (; i + LANES <= count; i += LANES) {
        const vb bytes = __builtin_convertvector(levels.code(load(x + i)), vb);
        std::memcpy(codes + i, &bytes, sizeof(bytes));
    }
    for (; i < count; i++) {
        codes[i] = static_cast<std::uint8_t>(levels.code(x[i]));
    }
}

// values[i] = what codes[i] stands for.
inline void dequantize_codes(const std::uint8_t* codes, std::int64_t count, const Levels& levels, float* values) {
    std::int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        store(values + i, to_float(load_bytes(codes + i)) * levels.step + levels.lower);
    }
    for (; i < count; i++) {
        values[i] = levels.value(codes[i]);
    }
}

inline std::int32_t sum_codes(const std::uint8_t* codes, int count) {
    std::int32_t total = 0;
    int i = 0;
#if defined(__SSE2__)
    __m128i sums = _mm_setzero_si128();
    for (; i + 16 <= count; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i));
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
    }
    if (i + 8 <= count) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes + i));
        sums = _mm_add_epi64(sums, _mm_sad_epu8(bytes, _mm_setzero_si128()));
        i += 8;
    }
    total = _mm_cvtsi128_si32(_mm_add_epi64(sums, _mm_unpackhi_epi64(sums, sums)));
#endif
    for (; i < count; i++) {
        total += codes[i];
    }
    return total;
}

// ---------------------------------------------------------------- products

// What a product's signed factor subtracts from its codes so that they fit; its lower bound moves by as much.
struct SignedCodes {
    int shift;
    float lower;

    SignedCodes(const Levels& levels, bool bytes)
        : shift(bytes && levels.top > 127 ? 128 : 0), lower(levels.value(shift)) {}
};

#if defined(__AVX512VNNI__) || (defined(__AVX2__) && !defined(__AVX512F__))
#define PPSR2Q_BYTE_DOT

struct ByteDot {
    static constexpr int GROUP = 4;
    using Code = std::int8_t;

#if defined(__AVX512VNNI__)
    static bool fits(const Levels&, const Levels&, int) { return true; }
    static vi add(vi sum, vi unsigned_codes, vi signed_codes) {
        return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_codes, (__m512i)signed_codes);
    }
    static vi finish(vi sum) { return sum; }
#else
    // Every 16-bit lane adds up two products of each of depth / 4 words.
    static bool fits(const Levels& unsigned_codes, const Levels& signed_codes, int depth) {
        return signed_codes.top <= 127 && 2 * unsigned_codes.top * signed_codes.top * ((depth + 3) / 4) <= 32767;
    }
    static vi add(vi sum, vi unsigned_codes, vi signed_codes) {
        return (vi)_mm256_add_epi16((__m256i)sum,
                                    _mm256_maddubs_epi16((__m256i)unsigned_codes, (__m256i)signed_codes));
    }
    static vi finish(vi sum) { return (vi)_mm256_madd_epi16((__m256i)sum, _mm256_set1_epi16(1)); }
#endif
};
#endif

struct WordDot {
    static constexpr int GROUP = 2;
    using Code = std::int16_t;

    static vi add(vi sum, vi a, vi b) {
#if defined(__AVX512BW__)
        return sum + (vi)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__) && !defined(__AVX512F__)
        return sum + (vi)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__) && !defined(__AVX512F__)
        return sum + (vi)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
        return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
    }
    static vi finish(vi sum) { return sum; }
};

// The narrowest way to multiply two tensors whose products are summed over depth.
inline bool bytes_fit(const Levels& unsigned_codes, const Levels& signed_codes, int depth) {
#if defined(PPSR2Q_BYTE_DOT)
    return ByteDot::fits(unsigned_codes, signed_codes, depth);
#else
    (void)unsigned_codes, (void)signed_codes, (void)depth;
    return false;
#endif
}

// Calls body(ByteDot()) or body(WordDot()).
template <class Body>
inline void with_dot(bool bytes, const Body& body) {
#if defined(PPSR2Q_BYTE_DOT)
    if (bytes) {
        body(ByteDot());
        return;
    }
#endif
    (void)bytes;
    body(WordDot());
}

// A word of Dot::GROUP codes, code(i) being the i-th.
template <class Dot, class CodeOf>
inline std::int32_t make_word(const CodeOf& code) {
    typename Dot::Code codes[Dot::GROUP];
    for (int i = 0; i < Dot::GROUP; i++) {
        codes[i] = static_cast<typename Dot::Code>(code(i));
    }
    std::int32_t word;
    std::memcpy(&word, codes, sizeof(word));
    return word;
}

// GROUP neighbouring codes as a word, less shift, which is 0 where a code has a byte to itself and 128 otherwise.
template <class Dot>
inline std::int32_t load_word(const std::uint8_t* codes, int shift) {
    if constexpr (Dot::GROUP == 4) {
        std::uint32_t word;
        std::memcpy(&word, codes, sizeof(word));
        return static_cast<std::int32_t>(word ^ 0x01010101u * static_cast<std::uint32_t>(shift));
    } else {
        return make_word<Dot>([&](int i) { return codes[i] - shift; });
    }
}

// GROUP vectors of codes -> a vector of words whose i-th code is codes[i].
template <class Dot>
inline vi join_words(const vi (&codes)[Dot::GROUP]) {
    vi word = codes[0];
    for (int i = 1; i < Dot::GROUP; i++) {
        word |= codes[i] << (32 / Dot::GROUP * i);
    }
    return word;
}

// GROUP vectors of places of codes, |place| < 2^31, -> words of the nearest codes in [0, top].
template <class Dot>
inline vi round_to_words(const vf (&places)[Dot::GROUP], int top) {
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (Dot::GROUP == 4) {
        const __m256i bytes = pack_bytes(to_nearest(places[0]), to_nearest(places[1]), to_nearest(places[2]),
                                         to_nearest(places[3]));
        const __m256i interleaved = _mm256_shuffle_epi8(
            bytes, _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                    0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
        return (vi)_mm256_min_epu8(interleaved, _mm256_set1_epi8(static_cast<char>(top)));
    }
#endif
    vi codes[Dot::GROUP];
    for (int i = 0; i < Dot::GROUP; i++) {
        codes[i] = to_nearest(at_least(at_most(places[i], broadcast(static_cast<float>(top))), vf{}));
    }
    return join_words<Dot>(codes);
}

}  // namespace runtime
}  // namespace ppsr2q
