// A weight that owns its memory, filled from what a checkpoint holds, some rows at a time so that no second copy is needed.
#pragma once

#include "buffer.h"
#include "pool.h"
#include "weight.h"

namespace zeropoint {

class StoredWeight {
   public:
    // bits, group and the rest as in Weight. scales16: scales are bfloat16 numbers. zeros: the weight has zero points.
    StoredWeight(Kind kind, int bits, int rows, int cols, int group, bool scales16, bool zeros);
    StoredWeight(const StoredWeight&) = delete;
    StoredWeight& operator=(const StoredWeight&) = delete;

    // Rows [first, first + count), first a multiple of PANEL, and count too unless it ends the weight.
    // words: (count, stride) of 32 bits, a dense stream of unsigned codes for each row. scales: (count, groups).
    // zeros: (count, groups) unsigned, or null.
    void put_codes(Pool& pool, int first, int count, const uint32_t* words, size_t stride, const float* scales, const uint8_t* zeros);
    void put_bf16(Pool& pool, int first, int count, const uint16_t* values);
    void put_f32(Pool& pool, int first, int count, const float* values);
    // Round to 8 bits with one scale for each row, max |w| / 127: of float32, or of bfloat16 where `halves` is given.
    void put_rounded(Pool& pool, int first, int count, const float* values, const uint16_t* halves);

    // Return w[row][0..cols) as floats.
    void read_row(int row, float* values) const;

    const Weight& view() const { return weight_; }
    size_t bytes() const { return data_.size() + scale16_.size() * 2 + scale32_.size() * 4 + zero_.size(); }

   private:
    Weight weight_;
    Buffer<uint8_t> data_, zero_;
    Buffer<uint16_t> scale16_;
    Buffer<float> scale32_;
};

}  // namespace zeropoint
