// V16: sixteen floats, one for each row of a panel, in one AVX-512 register.
#pragma once

#include <cstdint>

#include "wide.h"

namespace zeropoint {
namespace {

#ifdef ZEROPOINT_EMULATED
using namespace emulated;
#endif

constexpr int TILE_ROWS = 12;  // rows of x that share one pass over the weights: 12 of 32 registers hide the latency of fma

struct V16 {
    __m512 v;
};

inline V16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, V16 x) { _mm512_storeu_ps(p, x.v); }
inline V16 splat(float f) { return {_mm512_set1_ps(f)}; }
inline V16 fma(V16 x, V16 y, V16 z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
inline V16 operator+(V16 x, V16 y) { return {_mm512_add_ps(x.v, y.v)}; }
inline V16 operator-(V16 x, V16 y) { return {_mm512_sub_ps(x.v, y.v)}; }
inline V16 operator*(V16 x, V16 y) { return {_mm512_mul_ps(x.v, y.v)}; }
inline V16 operator/(V16 x, V16 y) { return {_mm512_div_ps(x.v, y.v)}; }
inline V16 larger(V16 x, V16 y) { return {_mm512_max_ps(x.v, y.v)}; }
inline V16 smaller(V16 x, V16 y) { return {_mm512_min_ps(x.v, y.v)}; }
inline V16 magnitude(V16 x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff)))};
}
inline V16 round_even(V16 x) { return {_mm512_roundscale_ps(x.v, 0x08)}; }   // to integers, to even, without exceptions
inline V16 power_of_two(V16 n) {
    const __m512i exponent = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23))};
}

inline __m256i half_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline __m128i quarter_bytes(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }

inline V16 first_of_pairs(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16))};
}
inline V16 second_of_pairs(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(int(0xffff0000))))};
}
inline V16 load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half_bytes(p)), 16))};
}
inline V16 load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(half_bytes(p))}; }
inline void store_f16(uint16_t* p, V16 x) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, 0x08));   // to even, without exceptions
}
inline V16 load_column(const uint8_t* quad, int c) {
    const __m512i shifted = _mm512_srl_epi32(_mm512_loadu_si512(quad), _mm_cvtsi32_si128(8 * c));
    return {_mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(0xff)))};
}
inline V16 load_u8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(quarter_bytes(p)))}; }
inline V16 load_i8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(quarter_bytes(p)))}; }
inline V16 load_i32(const int32_t* p) { return {_mm512_cvtepi32_ps(_mm512_loadu_si512(p))}; }
inline int32_t store_i8(int8_t* p, V16 x) {
    const __m512i n = _mm512_cvtps_epi32(x.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(n));
    return _mm512_reduce_add_epi32(n);
}

}  // namespace
}  // namespace zeropoint
