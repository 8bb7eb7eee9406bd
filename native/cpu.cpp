#include "cpu.h"

#include <cstdlib>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace zeropoint {
namespace {

#if defined(__x86_64__)

struct Cpu {
    bool avx2;                 // with FMA and F16C
    bool avx512vnni;           // F, BW, VL, DQ and VNNI
    bool amx;                  // tiles, int8 and bfloat16, and permission to use them
};

bool bit(uint64_t word, int n) { return word >> n & 1; }

// XCR0: which registers the operating system saves, 0 where it does not say. In containers and virtual machines cpuid
// often says yes where this says no.
uint64_t saved_state() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27)) return 0;   // OSXSAVE
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return uint64_t(high) << 32 | low;
}

// To be asked for once, by a process for all its threads.
bool amx_permitted() {
#if defined(__linux__)
    constexpr int request = 0x1023, tile_data = 18;                 // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return syscall(SYS_arch_prctl, request, tile_data) == 0;
#else
    return false;
#endif
}

Cpu detect() {
    Cpu cpu = {};
    unsigned a1, b1, c1, d1, a7, b7, c7, d7;
    if (!__get_cpuid(1, &a1, &b1, &c1, &d1) || !__get_cpuid_count(7, 0, &a7, &b7, &c7, &d7)) return cpu;
    const uint64_t state = saved_state();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
    cpu.avx2 = ymm && bit(c1, 12) && bit(c1, 28) && bit(c1, 29) && bit(b7, 5);          // FMA, AVX, F16C, AVX2
    cpu.avx512vnni = cpu.avx2 && zmm && bit(b7, 16) && bit(b7, 17) && bit(b7, 30) && bit(b7, 31) &&   // F, DQ, BW, VL
                     bit(c7, 11);                                                       // VNNI
    cpu.amx = cpu.avx512vnni && tiles && bit(d7, 22) && bit(d7, 24) && bit(d7, 25) &&   // bf16, tile, int8
              amx_permitted();
    return cpu;
}

const Cpu& cpu() {
    static const Cpu detected = detect();
    return detected;
}

#endif

std::vector<const Kernels*> tables() {
    std::vector<const Kernels*> all = {&portable_kernels()};
#if defined(__x86_64__)
    const auto offer = [&](bool runs, const Kernels* (*table)()) {
        if (runs && table()) all.push_back(table());
    };
    offer(cpu().avx2, avx2_kernels);
#if defined(ZEROPOINT_HAS_WIDE)                                         // compiled in, see wide.cmake
    offer(cpu().avx512vnni, avx512_kernels);
    offer(cpu().amx, amx_kernels);
#endif
#endif
    return all;
}

}  // namespace

std::vector<const char*> available() {
    std::vector<const char*> names;
    for (const Kernels* table : tables()) names.push_back(table->isa);
    return names;
}

const Kernels* kernels_named(const std::string& isa) {
    for (const Kernels* table : tables())
        if (isa == table->isa) return table;
    return nullptr;
}

const Kernels& choose() {
    const char* wanted = std::getenv("ZEROPOINT_ISA");
    if (!wanted || !*wanted) return *tables().back();
    if (const Kernels* table = kernels_named(wanted)) return *table;
    std::string list;
    for (const char* isa : available()) list += std::string(list.empty() ? "" : ", ") + isa;
    throw std::invalid_argument("ZEROPOINT_ISA is '" + std::string(wanted) + "'; this machine has " + list);
}

}  // namespace zeropoint
