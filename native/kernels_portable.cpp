// Everything in plain C++, for any processor.
#include <algorithm>

#include "lanes_portable.h"
//
#include "floats.h"
#include "integer_portable.h"
#include "rounding.h"

namespace zeropoint {

const Kernels& portable_kernels() {
    static const Kernels kernels = {
        "portable", quantize, linear_few, linear_many, scratch_bytes, linear_float, float_scratch_bytes, nullptr,
        rms_norm,   layer_norm, gated, add, softcap,        rope,        attend,        to_half,
        search_ranges, round_columns,
    };
    return kernels;
}

}  // namespace zeropoint
