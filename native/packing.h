// Codes as a dense stream of bits: the layout of zeropoint/formats/bits.py, which repack.cpp reads.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropoint {

// codes: (rows, cols) of [-2^(bits-1), 2^(bits-1)), which is not checked. words: (rows, cols * bits / 32 rounded up).
inline void pack_codes(const int8_t* codes, size_t rows, size_t cols, int bits, uint32_t* words) {
    const int offset = 1 << (bits - 1);
    for (size_t r = 0; r < rows; r++) {
        uint64_t waiting = 0;
        int filled = 0;
        for (size_t k = 0; k < cols; k++) {
            waiting |= uint64_t(codes[r * cols + k] + offset) << filled;
            filled += bits;
            if (filled < 32) continue;
            *words++ = uint32_t(waiting);
            waiting >>= 32;
            filled -= 32;
        }
        if (filled) *words++ = uint32_t(waiting);
    }
}

}  // namespace zeropoint
