// Linears in bfloat16 with AMX. Weights are used where they lie: 2 columns of 16 rows are a row of a tile. The tiles sum
// in float32 over all columns; tdpbf16ps adds the products of even and of odd columns apart and takes denormals for 0.
#include "panel_avx512.h"
#include "tiles.h"

namespace zeropoint::ZEROPOINT_WIDE {
namespace {

constexpr int STEP = 32;           // columns of a product

// x_bytes: from one row of x to the next. sums: (4, 16, 16).
template <int x_tiles, int panels>
void multiply(const uint16_t* x, size_t x_bytes, const uint8_t* w, size_t next_panel, int cols, float* sums) {
    clear_sums<x_tiles, panels>();
    for (int k = 0; k < cols; k += STEP, x += STEP, w += TILE * TILE_BYTES) {
        _tile_loadd(6, w, TILE_BYTES);
        _tile_loadd(4, x, x_bytes);
        if constexpr (panels > 1) _tile_loadd(7, w + next_panel, TILE_BYTES);
        if constexpr (x_tiles > 1) _tile_loadd(5, x + TILE * x_bytes / 2, x_bytes);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (panels > 1) _tile_dpbf16ps(1, 4, 7);
        if constexpr (x_tiles > 1) _tile_dpbf16ps(2, 5, 6);
        if constexpr (x_tiles > 1 && panels > 1) _tile_dpbf16ps(3, 5, 7);
    }
    store_sums<x_tiles, panels>(sums);
}

using Multiply = void (*)(const uint16_t*, size_t, const uint8_t*, size_t, int, float*);
constexpr Multiply MULTIPLY[2][TILE_PANELS] = {{multiply<1, 1>, multiply<1, 2>}, {multiply<2, 1>, multiply<2, 2>}};

}  // namespace

void amx_linear_bf16(const Weight& w, const uint16_t* x, size_t stride, int begin, int end, int first, int last,
                     const Output& y, uint8_t*) {
    alignas(64) float sums[4 * TILE * PANEL];
    int configured = 0;
    happened(x);                   // what wrote x may have been inlined
    for (int panel = first; panel < last; panel += TILE_PANELS) {
        const int panels = last - panel < TILE_PANELS ? last - panel : TILE_PANELS;
        for (int row = begin; row < end; row += TILE_X) {
            const int rows = end - row < TILE_X ? end - row : TILE_X;
            if (rows != configured) configure_tiles(configured = rows, TILE_BYTES);
            MULTIPLY[rows > TILE][panels - 1](x + row * stride, 2 * stride, w.data + panel * w.panel_bytes(),
                                              w.panel_bytes(), w.padded_cols, sums);
            for (int t = 0; t < rows; ++t)
                for (int p = 0; p < panels; ++p) {
                    const int lane = ((t / TILE * 2 + p) * TILE + t % TILE) * PANEL;
                    finish(y, row + t, panel + p, _mm512_loadu_ps(sums + lane));
                }
        }
    }
    _tile_release();
}

}  // namespace zeropoint::ZEROPOINT_WIDE
