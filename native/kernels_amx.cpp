// AMX, Intel since Sapphire Rapids: tiles for many rows, AVX-512 for everything else.
#include "wide.h"

namespace zeropoint {

static Kernels with_tiles(Kernels kernels) {
    kernels.isa = "amx";
    kernels.linear_many = ZEROPOINT_WIDE::amx_linear_many;
    kernels.scratch_bytes = ZEROPOINT_WIDE::amx_scratch_bytes;
    kernels.linear_bf16 = ZEROPOINT_WIDE::amx_linear_bf16;
    return kernels;
}

#ifdef ZEROPOINT_EMULATED
const Kernels& emulated_avx512_kernels();

const Kernels& emulated_amx_kernels() {
    static const Kernels kernels = with_tiles(emulated_avx512_kernels());
    return kernels;
}
#else
const Kernels* amx_kernels() {
    static const Kernels kernels = with_tiles(*avx512_kernels());
    return &kernels;
}
#endif

}  // namespace zeropoint
