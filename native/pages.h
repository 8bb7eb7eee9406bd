// Memory for what is read from end to end for every token: huge pages, which spare the processor most of the look-ups of
// addresses that a stream through small pages costs. Measured in docs/log.md.
#pragma once

#include <cstddef>

namespace zeropoint {

// Return memory of zeros, aligned to 64 bytes. Throws std::bad_alloc.
void* take_pages(size_t bytes);

// Give back what take_pages returned.
void give_pages_back(void* memory);

}  // namespace zeropoint
