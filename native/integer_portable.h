// The integer linear in plain C++, panel by panel as kernels.h defines it: what every other version must equal bit for bit.
#pragma once

#include <cmath>

#include "bf16.h"
#include "kernels.h"
#include "planes.h"

namespace zeropoint {
namespace {

inline float scale_at(const Weight& w, size_t index) {
    return w.scale32 ? w.scale32[index] : from_bf16(w.scale16[index]);
}

inline void linear_few(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y) {
    alignas(64) uint8_t quads[8 * 64];
    for (int panel = first; panel < last; panel++) {
        float sums[MOST_FEW][PANEL] = {};
        const uint8_t* from = w.data + panel * w.panel_bytes();
        for (int b = 0; b < x.blocks; b++) {
            int32_t dots[MOST_FEW][PANEL] = {};
            const int k0 = b * x.block, k1 = std::min(k0 + x.block, w.padded_cols);
            for (int k = k0; k < k1; k += CHUNK, from += 64 * w.bits) {
                unpack_chunk(w.bits, from, quads);
                for (int t = begin; t < end; t++) {
                    const int8_t* q = x.q + size_t(t) * x.padded_cols + k;
                    for (int i = 0; i < 8; i++)
                        for (int r = 0; r < PANEL; r++)
                            for (int c = 0; c < 4; c++)
                                dots[t - begin][r] += int32_t(quads[i * 64 + 4 * r + c]) * q[4 * i + c];
                }
            }
            for (int t = begin; t < end; t++) {
                const size_t at = size_t(t) * x.blocks + b;
                for (int r = 0; r < PANEL; r++) {
                    const size_t index = (size_t(panel) * w.groups + k0 / w.group) * PANEL + r;
                    const int32_t zero = w.zero ? w.zero[index] : 1 << (w.bits - 1);
                    float& sum = sums[t - begin][r];
                    sum = std::fma(float(dots[t - begin][r] - zero * x.sum[at]), x.scale[at] * scale_at(w, index), sum);
                }
            }
        }
        for (int t = begin; t < end; t++)
            for (int r = 0; r < PANEL; r++) {
                float& to = y.y[size_t(t) * y.stride + panel * PANEL + r];
                const float v = sums[t - begin][r] + (y.bias ? y.bias[panel * PANEL + r] : 0.0f);
                to = y.add ? to + v : v;
            }
    }
}

inline size_t scratch_bytes(const Weight&) { return 0; }

inline void linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                        uint8_t*) {
    for (int t = begin; t < end; t += MOST_FEW) linear_few(w, x, t, std::min(t + MOST_FEW, end), first, last, y);
}

}  // namespace
}  // namespace zeropoint
