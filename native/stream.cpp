#include "stream.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "buffer.h"

namespace zeropoint {

namespace {

// A reader that is slower than a kernel would give a limit that kernels exceed. Four places at once keep more cache lines
// on their way than one; and this is no part of the bindings, which are compiled for size. Measured in docs/log.md.
constexpr size_t PLACES = 4, AHEAD = 128;  // words of 8 bytes

uint64_t sum(const uint64_t* p, size_t words) {
    uint64_t s[8] = {};
    const size_t part = words / PLACES;
    for (size_t n = 0; n < part; n += 8)
        for (size_t place = 0; place < PLACES; place++) {
            const uint64_t* q = p + place * part + n;
            __builtin_prefetch(q + AHEAD);
            for (int j = 0; j < 8; j++) s[j] += q[j];
        }
    return std::accumulate(s, s + 8, uint64_t(0));
}

}  // namespace

double stream(Pool& pool, size_t bytes, int repeats) {
    const size_t step = 8 * PLACES, each = std::max<size_t>(1, bytes / 8 / pool.size() / step) * step;  // words of a thread
    auto memory = Buffer<uint64_t>::in_huge_pages(each * pool.size() + AHEAD);   // as weights are
    std::fill_n(memory.data(), memory.size(), 0);   // pages that nobody has written to are all one page
    std::vector<double> seconds;
    std::vector<uint64_t> sums(size_t(pool.size()) * 8);  // a cache line for each thread
    for (int i = 0; i < repeats; i++) {
        const auto start = std::chrono::steady_clock::now();
        pool.run([&](int thread) { sums[thread * 8] += sum(memory.data() + each * thread, each); });
        seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    if (std::accumulate(sums.begin(), sums.end(), uint64_t(0)) != 0) throw std::runtime_error("memory changed");
    return double(each) * 8 * pool.size() / *std::min_element(seconds.begin(), seconds.end());
}

}  // namespace zeropoint
