// AVX-512 with VNNI: Intel since Ice Lake, AMD since Zen 4.
#include "lanes_avx512.h"
//
#include "floats.h"
#include "rounding.h"

namespace zeropoint {

static Kernels table() {
    return {
        "avx512vnni", quantize, ZEROPOINT_WIDE::vnni_linear_few, ZEROPOINT_WIDE::vnni_linear_many,
        ZEROPOINT_WIDE::vnni_scratch_bytes, linear_float, float_scratch_bytes, nullptr,
        rms_norm, layer_norm, gated, add, softcap, rope, attend, to_half,
        search_ranges, round_columns,
    };
}

#ifdef ZEROPOINT_EMULATED
const Kernels& emulated_avx512_kernels() {
    static const Kernels kernels = table();
    return kernels;
}
#else
const Kernels* avx512_kernels() {
    static const Kernels kernels = table();
    return &kernels;
}
#endif

}  // namespace zeropoint
