// Integer linears with AVX-512 VNNI: vpdpbusd multiplies 64 unsigned codes with 64 signed activations and adds each four
// products to one of 16 int32 lanes, exactly. Codes come as quads (4 columns of 16 rows); the 4 activations that meet
// them are broadcast from memory by the instruction itself.
#include "panel_avx512.h"

namespace zeropoint::ZEROPOINT_WIDE {
namespace {

constexpr int AHEAD = 2048;         // bytes of weights to prefetch: about the latency of memory at full bandwidth
constexpr int TILE_PANELS = 2;      // many: 2 x 6 sums of a block and 2 x 6 totals fill 24 of 32 registers
constexpr int TILE_ROWS = 6;

ZEROPOINT_INLINE __m512i broadcast4(const int8_t* q) {
    int32_t four;
    std::memcpy(&four, q, 4);
    return _mm512_set1_epi32(four);
}

// sum + the products of a quad with 4 activations. Not the intrinsic: gcc 12 does not keep the sums of a loop in place
// and added two moves to each product, more than the front end of the processor can hide.
ZEROPOINT_INLINE void add_products(__m512i& sum, __m512i quad, __m512i four) {
#ifdef ZEROPOINT_EMULATED
    sum = _mm512_dpbusd_epi32(sum, quad, four);
#else
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(quad), "v"(four));
#endif
}

// What a sum of products starts at, so that it ends at dot - zero * sum.
ZEROPOINT_INLINE __m512i minus_zero_times(const Weight& w, __m512i zero, int32_t sum) {
    if (!w.zero) return _mm512_set1_epi32(-sum * (1 << (w.bits - 1)));
    return _mm512_mullo_epi32(zero, _mm512_set1_epi32(-sum));
}

// vpdpbusd takes 5 cycles and two can start in each: with few rows the quads take turns between several sums.
constexpr int chains(int rows) { return rows <= 2 ? 4 : rows <= 5 ? 2 : 1; }

template <int bits, int rows>
void few(const Weight& w, const QInput& x, int begin, int first, int last, const Output& y) {
    constexpr int CHAINS = chains(rows);
    const int cols = w.padded_cols;
    const int8_t* q = x.q + size_t(begin) * cols;
    const float* x_scale = x.scale + size_t(begin) * x.blocks;
    const int32_t* x_sum = x.sum + size_t(begin) * x.blocks;
    const uint8_t* chunk = w.data + first * w.panel_bytes();

    for (int panel = first; panel < last; ++panel) {
        __m512 total[rows];
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) total[t] = _mm512_setzero_ps();
        int k = 0, block = 0;
        for (int group = 0; group < w.groups; ++group) {
            const int group_end = k + w.group < cols ? k + w.group : cols;
            const __m512 scale = panel_scale(w, panel, group);
            const __m512i zero = panel_zero(w, panel, group);
            for (; k < group_end; ++block) {
                const int block_end = k + x.block < group_end ? k + x.block : group_end;
                __m512i sum[rows][CHAINS];
#pragma GCC unroll 8
                for (int t = 0; t < rows; ++t) {
                    sum[t][0] = minus_zero_times(w, zero, x_sum[t * x.blocks + block]);
#pragma GCC unroll 4
                    for (int c = 1; c < CHAINS; ++c) sum[t][c] = _mm512_setzero_si512();
                }
                for (; k < block_end; k += CHUNK, chunk += 64 * bits) {
#pragma GCC unroll 8
                    for (int i = 0; i < bits; ++i) __builtin_prefetch(chunk + AHEAD + 64 * i);
                    __m512i quad[8];
                    unpack<bits>(chunk, quad);
#pragma GCC unroll 8
                    for (int j = 0; j < 8; ++j) {
#pragma GCC unroll 8
                        for (int t = 0; t < rows; ++t)
                            add_products(sum[t][j % CHAINS], quad[j], broadcast4(q + size_t(t) * cols + k + 4 * j));
                    }
                }
#pragma GCC unroll 8
                for (int t = 0; t < rows; ++t) {
#pragma GCC unroll 4
                    for (int c = 1; c < CHAINS; ++c) sum[t][0] = _mm512_add_epi32(sum[t][0], sum[t][c]);
                    const __m512 step = _mm512_mul_ps(_mm512_set1_ps(x_scale[t * x.blocks + block]), scale);
                    total[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[t][0]), step, total[t]);
                }
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) finish(y, begin + t, panel, total[t]);
    }
}

template <int bits>
void unpack_panel(const Weight& w, int panel, uint8_t* quads) {
    const uint8_t* chunk = w.data + panel * w.panel_bytes();
    for (int k = 0; k < w.padded_cols; k += CHUNK, chunk += 64 * bits) {
        __m512i quad[8];
        unpack<bits>(chunk, quad);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j, quads += 64) _mm512_storeu_si512(quads, quad[j]);
    }
}

// `rows` rows of x with `panels` panels whose quads lie unpacked one after the other.
template <int panels, int rows>
void tile(const Weight& w, const QInput& x, int begin, int panel, const uint8_t* quads, const Output& y) {
    const int cols = w.padded_cols;
    const int8_t* q = x.q + size_t(begin) * cols;
    const float* x_scale = x.scale + size_t(begin) * x.blocks;
    const int32_t* x_sum = x.sum + size_t(begin) * x.blocks;
    const size_t next_panel = size_t(PANEL) * cols;

    __m512 total[panels][rows];
#pragma GCC unroll 2
    for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) total[p][t] = _mm512_setzero_ps();
    }
    int k = 0, block = 0;
    for (int group = 0; group < w.groups; ++group) {
        const int group_end = k + w.group < cols ? k + w.group : cols;
        for (; k < group_end; ++block) {
            const int block_end = k + x.block < group_end ? k + x.block : group_end;
            __m512i sum[panels][rows];
#pragma GCC unroll 2
            for (int p = 0; p < panels; ++p) {
                const __m512i zero = panel_zero(w, panel + p, group);
#pragma GCC unroll 8
                for (int t = 0; t < rows; ++t) sum[p][t] = minus_zero_times(w, zero, x_sum[t * x.blocks + block]);
            }
            for (; k < block_end; k += 4, quads += 64) {
                __m512i quad[panels];
#pragma GCC unroll 2
                for (int p = 0; p < panels; ++p) quad[p] = _mm512_loadu_si512(quads + p * next_panel);
#pragma GCC unroll 8
                for (int t = 0; t < rows; ++t) {
                    const __m512i four = broadcast4(q + size_t(t) * cols + k);
#pragma GCC unroll 2
                    for (int p = 0; p < panels; ++p) add_products(sum[p][t], quad[p], four);
                }
            }
#pragma GCC unroll 2
            for (int p = 0; p < panels; ++p) {
                const __m512 scale = panel_scale(w, panel + p, group);
#pragma GCC unroll 8
                for (int t = 0; t < rows; ++t) {
                    const __m512 step = _mm512_mul_ps(_mm512_set1_ps(x_scale[t * x.blocks + block]), scale);
                    total[p][t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[p][t]), step, total[p][t]);
                }
            }
        }
    }
#pragma GCC unroll 2
    for (int p = 0; p < panels; ++p) {
#pragma GCC unroll 8
        for (int t = 0; t < rows; ++t) finish(y, begin + t, panel + p, total[p][t]);
    }
}

using Few = void (*)(const Weight&, const QInput&, int, int, int, const Output&);
using Unpack = void (*)(const Weight&, int, uint8_t*);
using Tile = void (*)(const Weight&, const QInput&, int, int, const uint8_t*, const Output&);

template <int bits>
constexpr Few FEW_ROWS[MOST_FEW] = {few<bits, 1>, few<bits, 2>, few<bits, 3>, few<bits, 4>,
                                    few<bits, 5>, few<bits, 6>, few<bits, 7>, few<bits, 8>};
constexpr const Few* FEW[] = {FEW_ROWS<2>, FEW_ROWS<3>, FEW_ROWS<4>, FEW_ROWS<5>,
                              FEW_ROWS<6>, FEW_ROWS<7>, FEW_ROWS<8>};
constexpr Unpack UNPACK[] = {unpack_panel<2>, unpack_panel<3>, unpack_panel<4>, unpack_panel<5>,
                             unpack_panel<6>, unpack_panel<7>, unpack_panel<8>};
constexpr Tile TILE[TILE_PANELS][TILE_ROWS] = {
    {tile<1, 1>, tile<1, 2>, tile<1, 3>, tile<1, 4>, tile<1, 5>, tile<1, 6>},
    {tile<2, 1>, tile<2, 2>, tile<2, 3>, tile<2, 4>, tile<2, 5>, tile<2, 6>},
};

}  // namespace

void vnni_linear_few(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y) {
    if (end > begin) FEW[w.bits - 2][end - begin - 1](w, x, begin, first, last, y);
}

void vnni_linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                      uint8_t* scratch) {
    for (int panel = first; panel < last; panel += TILE_PANELS) {
        const int panels = last - panel < TILE_PANELS ? last - panel : TILE_PANELS;
        for (int p = 0; p < panels; ++p)
            UNPACK[w.bits - 2](w, panel + p, scratch + size_t(p) * PANEL * w.padded_cols);
        for (int row = begin; row < end; row += TILE_ROWS) {
            const int rows = end - row < TILE_ROWS ? end - row : TILE_ROWS;
            TILE[panels - 1][rows - 1](w, x, row, panel, scratch, y);
        }
    }
}

size_t vnni_scratch_bytes(const Weight& w) { return size_t(TILE_PANELS) * PANEL * w.padded_cols; }

}  // namespace zeropoint::ZEROPOINT_WIDE
