// Codes between bytes and bit planes (weight.h), one chunk at a time, in plain C++: for packing, and where unpacking is
// not the hot part. The kernels unpack in registers, each in its own way.
#pragma once

#include <cstdint>
#include <cstring>

namespace zeropoint {
namespace {

// quads: 8 x 64 bytes, byte 4r + c of quad i is the code of row r and column 4i + c.
inline void unpack_chunk(int bits, const uint8_t* planes, uint8_t* quads) {
    if (bits == 8) {
        std::memcpy(quads, planes, 8 * 64);
        return;
    }
    std::memset(quads, 0, 8 * 64);
    int done = 0;
    for (int width : {4, 2, 1}) {
        if (!(bits & width)) continue;
        const int vectors = width, parts = 8 / width;   // width vectors of 64 bytes, each holding 8 / width quads
        for (int j = 0; j < vectors; j++)
            for (int i = 0; i < parts; i++) {
                uint8_t* quad = quads + (j + i * vectors) * 64;
                for (int n = 0; n < 64; n++)
                    quad[n] |= uint8_t((planes[j * 64 + n] >> (i * width) & ((1 << width) - 1)) << done);
            }
        planes += width * 64;
        done += width;
    }
}

inline void pack_chunk(int bits, const uint8_t* quads, uint8_t* planes) {
    if (bits == 8) {
        std::memcpy(planes, quads, 8 * 64);
        return;
    }
    int done = 0;
    for (int width : {4, 2, 1}) {
        if (!(bits & width)) continue;
        const int vectors = width, parts = 8 / width;
        for (int j = 0; j < vectors; j++)
            for (int n = 0; n < 64; n++) {
                unsigned byte = 0;
                for (int i = 0; i < parts; i++)
                    byte |= (quads[(j + i * vectors) * 64 + n] >> done & ((1u << width) - 1)) << (i * width);
                planes[j * 64 + n] = uint8_t(byte);
            }
        planes += width * 64;
        done += width;
    }
}

}  // namespace
}  // namespace zeropoint
