#include "pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

namespace zeropoint {

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;
constexpr size_t REGION = 64 * HUGE_PAGE;   // of addresses; memory is taken page by page as it is written

// Weights of a model lie one behind the other in a region, so that small ones share huge pages. A region goes back to
// the system when the last of them has been given back; models come and go whole.
struct Region {
    uint8_t* begin;
    size_t size, used;
    int living;
};

std::mutex mutex;
std::vector<Region> regions;   // the last one has room

size_t round_up(size_t n, size_t step) { return (n + step - 1) / step * step; }

Region map_region(size_t size) {
    const size_t mapped = size + HUGE_PAGE;
    void* const memory = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    uint8_t* const from = static_cast<uint8_t*>(memory);
    uint8_t* const begin = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(from), HUGE_PAGE));
    if (begin > from) munmap(from, begin - from);
    if (begin < from + HUGE_PAGE) munmap(begin + size, from + HUGE_PAGE - begin);
    madvise(begin, size, MADV_HUGEPAGE);   // a system without them has small ones
    return {begin, size, 0, 0};
}

}  // namespace

void* take_pages(size_t bytes) {
    const size_t size = round_up(std::max<size_t>(bytes, 1), 64);
    const std::lock_guard lock(mutex);
    if (regions.empty() || regions.back().size - regions.back().used < size)
        regions.push_back(map_region(std::max(REGION, round_up(size, HUGE_PAGE))));
    Region& region = regions.back();
    uint8_t* const memory = region.begin + region.used;
    region.used += size;
    region.living++;
    return memory;
}

void give_pages_back(void* memory) {
    const std::lock_guard lock(mutex);
    const auto found = std::find_if(regions.begin(), regions.end(), [&](const Region& region) {
        return memory >= region.begin && memory < region.begin + region.size;
    });
    if (--found->living) return;
    munmap(found->begin, found->size);
    regions.erase(found);
}

}  // namespace zeropoint
