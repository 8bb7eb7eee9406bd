// V16: sixteen floats, one for each row of a panel, in plain C++. The reference that the vector versions must equal.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "bf16.h"

namespace zeropoint {
namespace {

constexpr int TILE_ROWS = 4;   // rows of x that share one pass over the weights

struct V16 {
    float v[16];
};

template <class F>
inline V16 each(F f) {
    V16 r;
    for (int i = 0; i < 16; i++) r.v[i] = f(i);
    return r;
}

inline float as_float(uint32_t bits) {
    float f;
    std::memcpy(&f, &bits, 4);
    return f;
}

inline uint32_t as_bits(float f) {
    uint32_t bits;
    std::memcpy(&bits, &f, 4);
    return bits;
}

inline float half_to_float(uint16_t h) {
    const uint32_t sign = uint32_t(h & 0x8000) << 16, rest = h & 0x7fff;
    if (rest < 0x400) return as_float(sign | as_bits(float(rest) * 0x1p-24f));
    if (rest >= 0x7c00) return as_float(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    return as_float(sign | ((rest << 13) + (112u << 23)));
}

inline uint16_t float_to_half(float f) {
    const uint32_t bits = as_bits(f), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
    if (magnitude >= 0x477ff000) return uint16_t(sign | 0x7c00);
    if (magnitude < 0x38800000) {  // below 2^-14: halves there are multiples of 2^-24
        const float scaled = as_float(magnitude) * 0x1p24f;
        return uint16_t(sign | uint32_t(std::nearbyint(scaled)));
    }
    const uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return uint16_t(sign | (rounded - (112u << 23)) >> 13);
}

inline V16 load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, V16 a) { std::memcpy(p, a.v, 64); }
inline V16 splat(float f) { return each([&](int) { return f; }); }
inline V16 fma(V16 a, V16 b, V16 c) { return each([&](int i) { return std::fma(a.v[i], b.v[i], c.v[i]); }); }
inline V16 operator+(V16 a, V16 b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
inline V16 operator-(V16 a, V16 b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
inline V16 operator*(V16 a, V16 b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
inline V16 operator/(V16 a, V16 b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
inline V16 larger(V16 a, V16 b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline V16 smaller(V16 a, V16 b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
inline V16 magnitude(V16 a) { return each([&](int i) { return std::fabs(a.v[i]); }); }
inline V16 round_even(V16 a) { return each([&](int i) { return std::nearbyint(a.v[i]); }); }
// 2^n for whole n in [-126, 127]
inline V16 power_of_two(V16 n) { return each([&](int i) { return as_float(uint32_t(int32_t(n.v[i]) + 127) << 23); }); }

// 16 pairs of bfloat16: the first, or the second, of each
inline V16 first_of_pairs(const uint16_t* p) { return each([&](int i) { return from_bf16(p[2 * i]); }); }
inline V16 second_of_pairs(const uint16_t* p) { return each([&](int i) { return from_bf16(p[2 * i + 1]); }); }
inline V16 load_bf16(const uint16_t* p) { return each([&](int i) { return from_bf16(p[i]); }); }
inline V16 load_f16(const uint16_t* p) { return each([&](int i) { return half_to_float(p[i]); }); }
inline void store_f16(uint16_t* p, V16 a) {
    for (int i = 0; i < 16; i++) p[i] = float_to_half(a.v[i]);
}
// column c of an unpacked quad
inline V16 load_column(const uint8_t* quad, int c) { return each([&](int i) { return float(quad[4 * i + c]); }); }
inline V16 load_u8(const uint8_t* p) { return each([&](int i) { return float(p[i]); }); }
inline V16 load_i8(const int8_t* p) { return each([&](int i) { return float(p[i]); }); }
inline V16 load_i32(const int32_t* p) { return each([&](int i) { return float(p[i]); }); }
// whole values in [-128, 127]; returns their sum
inline int32_t store_i8(int8_t* p, V16 a) {
    int32_t total = 0;
    for (int i = 0; i < 16; i++) total += p[i] = int8_t(a.v[i]);
    return total;
}

}  // namespace
}  // namespace zeropoint
