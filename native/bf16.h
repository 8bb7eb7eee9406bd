// bfloat16: the upper half of a float32, 8 significant bits.
#pragma once

#include <cstdint>
#include <cstring>

namespace zeropoint {

inline float from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

// To nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return uint16_t(x != x ? 0x7fc0 : rounded);
}

}  // namespace zeropoint
