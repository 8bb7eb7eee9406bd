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

// GCC 12 first multiplies all and then adds, which needs the stack; this makes it add where the addition stands: 1.4 to
// 2.5 times as fast. Returned, not changed in place: an element of an array that the asm refers to stays in memory.
inline __m256i add_now(__m256i sum) {
    asm("" : "+x"(sum));
    return sum;
}

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

// What weights and rows of x are multiplied as: bytes, or words where products of bytes do not fit into 16 bits.
template <int BITS>
struct Operand {
    using Code = std::conditional_t<BITS < 8, uint8_t, int16_t>;
    using Input = std::conditional_t<BITS < 8, int8_t, int16_t>;
};

// Columns [begin, end) of a panel, whose weights stay in the first cache while all rows pass. Between two spans the sums of
// R rows are kept, (R, 16), and the dot products of a block that goes on.
struct Span {
    int begin, end;
    float* sums;
    int32_t* dots;
};

inline __m256i* half_of(int32_t* kept, int r, int half) { return reinterpret_cast<__m256i*>(kept + 16 * r + 8 * half); }

// Rows [t, t + R) of x with a span of a panel; add(k, end, dots) adds the products of those columns.
template <int BITS, bool ZEROS, int R, class Add>
inline void over_blocks(const Weight& w, const QInput& x, int t, int panel, const Span& span, const Output& y, Add add) {
    __m256 sums[R][2];
    __m256i dots[R][2];
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            sums[r][half] = span.begin ? _mm256_loadu_ps(span.sums + 16 * r + 8 * half) : _mm256_setzero_ps();
    int k = span.begin;
    for (int b = k / x.block; k < span.end; b++) {
        const int start = b * x.block, stop = std::min(start + x.block, w.padded_cols), end = std::min(stop, span.end);
        const size_t index = scale_index(w, panel, start);
        if (k == start) {
            begin_block<BITS, ZEROS, R>(w, index, x, t, b, dots);
        } else {
            for (int r = 0; r < R; r++)
                for (int half = 0; half < 2; half++) dots[r][half] = _mm256_load_si256(half_of(span.dots, r, half));
        }
        add(k, end, dots);
        if (end == stop) {
            finish_block<R>(w, index, x, t, b, dots, sums);
        } else {
            for (int r = 0; r < R; r++)
                for (int half = 0; half < 2; half++) _mm256_store_si256(half_of(span.dots, r, half), dots[r][half]);
        }
        k = end;
    }
    for (int r = 0; r < R; r++)
        for (int half = 0; half < 2; half++)
            if (span.end == w.padded_cols) put_half(y, t + r, panel * PANEL + 8 * half, sums[r][half]);
            else _mm256_storeu_ps(span.sums + 16 * r + 8 * half, sums[r][half]);
}

// Up to 7 bits. quads: (columns / 4, 16 rows, 4 columns); q: (columns / 4, R rows, 4 columns).
template <int BITS, int R>
inline void add_products(const uint8_t* quads, const int8_t* q, int columns, __m256i (*dots)[2]) {
    constexpr int step = quads_in_16_bits(BITS);
    const __m256i ones = _mm256_set1_epi16(1);
    for (int k = 0; k < columns; k += 4 * step, quads += 64 * step, q += 4 * R * step) {
        __m256i products[R][2];
#pragma GCC unroll 8
        for (int i = 0; i < step; i++) {
            const __m256i low = bytes(quads + 64 * i), high = bytes(quads + 64 * i + 32);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m256i a = four_bytes(q + 4 * (R * i + r));
                const __m256i p[2] = {_mm256_maddubs_epi16(low, a), _mm256_maddubs_epi16(high, a)};
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++)
                    products[r][half] = add_now(i ? _mm256_add_epi16(products[r][half], p[half]) : p[half]);
            }
        }
#pragma GCC unroll 4
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int half = 0; half < 2; half++)
                dots[r][half] = _mm256_add_epi32(dots[r][half], _mm256_madd_epi16(products[r][half], ones));
    }
}

// 8 bits, widened to 16. words: (columns / 2, 16 rows, 2 columns); q: (columns / 2, R rows, 2 columns).
template <int BITS, int R>
inline void add_products(const int16_t* words, const int16_t* q, int columns, __m256i (*dots)[2]) {
    for (int k = 0; k < columns; k += 8, words += 16 * 8, q += R * 8)
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            const __m256i low = bytes(words + 32 * i), high = bytes(words + 32 * i + 16);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const __m256i a = four_bytes(reinterpret_cast<const int8_t*>(q + 2 * (R * i + r)));
                dots[r][0] = add_now(_mm256_add_epi32(dots[r][0], _mm256_madd_epi16(low, a)));
                dots[r][1] = add_now(_mm256_add_epi32(dots[r][1], _mm256_madd_epi16(high, a)));
            }
        }
}

// Columns [begin, end) of a panel, (columns / 4, 16 rows, 4 columns).
template <int BITS>
inline void unpack_columns(const Weight& w, int panel, int begin, int end, uint8_t* quads) {
    const uint8_t* from = w.data + panel * w.panel_bytes() + size_t(begin) * 2 * BITS;
    for (int k = begin; k < end; k += CHUNK, from += 64 * BITS, quads += 8 * 64)
        for (int half = 0; half < 2; half++) {
            __m256i parts[8];
            unpack_half<BITS>(from, half, parts);
            for (int i = 0; i < 8; i++) _mm256_store_si256(reinterpret_cast<__m256i*>(quads + 64 * i + 32 * half), parts[i]);
        }
}

// The same of 8 bits, widened: (columns / 2, 16 rows, 2 columns).
template <int BITS>
inline void unpack_columns(const Weight& w, int panel, int begin, int end, int16_t* words) {
    const uint8_t* from = w.data + panel * w.panel_bytes() + size_t(begin) * PANEL;
    const __m256i low_pair = _mm256_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1,
                                              0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
    const __m256i high_pair = _mm256_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1,
                                               2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1);
    for (int k = begin; k < end; k += 4, from += 64, words += 64)
        for (int half = 0; half < 2; half++) {
            const __m256i quad = bytes(from + 32 * half);
            __m256i* to = reinterpret_cast<__m256i*>(words + 16 * half);
            _mm256_store_si256(to, _mm256_shuffle_epi8(quad, low_pair));
            _mm256_store_si256(to + 2, _mm256_shuffle_epi8(quad, high_pair));
        }
}

// Rows [t, t + R) of x as add_products reads them, in one stream: rows that are powers of two apart would meet in
// the same few lines of the first cache.
template <int BITS, int R>
inline void pack_rows(const QInput& x, int t, typename Operand<BITS>::Input* to) {
    constexpr int COLUMNS = 4 / sizeof(*to);
    const int8_t* q = x.q + size_t(t) * x.padded_cols;
    for (int k = 0; k < x.padded_cols; k += COLUMNS)
        for (int r = 0; r < R; r++)
            for (int c = 0; c < COLUMNS; c++) *to++ = q[size_t(r) * x.padded_cols + k + c];
}

constexpr int SPAN_BYTES = 16 << 10;   // of unpacked weights
constexpr int SPAN_ROWS = 64;          // whose sums are kept
constexpr int KEPT = SPAN_ROWS * PANEL;

// Sums, a span of weights, and the rows of x packed.
inline size_t scratch_bytes(const Weight& w) {
    return KEPT * (sizeof(float) + sizeof(int32_t)) + SPAN_BYTES + size_t(w.bits < 8 ? 1 : 2) * SPAN_ROWS * w.padded_cols;
}

template <int R = MANY_ROWS, class F>
inline void in_steps(int begin, int end, F f) {
    int t = begin;
    for (; t + R <= end; t += R) f(t, std::integral_constant<int, R>{});
    if constexpr (R > 1) in_steps<R - 1>(t, end, f);
}

template <int BITS, bool ZEROS>
inline void many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y, uint8_t* scratch) {
    using Code = typename Operand<BITS>::Code;
    using Input = typename Operand<BITS>::Input;
    constexpr int COLUMNS = SPAN_BYTES / (PANEL * sizeof(Code));
    float* sums = reinterpret_cast<float*>(scratch);
    int32_t* dots = reinterpret_cast<int32_t*>(sums + KEPT);
    Code* codes = reinterpret_cast<Code*>(dots + KEPT);
    Input* packed = reinterpret_cast<Input*>(codes + COLUMNS * PANEL);
    const size_t cols = w.padded_cols;
    for (int t0 = begin; t0 < end; t0 += SPAN_ROWS) {
        const int t1 = std::min(t0 + SPAN_ROWS, end);
        in_steps(t0, t1, [&](int t, auto rows) { pack_rows<BITS, rows>(x, t, packed + (t - t0) * cols); });
        for (int panel = first; panel < last; panel++)
            for (int k0 = 0; k0 < w.padded_cols; k0 += COLUMNS) {
                const int k1 = std::min(k0 + COLUMNS, w.padded_cols);
                unpack_columns<BITS>(w, panel, k0, k1, codes);
                in_steps(t0, t1, [&](int t, auto rows) {
                    constexpr int R = decltype(rows)::value;
                    const Span span{k0, k1, sums + (t - t0) * PANEL, dots + (t - t0) * PANEL};
                    const Input* q = packed + (t - t0) * cols;
                    over_blocks<BITS, ZEROS, R>(w, x, t, panel, span, y, [&](int k, int stop, __m256i (*to)[2]) {
                        add_products<BITS, R>(codes + PANEL * (k - k0), q + R * k, stop - k, to);
                    });
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
