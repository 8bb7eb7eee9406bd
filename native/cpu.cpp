#include "cpu.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

namespace zeropoint {

namespace {

const Kernels* named(const char* isa) {
    if (!std::strcmp(isa, "portable")) return &portable_kernels();
    if (!std::strcmp(isa, "avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2_kernels();
    return nullptr;
}

}  // namespace

std::vector<const char*> available() {
    std::vector<const char*> found;
    for (const char* isa : {"portable", "avx2", "avx512vnni", "amx"})
        if (named(isa)) found.push_back(isa);
    return found;
}

const Kernels& choose() {
    const char* wanted = std::getenv("ZEROPOINT_ISA");
    if (!wanted || !*wanted) return *named(available().back());
    if (const Kernels* kernels = named(wanted)) return *kernels;
    std::string list;
    for (const char* isa : available()) list += std::string(list.empty() ? "" : ", ") + isa;
    throw std::invalid_argument("ZEROPOINT_ISA is '" + std::string(wanted) + "'; this machine has " + list);
}

}  // namespace zeropoint
