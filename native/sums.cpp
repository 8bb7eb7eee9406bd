#include "sums.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace zeropoint {

Lost lost(const float* weight, const float* restored, size_t count) {
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

double clipped(const float* weight, const float* restored, size_t rows, size_t cols, const float* scale, const float* zero,
               size_t group, int q_min, int q_max) {
    constexpr size_t BATCH = 256, WORD = 8;
    const float least = float(q_min) - 0.5f, most = float(q_max) + 0.5f;  // exact
    double sum = 0;
    uint8_t near[BATCH] = {};
    for (size_t row = 0; row < rows; row++)
        for (size_t begin = 0; begin < cols; begin += group, scale++) {
            const size_t end = row * cols + std::min(begin + group, cols);
            const float s = *scale, z = zero ? *zero++ : 0.0f;
            // What lies between low and high is inside however a quotient is rounded, with a margin of a hundred times what
            // that can do: only the few others are divided. Products with the smallest scales are too coarse for it.
            const float margin = s < 1e-30f ? INFINITY : 1e-5f * (most - least + std::fabs(z));
            const float low = (least + margin - z) * s, high = (most - margin - z) * s;
            for (size_t first = row * cols + begin; first < end; first += BATCH) {
                const float *w = weight + first, *r = restored + first;
                const size_t here = std::min(BATCH, end - first);
                for (size_t i = 0; i < here; i++) near[i] = (w[i] <= low) | (w[i] >= high);
                std::fill(near + here, near + std::min(BATCH, here + WORD), uint8_t(0));
                for (size_t at = 0; at < here; at += WORD) {
                    uint64_t any;
                    std::memcpy(&any, near + at, WORD);
                    if (!any) continue;
                    for (size_t i = at; i < std::min(at + WORD, here); i++) {
                        if (!near[i]) continue;
                        const float code = w[i] / s + z;
                        const double error = double(r[i]) - double(w[i]);
                        if (code < least || code > most) sum += error * error;
                    }
                }
            }
        }
    return sum;
}

void count_bars(const float* values, size_t count, float per_width, int half, int64_t* counts) {
    constexpr size_t BATCH = 256, APART = 4;  // equal bars in a row would wait for one another
    const float least = float(-half) - 0.5f, most = float(half), width = 1 / per_width;
    const size_t bars = size_t(2 * half + 2);
    std::vector<int64_t> apart(APART * bars);
    int at[BATCH];
    for (size_t begin = 0; begin < count; begin += BATCH) {
        const size_t here = std::min(BATCH, count - begin);
        for (size_t i = 0; i < here; i++) {  // without the counting, so that a compiler can take several at once
            const int whole = int(std::min(most, std::max(least, values[begin + i] * per_width)));
            at[i] = whole - (values[begin + i] < float(whole) * width) + half + 1;  // exact: a product can become 0
        }
        size_t i = 0;
        for (; i + APART <= here; i += APART)
            for (size_t part = 0; part < APART; part++) apart[part * bars + at[i + part]]++;
        for (; i < here; i++) apart[at[i]]++;
    }
    for (size_t i = 0; i < apart.size(); i++) counts[i % bars] += apart[i];
}

void count_codes(const int8_t* codes, size_t count, int64_t* counts) {
    constexpr size_t APART = 4;
    int64_t apart[APART][256] = {};
    size_t i = 0;
    for (; i + APART <= count; i += APART)
        for (size_t part = 0; part < APART; part++) apart[part][codes[i + part] + 128]++;
    for (; i < count; i++) apart[0][codes[i] + 128]++;
    for (size_t code = 0; code < 256; code++)
        for (const auto& part : apart) counts[code] += part[code];
}

}  // namespace zeropoint
