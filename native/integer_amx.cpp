// Integer linears with AMX, for many rows of x: a tile product is 16 x 16 sums over 64 columns.
//
// Panels are unpacked two at a time, with the zero point taken off wherever u - zero fits an int8: always, but for 8 bits
// with zero points. What the tiles sum is then dot - zero * sum itself, exactly. The sums of each block leave the tiles as
// int32 and are scaled by AVX-512, one block behind the tiles so that both units have work.
#include "panel_avx512.h"
#include "tiles.h"

namespace zeropoint::ZEROPOINT_WIDE {
namespace {

bool zero_stays(const Weight& w) { return w.zero && w.bits == 8; }

// Columns of one product. Blocks that are no multiple of 64 take half tiles where another block follows.
int step_of(const QInput& x) { return x.blocks > 1 && x.block % 64 ? 32 : 64; }

int unpacked_cols(const Weight& w) { return round_up(w.padded_cols, 64); }

template <int bits>
void unpack_panel(const Weight& w, int panel, uint8_t* quads) {
    const uint8_t* chunk = w.data + panel * w.panel_bytes();
    __m512i zero = _mm512_setzero_si512();
    int group = 0;
    for (int k = 0; k < w.padded_cols; k += CHUNK, chunk += 64 * bits) {
        if (k == group * w.group) {
            if (!zero_stays(w)) zero = _mm512_mullo_epi32(panel_zero(w, panel, group), _mm512_set1_epi32(0x01010101));
            ++group;
        }
        __m512i quad[8];
        unpack<bits>(chunk, quad);
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j, quads += 64) _mm512_storeu_si512(quads, _mm512_sub_epi8(quad[j], zero));
    }
    if (w.padded_cols % 64) std::memset(quads, 0, 8 * 64);
}

struct Columns {
    const int8_t* q;               // the first row of x
    const int8_t* tail;            // its last 32 columns and 32 zeros, 64 bytes a row, where padded_cols % 64 == 32
    const uint8_t* quads;          // two panels, unpacked
    size_t next_panel;
    int cols, step;
};

// The products of columns [k, end), to sums (4, 16, 16).
template <int x_tiles, int panels, bool unsigned_codes>
void multiply(const Columns& c, int k, int end, int32_t* sums) {
    clear_sums<x_tiles, panels>();
    for (; k < end; k += c.step) {
        const bool past = k + c.step > c.cols;
        const int8_t* q = past ? c.tail : c.q + k;
        const size_t stride = past ? TILE_BYTES : c.cols;
        const uint8_t* quads = c.quads + size_t(k) * PANEL;
        _tile_loadd(6, quads, TILE_BYTES);
        _tile_loadd(4, q, stride);
        if constexpr (panels > 1) _tile_loadd(7, quads + c.next_panel, TILE_BYTES);
        if constexpr (x_tiles > 1) _tile_loadd(5, q + TILE * stride, stride);
        if constexpr (unsigned_codes) {
            _tile_dpbsud(0, 4, 6);
            if constexpr (panels > 1) _tile_dpbsud(1, 4, 7);
            if constexpr (x_tiles > 1) _tile_dpbsud(2, 5, 6);
            if constexpr (x_tiles > 1 && panels > 1) _tile_dpbsud(3, 5, 7);
        } else {
            _tile_dpbssd(0, 4, 6);
            if constexpr (panels > 1) _tile_dpbssd(1, 4, 7);
            if constexpr (x_tiles > 1) _tile_dpbssd(2, 5, 6);
            if constexpr (x_tiles > 1 && panels > 1) _tile_dpbssd(3, 5, 7);
        }
    }
    store_sums<x_tiles, panels>(sums);
}

// Scale the sums of a block and add them to totals (4, 16, 16).
template <bool unsigned_codes>
void settle(const Weight& w, const QInput& x, int row, int rows, int panel, int panels, int block, const int32_t* sums,
            float* totals) {
    const int group = static_cast<int>(size_t(block) * x.block / w.group);
    for (int p = 0; p < panels; ++p) {
        const __m512 scale = panel_scale(w, panel + p, group);
        const __m512i zero = panel_zero(w, panel + p, group);
        for (int i = 0; i * TILE < rows; ++i) {
            const int last = rows - i * TILE < TILE ? rows - i * TILE : TILE;
            size_t at = size_t(row + i * TILE) * x.blocks + block;
            int lane = (2 * i + p) * TILE * PANEL;
#pragma GCC unroll 4
            for (int t = 0; t < last; ++t, lane += PANEL, at += x.blocks) {
                __m512i sum = _mm512_loadu_si512(sums + lane);
                if constexpr (unsigned_codes)
                    sum = _mm512_sub_epi32(sum, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x.sum[at])));
                const __m512 step = _mm512_mul_ps(_mm512_set1_ps(x.scale[at]), scale);
                const __m512 total = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), step, _mm512_loadu_ps(totals + lane));
                _mm512_storeu_ps(totals + lane, total);
            }
        }
    }
}

using Multiply = void (*)(const Columns&, int, int, int32_t*);
using Unpack = void (*)(const Weight&, int, uint8_t*);

template <bool unsigned_codes>
constexpr Multiply MULTIPLY[2][TILE_PANELS] = {
    {multiply<1, 1, unsigned_codes>, multiply<1, 2, unsigned_codes>},
    {multiply<2, 1, unsigned_codes>, multiply<2, 2, unsigned_codes>},
};
constexpr Unpack UNPACK[] = {unpack_panel<2>, unpack_panel<3>, unpack_panel<4>, unpack_panel<5>,
                             unpack_panel<6>, unpack_panel<7>, unpack_panel<8>};

template <bool unsigned_codes>
void many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y, uint8_t* scratch) {
    alignas(64) int32_t sums[2][4 * TILE * PANEL];
    alignas(64) float totals[4 * TILE * PANEL];
    alignas(64) int8_t tail[TILE_X * TILE_BYTES] = {};
    const int cols = w.padded_cols, blocks = x.blocks;
    Columns c = {nullptr, tail, scratch, size_t(PANEL) * unpacked_cols(w), cols, step_of(x)};

    int configured = 0;
    for (int panel = first; panel < last; panel += TILE_PANELS) {
        const int panels = last - panel < TILE_PANELS ? last - panel : TILE_PANELS;
        for (int p = 0; p < panels; ++p) UNPACK[w.bits - 2](w, panel + p, scratch + p * c.next_panel);
        for (int row = begin; row < end; row += TILE_X) {
            const int rows = end - row < TILE_X ? end - row : TILE_X;
            if (rows != configured) configure_tiles(configured = rows, c.step);
            c.q = x.q + size_t(row) * cols;
            if (cols % c.step)
                for (int t = 0; t < rows; ++t) std::memcpy(tail + t * TILE_BYTES, c.q + size_t(t + 1) * cols - 32, 32);
            happened(tail);
            std::memset(totals, 0, sizeof totals);
            const Multiply products = MULTIPLY<unsigned_codes>[rows > TILE][panels - 1];
            for (int block = 0; block <= blocks; ++block) {
                const int k = block * x.block;
                if (block < blocks) products(c, k, k + x.block < cols ? k + x.block : cols, sums[block % 2]);
                if (block > 0)
                    settle<unsigned_codes>(w, x, row, rows, panel, panels, block - 1, sums[(block - 1) % 2], totals);
            }
            for (int t = 0; t < rows; ++t)
                for (int p = 0; p < panels; ++p) {
                    const int lane = ((t / TILE * 2 + p) * TILE + t % TILE) * PANEL;
                    finish(y, row + t, panel + p, _mm512_loadu_ps(totals + lane));
                }
        }
    }
    _tile_release();
}

}  // namespace

void amx_linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                     uint8_t* scratch) {
    (zero_stays(w) ? many<true> : many<false>)(w, x, begin, end, first, last, y, scratch);
}

size_t amx_scratch_bytes(const Weight& w) { return size_t(TILE_PANELS) * PANEL * unpacked_cols(w); }

}  // namespace zeropoint::ZEROPOINT_WIDE
