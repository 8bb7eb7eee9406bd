// The integer linear on AVX2, which has no product of bytes that sums in 32 bits.
//
//   up to 7 bits   vpmaddubsw sums two products u * q in 16 bits: at most 2 * 127 * 128. As many quads are added in 16
//                  bits as surely fit (4 bits: 8), then vpmaddwd by ones adds pairs into 32 bits.
//   8 bits         2 * 255 * 128 would saturate. For few rows of x, u = 2 * (u >> 1) + (u & 1), each of which fits; for
//                  many rows both are widened to 16 bits and multiplied by vpmaddwd, which is exact and as fast.
//
// A dot product starts with -zero * sum(q), so that nothing is left to subtract at its end.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "kernels.h"

namespace zeropoint {
namespace {

// Quads that fit into 16 bits: 2 * (2^bits - 1) * 128 each; a power of two.
constexpr int quads_in_16_bits(int bits) {
    const int fit = 32767 / (2 * ((1 << bits) - 1) * 128);
    return fit >= 8 ? 8 : fit >= 4 ? 4 : fit >= 2 ? 2 : 1;
}

// GCC 12 first multiplies all and then adds, which needs the stack; this keeps a sum where it stands: 1.4 to 2.5 times
// as fast.
inline void add_now(__m256i& sum) { asm("" : "+x"(sum)); }

// Half a panel, 8 rows: 32 of the 64 bytes of each quad.
template <int BITS>
inline void unpack_half(const uint8_t* planes, int half, __m256i* quads) {
    const uint8_t* p = planes + 32 * half;
    int done = 0;
    if constexpr (BITS == 8) {
        for (int i = 0; i < 8; i++) quads[i] = bytes(p + 64 * i);
        return;
    }
    if constexpr (BITS & 4) {
        const __m256i low = _mm256_set1_epi8(15);
        for (int j = 0; j < 4; j++) {
            const __m256i v = bytes(p + 64 * j);
            quads[j] = _mm256_and_si256(v, low);
            quads[j + 4] = _mm256_and_si256(_mm256_srli_epi16(v, 4), low);
        }
        p += 4 * 64;
        done = 4;
    }
    if constexpr (BITS & 2) {
        const __m256i low = _mm256_set1_epi8(3);
        for (int j = 0; j < 2; j++) {
            const __m256i v = bytes(p + 64 * j);
            for (int i = 0; i < 4; i++) {
                const __m256i part = _mm256_and_si256(_mm256_srli_epi16(v, 2 * i), low);
                __m256i& quad = quads[j + 2 * i];
                quad = done ? _mm256_or_si256(quad, _mm256_slli_epi16(part, 4)) : part;
            }
        }
        p += 2 * 64;
        done += 2;
    }
    if constexpr (BITS & 1) {
        const __m256i low = _mm256_set1_epi8(1);
        const __m256i v = bytes(p);
        for (int i = 0; i < 8; i++) {
            const __m256i part = _mm256_and_si256(_mm256_srli_epi16(v, i), low);
            quads[i] = _mm256_or_si256(quads[i], _mm256_slli_epi16(part, done));
        }
    }
}

inline __m256i four_bytes(const int8_t* q) {
    int32_t v;
    std::memcpy(&v, q, 4);
    return _mm256_set1_epi32(v);
}

// sum += 8 quads of weights times the 32 activations at q
template <int BITS>
inline __m256i add_products(const __m256i* quads, const int8_t* q, __m256i sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    if constexpr (BITS == 8) {
        const __m256i lowest = _mm256_set1_epi8(1), twos = _mm256_set1_epi16(2);
        __m256i odd = _mm256_setzero_si256();
        for (int i = 0; i < 8; i++) {
            const __m256i a = four_bytes(q + 4 * i);
            const __m256i half = _mm256_and_si256(_mm256_srli_epi16(quads[i], 1), _mm256_set1_epi8(127));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(half, a), twos));
            odd = _mm256_add_epi16(odd, _mm256_maddubs_epi16(_mm256_and_si256(quads[i], lowest), a));
        }
        return _mm256_add_epi32(sum, _mm256_madd_epi16(odd, ones));
    }
    constexpr int step = quads_in_16_bits(BITS);
    for (int i = 0; i < 8; i += step) {
        __m256i products = _mm256_maddubs_epi16(quads[i], four_bytes(q + 4 * i));
        for (int j = i + 1; j < i + step; j++)
            products = _mm256_add_epi16(products, _mm256_maddubs_epi16(quads[j], four_bytes(q + 4 * j)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(products, ones));
    }
    return sum;
}

inline __m256 scales_of_half(const Weight& w, size_t index) {
    if (w.scale32) return _mm256_loadu_ps(w.scale32 + index);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half_bytes(w.scale16 + index)), 16));
}

// Block b of rows [t, t + R) of x and the 16 rows of a panel. index: of its scales and zero points.
template <int BITS, bool ZEROS, int R>
inline void begin_block(const Weight& w, size_t index, const QInput& x, int t, int b, __m256i (*dots)[2]) {
    for (int r = 0; r < R; r++) {
        const int32_t sum = x.sum[size_t(t + r) * x.blocks + b];
        for (int half = 0; half < 2; half++)
            if constexpr (!ZEROS) {   // all are 2^(bits-1)
                dots[r][half] = _mm256_set1_epi32(-(1 << (BITS - 1)) * sum);
            } else {
                const __m128i zeros = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(w.zero + index + 8 * half));
                dots[r][half] = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(zeros), _mm256_set1_epi32(-sum));
            }
    }
}

template <int R>
inline void finish_block(const Weight& w, size_t index, const QInput& x, int t, int b, const __m256i (*dots)[2],
                         __m256 (*sums)[2]) {
    for (int half = 0; half < 2; half++) {
        const __m256 scale = scales_of_half(w, index + 8 * half);
        for (int r = 0; r < R; r++) {
            const __m256 of_x = _mm256_set1_ps(x.scale[size_t(t + r) * x.blocks + b]);
            sums[r][half] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[r][half]), _mm256_mul_ps(of_x, scale), sums[r][half]);
        }
    }
}

inline size_t scale_index(const Weight& w, int panel, int column) {
    return (size_t(panel) * w.groups + column / w.group) * PANEL;
}

inline void put_half(const Output& y, int t, int row, __m256 v) {
    float* to = y.y + size_t(t) * y.stride + row;
    if (y.bias) v = _mm256_add_ps(v, _mm256_loadu_ps(y.bias + row));
    _mm256_storeu_ps(to, y.add ? _mm256_add_ps(_mm256_loadu_ps(to), v) : v);
}

constexpr int AHEAD = 2048;   // bytes that are asked for before they are needed

template <int BITS, bool ZEROS, int T>
inline void few_rows(const Weight& w, const QInput& x, int begin, int first, int last, const Output& y) {
    const uint8_t* from = w.data + first * w.panel_bytes();
    const int8_t* q = x.q + size_t(begin) * x.padded_cols;
    for (int panel = first; panel < last; panel++) {
        __m256 sums[T][2];
        for (auto& s : sums) s[0] = s[1] = _mm256_setzero_ps();
        for (int b = 0; b < x.blocks; b++) {
            const int k0 = b * x.block, k1 = std::min(k0 + x.block, w.padded_cols);
            const size_t index = scale_index(w, panel, k0);
            __m256i dots[T][2];
            begin_block<BITS, ZEROS, T>(w, index, x, begin, b, dots);
            for (int k = k0; k < k1; k += CHUNK, from += 64 * BITS) {
                for (int line = 0; line < BITS; line++)
                    _mm_prefetch(reinterpret_cast<const char*>(from + AHEAD + 64 * line), _MM_HINT_T0);
                for (int half = 0; half < 2; half++) {
                    __m256i quads[8];
                    unpack_half<BITS>(from, half, quads);
                    for (int t = 0; t < T; t++)
                        dots[t][half] = add_products<BITS>(quads, q + size_t(t) * x.padded_cols + k, dots[t][half]);
                }
            }
            finish_block<T>(w, index, x, begin, b, dots, sums);
        }
        for (int t = 0; t < T; t++)
            for (int half = 0; half < 2; half++) put_half(y, begin + t, panel * PANEL + 8 * half, sums[t][half]);
    }
}

template <class F>
inline void with_bits(int bits, F f) {
    switch (bits) {
        case 2: return f(std::integral_constant<int, 2>{});
        case 3: return f(std::integral_constant<int, 3>{});
        case 4: return f(std::integral_constant<int, 4>{});
        case 5: return f(std::integral_constant<int, 5>{});
        case 6: return f(std::integral_constant<int, 6>{});
        case 7: return f(std::integral_constant<int, 7>{});
        default: return f(std::integral_constant<int, 8>{});
    }
}

template <int BITS, bool ZEROS, int T = MOST_FEW>
inline void few_with_rows(int rows, const Weight& w, const QInput& x, int begin, int first, int last, const Output& y) {
    if constexpr (T > 1)
        if (rows < T) return few_with_rows<BITS, ZEROS, T - 1>(rows, w, x, begin, first, last, y);
    few_rows<BITS, ZEROS, T>(w, x, begin, first, last, y);
}

inline void linear_few(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y) {
    with_bits(w.bits, [&](auto bits) {
        if (w.zero) few_with_rows<bits, true>(end - begin, w, x, begin, first, last, y);
        else few_with_rows<bits, false>(end - begin, w, x, begin, first, last, y);
    });
}

// ---- many rows ---------------------------------------------------------------------------------------------------

constexpr int MANY_ROWS = 4;

// Blocks [first, last) of the columns, whose weights stay in the first cache while all rows pass; kept: the sums of 4 rows
// between two of them, (R, 16).
struct Span {
    int first, last;
    float* kept;
};

template <int R>
inline void take_up(const Span& span, __m256 (*sums)[2]) {
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = span.first ? _mm256_loadu_ps(span.kept + 16 * r + 8 * half) : _mm256_setzero_ps();
}

template <int R>
inline void put_down(const Span& span, const QInput& x, const Output& y, int t, int panel, const __m256 (*sums)[2]) {
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            if (span.last == x.blocks) put_half(y, t + r, panel * PANEL + 8 * half, sums[r][half]);
            else _mm256_storeu_ps(span.kept + 16 * r + 8 * half, sums[r][half]);
}

// Up to 7 bits. quads: a panel unpacked, (padded_cols / 4, 64).
template <int BITS, bool ZEROS, int R>
inline void many_rows_bytes(const Weight& w, const QInput& x, int t, int panel, const uint8_t* quads, const Span& span,
                            const Output& y) {
    constexpr int step = quads_in_16_bits(BITS);
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t* q = x.q + size_t(t) * x.padded_cols;
    __m256 sums[R][2];
    take_up<R>(span, sums);
    for (int b = span.first; b < span.last; b++) {
        const int k0 = b * x.block, k1 = std::min(k0 + x.block, w.padded_cols);
        const size_t index = scale_index(w, panel, k0);
        __m256i dots[R][2];
        begin_block<BITS, ZEROS, R>(w, index, x, t, b, dots);
        for (int k = k0; k < k1; k += 4 * step) {
            __m256i products[R][2];
#pragma GCC unroll 8
            for (int i = 0; i < step; i++) {
                const __m256i low = bytes(quads + 16 * k + 64 * i), high = bytes(quads + 16 * k + 64 * i + 32);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    const __m256i a = four_bytes(q + size_t(r) * x.padded_cols + k + 4 * i);
                    const __m256i p[2] = {_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, a)};
                    for (int half = 0; half < 2; half++) {
                        products[r][half] = i ? _mm256_add_epi16(products[r][half], p[half]) : p[half];
                        add_now(products[r][half]);
                    }
                }
            }
            for (int r = 0; r < R; r++)
                for (int half = 0; half < 2; half++)
                    dots[r][half] = _mm256_add_epi32(dots[r][half], _mm256_madd_epi16(products[r][half], ones));
        }
        finish_block<R>(w, index, x, t, b, dots, sums);
    }
    put_down<R>(span, x, y, t, panel, sums);
}

// 8 bits. words: a panel widened to 16 bits, (padded_cols / 2, 16 rows, 2 columns).
// q16: R rows of x widened, (R, padded_cols).
template <bool ZEROS, int R>
inline void many_rows_words(const Weight& w, const QInput& x, int t, int panel, const int16_t* words, const int16_t* q16,
                            const Span& span, const Output& y) {
    __m256 sums[R][2];
    take_up<R>(span, sums);
    for (int b = span.first; b < span.last; b++) {
        const int k0 = b * x.block, k1 = std::min(k0 + x.block, w.padded_cols);
        const size_t index = scale_index(w, panel, k0);
        __m256i dots[R][2];
        begin_block<8, ZEROS, R>(w, index, x, t, b, dots);
        for (int k = k0; k < k1; k += 8)
#pragma GCC unroll 4
            for (int i = 0; i < 8; i += 2) {
                const __m256i low = bytes(words + 16 * (k + i)), high = bytes(words + 16 * (k + i) + 16);
#pragma GCC unroll 4
                for (int r = 0; r < R; r++) {
                    const __m256i a = four_bytes(reinterpret_cast<const int8_t*>(q16 + size_t(r) * x.padded_cols + k + i));
                    dots[r][0] = _mm256_add_epi32(dots[r][0], _mm256_madd_epi16(low, a));
                    dots[r][1] = _mm256_add_epi32(dots[r][1], _mm256_madd_epi16(high, a));
                    add_now(dots[r][0]), add_now(dots[r][1]);
                }
            }
        finish_block<R>(w, index, x, t, b, dots, sums);
    }
    put_down<R>(span, x, y, t, panel, sums);
}

template <int BITS>
inline void unpack_panel(const Weight& w, int panel, uint8_t* quads) {
    const uint8_t* from = w.data + panel * w.panel_bytes();
    for (int k = 0; k < w.padded_cols; k += CHUNK, from += 64 * BITS, quads += 8 * 64)
        for (int half = 0; half < 2; half++) {
            __m256i parts[8];
            unpack_half<BITS>(from, half, parts);
            for (int i = 0; i < 8; i++) _mm256_store_si256(reinterpret_cast<__m256i*>(quads + 64 * i + 32 * half), parts[i]);
        }
}

// Widen a panel of 8 bits to 16: pairs of columns for 16 rows.
inline void widen_panel(const Weight& w, int panel, int16_t* words) {
    const uint8_t* from = w.data + panel * w.panel_bytes();
    const __m256i low_pair = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,
                                              0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i high_pair = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,
                                               2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
    for (int k = 0; k < w.padded_cols; k += 4, from += 64)
        for (int half = 0; half < 2; half++) {
            const __m256i quad = bytes(from + 32 * half);
            int16_t* to = words + 16 * k + 16 * half;
            _mm256_store_si256(reinterpret_cast<__m256i*>(to), _mm256_shuffle_epi8(quad, low_pair));
            _mm256_store_si256(reinterpret_cast<__m256i*>(to + 32), _mm256_shuffle_epi8(quad, high_pair));
        }
}

inline void widen_rows(const QInput& x, int begin, int end, int16_t* q16) {
    const int8_t* q = x.q + size_t(begin) * x.padded_cols;
    for (size_t i = 0; i < size_t(end - begin) * x.padded_cols; i += 16)
        _mm256_store_si256(reinterpret_cast<__m256i*>(q16 + i), _mm256_cvtepi8_epi16(half_bytes(q + i)));
}

constexpr int SPAN_BYTES = 16 << 10;   // of unpacked weights
constexpr int SPAN_ROWS = 64;          // whose sums are kept

// Sums, a panel in bytes or words and, where it is words, the rows of x widened.
inline size_t scratch_bytes(const Weight& w) {
    const size_t cols = w.padded_cols, panel = w.bits < 8 ? 16 * cols : (32 + 2 * SPAN_ROWS) * cols;
    return SPAN_ROWS * PANEL * sizeof(float) + panel;
}

template <int R = MANY_ROWS, class F>
inline void in_steps(int begin, int end, F f) {
    int t = begin;
    for (; t + R <= end; t += R) f(t, std::integral_constant<int, R>{});
    if constexpr (R > 1) in_steps<R - 1>(t, end, f);
}

template <int BITS, bool ZEROS>
inline void many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y, uint8_t* scratch) {
    float* kept = reinterpret_cast<float*>(scratch);
    uint8_t* quads = scratch + SPAN_ROWS * PANEL * sizeof(float);
    int16_t* words = reinterpret_cast<int16_t*>(quads);
    int16_t* q16 = words + size_t(16) * w.padded_cols;
    const int step = std::max(1, SPAN_BYTES / ((BITS < 8 ? 16 : 32) * x.block));
    for (int t0 = begin; t0 < end; t0 += SPAN_ROWS) {
        const int t1 = std::min(t0 + SPAN_ROWS, end);
        if constexpr (BITS == 8) widen_rows(x, t0, t1, q16);
        for (int panel = first; panel < last; panel++) {
            if constexpr (BITS < 8) unpack_panel<BITS>(w, panel, quads);
            else widen_panel(w, panel, words);
            for (int b = 0; b < x.blocks; b += step)
                in_steps(t0, t1, [&](int t, auto rows) {
                    constexpr int R = decltype(rows)::value;
                    const Span span{b, std::min(b + step, x.blocks), kept + (t - t0) * PANEL};
                    if constexpr (BITS < 8) many_rows_bytes<BITS, ZEROS, R>(w, x, t, panel, quads, span, y);
                    else many_rows_words<ZEROS, R>(w, x, t, panel, words, q16 + size_t(t - t0) * x.padded_cols, span, y);
                });
        }
    }
}

inline void linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                        uint8_t* scratch) {
    with_bits(w.bits, [&](auto bits) {
        if (w.zero) many<bits, true>(w, x, begin, end, first, last, y, scratch);
        else many<bits, false>(w, x, begin, end, first, last, y, scratch);
    });
}

}  // namespace
}  // namespace zeropoint
