// Which instruction sets this processor and this operating system allow, and which one is used.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace zeropoint {

// In rising order, out of "portable", "avx2", "avx512vnni", "amx".
std::vector<const char*> available();

// The best that is available, or the one that the environment variable ZEROPOINT_ISA names.
// Throws std::invalid_argument, listing what is available, if that is not one of them.
const Kernels& choose();

}  // namespace zeropoint
