// AVX2 with FMA and F16C: every x86-64 processor of the last ten years.
#include "lanes_avx2.h"
//
#include "floats.h"
#include "integer_avx2.h"
#include "rounding.h"

namespace zeropoint {

const Kernels* avx2_kernels() {
    static const Kernels kernels = {
        "avx2",   quantize, linear_few, linear_many, scratch_bytes, linear_float, float_scratch_bytes, nullptr,
        rms_norm, layer_norm, gated, add, softcap,        rope,        attend,        to_half,
        search_ranges, round_columns,
    };
    return &kernels;
}

}  // namespace zeropoint
