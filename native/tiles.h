// The eight AMX tiles as the linears use them: up to 32 rows of x by 2 panels of 16 rows of the weight.
//
//   sums 0 1 2 3     tile 2i + p: x rows [16i, 16i + 16) with panel p, 16 columns of 4 bytes
//   x    4 5         tile 4 + i: the rows of x, one step of columns
//   w    6 7         tile 6 + p: the same step of panel p; a row of the tile is what meets 4 bytes of x, for 16 rows of w
#pragma once

#include "wide.h"

namespace zeropoint::ZEROPOINT_WIDE {
namespace {

constexpr int TILE = 16;           // rows of a tile
constexpr int TILE_BYTES = 64;     // of a row of a tile
constexpr int TILE_X = 2 * TILE;   // rows of x at once
constexpr int TILE_PANELS = 2;

// gcc 12 does not know that ldtilecfg reads more than 8 bytes of its operand, nor that tileloadd reads memory at all: it
// removes or delays the stores that they depend on. This makes all stores happen, those to *seen as well.
ZEROPOINT_INLINE void happened(const void* seen) { asm volatile("" : : "r"(seen) : "memory"); }

struct alignas(64) TileShapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

// rows: of x, 1..32; step: bytes of each row of x in one product, 32 or 64. Tiles of this thread are empty afterwards.
inline void configure_tiles(int rows, int step) {
    TileShapes shapes = {};
    shapes.palette = 1;
    for (int i = 0; i < 2; ++i) {
        const int x_rows = rows < TILE * i ? 0 : rows - TILE * i > TILE ? TILE : rows - TILE * i;
        if (!x_rows) continue;
        for (int p = 0; p < TILE_PANELS; ++p) {
            shapes.rows[2 * i + p] = static_cast<uint8_t>(x_rows);
            shapes.row_bytes[2 * i + p] = TILE_BYTES;
        }
        shapes.rows[4 + i] = static_cast<uint8_t>(x_rows);
        shapes.row_bytes[4 + i] = static_cast<uint16_t>(step);
    }
    for (int p = 0; p < TILE_PANELS; ++p) {
        shapes.rows[6 + p] = static_cast<uint8_t>(step / 4);
        shapes.row_bytes[6 + p] = TILE_BYTES;
    }
    happened(&shapes);
    _tile_loadconfig(&shapes);
}

template <int x_tiles, int panels>
ZEROPOINT_INLINE void clear_sums() {
    _tile_zero(0);
    if constexpr (panels > 1) _tile_zero(1);
    if constexpr (x_tiles > 1) _tile_zero(2);
    if constexpr (x_tiles > 1 && panels > 1) _tile_zero(3);
}

// sums: 4 x 16 x 16 values of 4 bytes.
template <int x_tiles, int panels>
ZEROPOINT_INLINE void store_sums(void* sums) {
    uint8_t* to = static_cast<uint8_t*>(sums);
    _tile_stored(0, to, TILE_BYTES);
    if constexpr (panels > 1) _tile_stored(1, to + TILE * TILE_BYTES, TILE_BYTES);
    if constexpr (x_tiles > 1) _tile_stored(2, to + 2 * TILE * TILE_BYTES, TILE_BYTES);
    if constexpr (x_tiles > 1 && panels > 1) _tile_stored(3, to + 3 * TILE * TILE_BYTES, TILE_BYTES);
}

}  // namespace
}  // namespace zeropoint::ZEROPOINT_WIDE
