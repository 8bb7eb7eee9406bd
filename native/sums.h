// What a weight lost, in one pass over it and what became of it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace zeropoint {

struct Lost {
    double signal, noise, product, restored;      // sums of w^2, (r - w)^2, w r and r^2
    double largest;                               // of |r - w|
};

// Sums in float64, of every eighth value first: the order is fixed, and a compiler can keep eight of them at once. NaN and
// infinity show in the sums.
inline Lost lost(const float* weight, const float* restored, size_t count) {
    constexpr size_t LANES = 8;
    double sums[4][LANES] = {}, most[LANES] = {};
    const auto take = [&](size_t i, size_t lane) {
        const double w = weight[i], r = restored[i], e = r - w;
        sums[0][lane] += w * w;
        sums[1][lane] += e * e;
        sums[2][lane] += w * r;
        sums[3][lane] += r * r;
        most[lane] = std::max(most[lane], std::fabs(e));
    };
    size_t i = 0;
    for (; i + LANES <= count; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++) take(i + lane, lane);
    for (size_t lane = 0; i < count; i++, lane++) take(i, lane);
    for (size_t step = LANES / 2; step; step /= 2)
        for (size_t lane = 0; lane < step; lane++) {
            for (auto& sum : sums) sum[lane] += sum[lane + step];
            most[lane] = std::max(most[lane], most[lane + step]);
        }
    return {sums[0][0], sums[1][0], sums[2][0], sums[3][0], most[0]};
}

}  // namespace zeropoint
