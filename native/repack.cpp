#include "repack.h"

#include <algorithm>
#include <cmath>

#include "bf16.h"
#include "planes.h"

namespace zeropoint {

namespace {

// The largest block of activations that divides a group: 64 columns share an activation's scale where they can.
int block_for(int group, int padded_cols) {
    if (group >= padded_cols) return std::min(64, padded_cols);
    for (int block : {128, 96, 64})
        if (group % block == 0 && (block == group || block <= 64)) return block;
    return CHUNK;
}

template <class F>
void over_panels(Pool& pool, int first, int count, const F& f) {
    const int begin = first / PANEL, panels = (count + PANEL - 1) / PANEL;
    pool.run([&](int thread) {
        const int a = int(int64_t(panels) * thread / pool.size()), b = int(int64_t(panels) * (thread + 1) / pool.size());
        for (int p = a; p < b; p++) f(begin + p, p * PANEL, std::min(PANEL, count - p * PANEL));
    });
}

}  // namespace

StoredWeight::StoredWeight(Kind kind, int bits, int rows, int cols, int group, bool scales16, bool zeros) {
    Weight& w = weight_;
    w = {};
    w.kind = kind;
    w.bits = bits;
    w.rows = rows;
    w.cols = cols;
    w.padded_cols = round_up(cols, CHUNK);
    w.group = group >= cols ? w.padded_cols : group;
    w.groups = (w.padded_cols + w.group - 1) / w.group;
    w.block = block_for(w.group, w.padded_cols);
    data_ = Buffer<uint8_t>::in_huge_pages(w.panels() * w.panel_bytes());
    w.data = data_.data();
    if (kind != Kind::codes) return;
    const size_t scales = size_t(w.panels()) * w.groups * PANEL;
    if (scales16) scale16_ = Buffer<uint16_t>::in_huge_pages(scales), w.scale16 = scale16_.data();
    else scale32_ = Buffer<float>::in_huge_pages(scales), w.scale32 = scale32_.data();
    if (zeros) zero_ = Buffer<uint8_t>::in_huge_pages(scales), w.zero = zero_.data();
}

void StoredWeight::put_codes(Pool& pool, int first, int count, const uint32_t* words, size_t stride, const float* scales,
                             const uint8_t* zeros) {
    const Weight& w = weight_;
    const int bits = w.bits;
    const uint32_t mask = (1u << bits) - 1;
    over_panels(pool, first, count, [&](int panel, int row0, int rows) {
        uint8_t* to = data_.data() + panel * w.panel_bytes();
        alignas(64) uint8_t quads[8 * 64] = {};
        for (int k = 0; k < w.padded_cols; k += CHUNK, to += 64 * bits) {
            const int here = std::min(CHUNK, w.cols - k);
            if (here < CHUNK) std::memset(quads, 0, sizeof quads);
            for (int r = 0; r < rows; r++) {
                const uint32_t* from = words + (row0 + r) * stride + size_t(k) * bits / 32;
                uint64_t window = 0;
                int held = 0;
                for (int i = 0; i < here; i++) {
                    if (held < bits) window |= uint64_t(*from++) << held, held += 32;
                    quads[i / 4 * 64 + 4 * r + i % 4] = uint8_t(window & mask);
                    window >>= bits;
                    held -= bits;
                }
            }
            pack_chunk(bits, quads, to);
        }
        for (int g = 0; g < w.groups; g++)
            for (int r = 0; r < rows; r++) {
                const size_t at = (size_t(panel) * w.groups + g) * PANEL + r, from = size_t(row0 + r) * w.groups + g;
                if (w.scale16) {
                    uint32_t v;
                    std::memcpy(&v, scales + from, 4);
                    scale16_.data()[at] = uint16_t(v >> 16);
                } else {
                    scale32_.data()[at] = scales[from];
                }
                if (w.zero) zero_.data()[at] = zeros[from];
            }
    });
}

void StoredWeight::put_bf16(Pool& pool, int first, int count, const uint16_t* values) {
    const Weight& w = weight_;
    over_panels(pool, first, count, [&](int panel, int row0, int rows) {
        uint16_t* to = reinterpret_cast<uint16_t*>(data_.data() + panel * w.panel_bytes());
        for (int r = 0; r < rows; r++) {
            const uint16_t* from = values + size_t(row0 + r) * w.cols;
            for (int k = 0; k < w.cols; k++) to[k / 2 * 32 + 2 * r + k % 2] = from[k];
        }
    });
}

void StoredWeight::put_f32(Pool& pool, int first, int count, const float* values) {
    const Weight& w = weight_;
    over_panels(pool, first, count, [&](int panel, int row0, int rows) {
        float* to = reinterpret_cast<float*>(data_.data() + panel * w.panel_bytes());
        for (int r = 0; r < rows; r++) {
            const float* from = values + size_t(row0 + r) * w.cols;
            for (int k = 0; k < w.cols; k++) to[size_t(k) * PANEL + r] = from[k];
        }
    });
}

void StoredWeight::put_rounded(Pool& pool, int first, int count, const float* values, const uint16_t* halves) {
    const Weight& w = weight_;
    over_panels(pool, first, count, [&](int panel, int row0, int rows) {
        uint8_t* to = data_.data() + panel * w.panel_bytes();
        for (int r = 0; r < rows; r++) {
            const size_t start = size_t(row0 + r) * w.cols;
            const auto value = [&](int k) { return halves ? from_bf16(halves[start + k]) : values[start + k]; };
            float largest = 0;
            for (int k = 0; k < w.cols; k++) largest = std::max(largest, std::fabs(value(k)));
            const float inverse = largest > 1e-36f ? 127.0f / largest : 0.0f;
            for (int k = 0; k < w.cols; k++)
                to[size_t(k) / 4 * 64 + 4 * r + k % 4] = uint8_t(int(std::nearbyint(value(k) * inverse)) + 128);
            scale32_.data()[size_t(panel) * PANEL + r] = largest / 127.0f;
        }
    });
}

void StoredWeight::read_row(int row, float* values) const {
    const Weight& w = weight_;
    const int panel = row / PANEL, r = row % PANEL;
    const uint8_t* data = w.data + panel * w.panel_bytes();
    if (w.kind == Kind::f32) {
        const float* from = reinterpret_cast<const float*>(data);
        for (int k = 0; k < w.cols; k++) values[k] = from[size_t(k) * PANEL + r];
        return;
    }
    if (w.kind == Kind::bf16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(data);
        for (int k = 0; k < w.cols; k++) values[k] = from_bf16(from[k / 2 * 32 + 2 * r + k % 2]);
        return;
    }
    alignas(64) uint8_t quads[8 * 64];
    for (int k = 0; k < w.cols; k += CHUNK, data += 64 * w.bits) {
        const uint8_t* chunk = data;
        if (w.bits != 8) unpack_chunk(w.bits, data, quads), chunk = quads;
        const size_t at = (size_t(panel) * w.groups + k / w.group) * PANEL + r;
        const float scale = w.scale16 ? from_bf16(w.scale16[at]) : w.scale32[at];
        const int zero = w.zero ? w.zero[at] : 1 << (w.bits - 1);
        for (int i = 0; i < std::min(CHUNK, w.cols - k); i++)
            values[k + i] = scale * float(int(chunk[i / 4 * 64 + 4 * r + i % 4]) - zero);
    }
}

}  // namespace zeropoint
