// V16: sixteen floats, one for each row of a panel, in two AVX2 registers.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace zeropoint {
namespace {

constexpr int TILE_ROWS = 6;   // rows of x that share one pass over the weights: 12 of 16 registers are sums

struct V16 {
    __m256 a, b;
};

inline V16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, V16 x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline V16 splat(float f) { return {_mm256_set1_ps(f), _mm256_set1_ps(f)}; }
inline V16 fma(V16 x, V16 y, V16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline V16 operator+(V16 x, V16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline V16 operator-(V16 x, V16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline V16 operator*(V16 x, V16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline V16 operator/(V16 x, V16 y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline V16 larger(V16 x, V16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline V16 smaller(V16 x, V16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline V16 magnitude(V16 x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline V16 round_even(V16 x) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline V16 power_of_two(V16 n) {
    const __m256i bias = _mm256_set1_epi32(127);
    const auto one = [&](__m256 x) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(x), bias), 23));
    };
    return {one(n.a), one(n.b)};
}

inline __m256i bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i half_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline V16 first_of_pairs(const uint16_t* p) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bytes(p), 16)),
            _mm256_castsi256_ps(_mm256_slli_epi32(bytes(p + 16), 16))};
}
inline V16 second_of_pairs(const uint16_t* p) {
    const __m256i high = _mm256_set1_epi32(int(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(bytes(p), high)),
            _mm256_castsi256_ps(_mm256_and_si256(bytes(p + 16), high))};
}
inline V16 load_bf16(const uint16_t* p) {
    const auto one = [](const uint16_t* q) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_bytes(q)), 16));
    };
    return {one(p), one(p + 8)};
}
inline V16 load_f16(const uint16_t* p) { return {_mm256_cvtph_ps(half_bytes(p)), _mm256_cvtph_ps(half_bytes(p + 8))}; }
inline void store_f16(uint16_t* p, V16 x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
inline V16 load_column(const uint8_t* quad, int c) {
    const __m256i low = _mm256_set1_epi32(0xff);
    const __m128i shift = _mm_cvtsi32_si128(8 * c);
    const auto one = [&](const uint8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srl_epi32(bytes(p), shift), low));
    };
    return {one(quad), one(quad + 32)};
}
inline V16 load_u8(const uint8_t* p) {
    const __m128i x = half_bytes(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)))};
}
inline V16 load_i8(const int8_t* p) {
    const __m128i x = half_bytes(p);
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)), _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)))};
}
inline V16 load_i32(const int32_t* p) { return {_mm256_cvtepi32_ps(bytes(p)), _mm256_cvtepi32_ps(bytes(p + 8))}; }
inline int32_t store_i8(int8_t* p, V16 x) {
    const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
    const __m128i narrow = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow);
    const __m256i both = _mm256_add_epi32(a, b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
}

}  // namespace
}  // namespace zeropoint
