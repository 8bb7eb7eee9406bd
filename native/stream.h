// The limit of decoding: how fast these threads can read memory.
#pragma once

#include <cstddef>

#include "pool.h"

namespace zeropoint {

// Bytes per second of reading `bytes` once, all threads, each its own part; the best of `repeats`.
double stream(Pool& pool, size_t bytes, int repeats);

}  // namespace zeropoint
