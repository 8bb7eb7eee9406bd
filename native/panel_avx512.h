// The parts of a panel of 16 rows in 512-bit registers: its codes, scales and zero points, and its 16 results.
#pragma once

#include "wide.h"

namespace zeropoint::ZEROPOINT_WIDE {
namespace {

// Left by `by` bits, right where it is negative. Bits that cross into the next byte are masked away by who calls.
template <int by>
ZEROPOINT_INLINE __m512i shift(__m512i v) {
    if constexpr (by > 0) return _mm512_slli_epi16(v, by);
    if constexpr (by < 0) return _mm512_srli_epi16(v, -by);
    return v;
}

// Put the `width` bits at `from` of every byte of v to `to` of every byte of quad.
template <int width, int from, int to>
ZEROPOINT_INLINE void place(__m512i& quad, __m512i v) {
    const __m512i mask = _mm512_set1_epi8(static_cast<char>(((1 << width) - 1) << to));
    if constexpr (to == 0)
        quad = _mm512_and_si512(shift<-from>(v), mask);
    else
        quad = _mm512_ternarylogic_epi32(quad, shift<to - from>(v), mask, 0xF8);   // quad | (shifted & mask)
}

// A chunk of 32 columns from its bit planes: 8 quads of 4 columns, byte 4r + c being column c of row r.
template <int bits>
ZEROPOINT_INLINE void unpack(const uint8_t* chunk, __m512i (&quad)[8]) {
    if constexpr (bits == 8) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) quad[j] = _mm512_loadu_si512(chunk + 64 * j);
        return;
    }
    if constexpr (bits >= 4) {
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const __m512i v = _mm512_loadu_si512(chunk + 64 * j);
            place<4, 0, 0>(quad[j], v);
            place<4, 4, 0>(quad[j + 4], v);
        }
        chunk += 4 * 64;
    }
    if constexpr (bits & 2) {
        constexpr int to = bits >= 4 ? 4 : 0;
#pragma GCC unroll 2
        for (int j = 0; j < 2; ++j) {
            const __m512i v = _mm512_loadu_si512(chunk + 64 * j);
            place<2, 0, to>(quad[j], v);
            place<2, 2, to>(quad[j + 2], v);
            place<2, 4, to>(quad[j + 4], v);
            place<2, 6, to>(quad[j + 6], v);
        }
        chunk += 2 * 64;
    }
    if constexpr (bits & 1) {
        constexpr int to = bits - 1;
        const __m512i v = _mm512_loadu_si512(chunk);
        place<1, 0, to>(quad[0], v);
        place<1, 1, to>(quad[1], v);
        place<1, 2, to>(quad[2], v);
        place<1, 3, to>(quad[3], v);
        place<1, 4, to>(quad[4], v);
        place<1, 5, to>(quad[5], v);
        place<1, 6, to>(quad[6], v);
        place<1, 7, to>(quad[7], v);
    }
}

ZEROPOINT_INLINE __m512 panel_scale(const Weight& w, int panel, int group) {
    const size_t at = (size_t(panel) * w.groups + group) * PANEL;
    if (w.scale32) return _mm512_loadu_ps(w.scale32 + at);
    const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w.scale16 + at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// int32, also where the weight is symmetric.
ZEROPOINT_INLINE __m512i panel_zero(const Weight& w, int panel, int group) {
    if (!w.zero) return _mm512_set1_epi32(1 << (w.bits - 1));
    const uint8_t* zero = w.zero + (size_t(panel) * w.groups + group) * PANEL;
    return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(zero)));
}

// Put the sums of one row of x with one panel where the linear wants them.
ZEROPOINT_INLINE void finish(const Output& y, int row, int panel, __m512 total) {
    float* out = y.y + row * y.stride + panel * PANEL;
    if (y.bias) total = _mm512_add_ps(total, _mm512_loadu_ps(y.bias + panel * PANEL));
    if (y.add) total = _mm512_add_ps(_mm512_loadu_ps(out), total);
    _mm512_storeu_ps(out, total);
}

}  // namespace
}  // namespace zeropoint::ZEROPOINT_WIDE
