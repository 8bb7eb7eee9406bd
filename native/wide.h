// What the files for AVX-512 and AMX share: the instructions, real or emulated, and each other's functions.
//
// With ZEROPOINT_EMULATED the same sources compile for any x86-64: tests/emulation.h then supplies the intrinsics in
// plain C++, in the namespace that the kernels are in too, so that both kinds can live in one test program.
#pragma once

#include <cstring>

#include "kernels.h"

#ifdef ZEROPOINT_EMULATED
#include "tests/emulation.h"
#define ZEROPOINT_WIDE emulated
#define ZEROPOINT_INLINE inline
#else
#include <immintrin.h>
#define ZEROPOINT_WIDE wide
#define ZEROPOINT_INLINE inline __attribute__((always_inline))
#endif

namespace zeropoint::ZEROPOINT_WIDE {

void vnni_linear_few(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y);
void vnni_linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                      uint8_t* scratch);
size_t vnni_scratch_bytes(const Weight& w);

void amx_linear_many(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                     uint8_t* scratch);
size_t amx_scratch_bytes(const Weight& w);
void amx_linear_bf16(const Weight& w, const uint16_t* x, size_t stride, int begin, int end, int first, int last,
                     const Output& y, uint8_t* scratch);

}  // namespace zeropoint::ZEROPOINT_WIDE
