// Finding integers for a weight, written once over V16. A file that provides V16 is included before this one.
//
// Every lane is a row of the weight (or a candidate for the one row there is), so that no sum crosses lanes, and neither
// the instruction set nor the number of threads can change a bit.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bf16.h"
#include "buffer.h"
#include "floats.h"

namespace zeropoint {
namespace {

// The sum of term(i), i < count, in blocks of blocks: float32 then loses the bits of a few dozen additions only, however
// many terms there are. The order is that of torch.sum over a dimension that is not the last.
template <class F>
inline V16 cascade(int count, F term) {
    constexpr int LEVELS = 4;
    int bits = 0;
    while ((int64_t(1) << bits) < count) bits++;
    const int power = std::max(4, bits / LEVELS), step = 1 << power;
    V16 sums[LEVELS];
    for (V16& s : sums) s = splat(0);
    int i = 0;
    while (i + step <= count) {
        V16 s = sums[0];
        for (const int end = i + step; i < end; i++) s = s + term(i);
        sums[0] = s;
        for (int level = 1; level < LEVELS; level++) {
            sums[level] = sums[level] + sums[level - 1];
            sums[level - 1] = splat(0);
            if (int64_t(i) & int64_t(step - 1) << (level * power)) break;
        }
    }
    for (; i < count; i++) sums[0] = sums[0] + term(i);
    for (int level = 1; level < LEVELS; level++) sums[0] = sums[0] + sums[level];
    return sums[0];
}

// x^p for x >= 0 and p > 0, to 1e-5 of itself: e^(p ln x), ln of the mantissa by the series of artanh. 0 below 2^-126.
inline V16 power(V16 x, float p) {
    alignas(64) uint32_t bits[16];
    alignas(64) float exponent[16], mantissa[16], exists[16];
    store(mantissa, x);
    std::memcpy(bits, mantissa, sizeof bits);
    for (int i = 0; i < 16; i++) {
        const bool upper = (bits[i] & 0x7fffff) > 0x3504f3;                    // mantissa above sqrt 2
        exponent[i] = float(int(bits[i] >> 23) - 127 + upper);
        exists[i] = bits[i] >> 23 ? 1.0f : 0.0f;
        bits[i] = (bits[i] & 0x7fffff) | (upper ? 0x3f000000 : 0x3f800000);
    }
    std::memcpy(mantissa, bits, sizeof bits);
    const V16 m = load(mantissa), s = (m - splat(1)) / (m + splat(1)), square = s * s;
    V16 series = splat(2.0f / 9);
    for (float c : {2.0f / 7, 2.0f / 5, 2.0f / 3, 2.0f}) series = fma(series, square, splat(c));
    const V16 ln = fma(load(exponent), splat(0.69314718f), series * s);
    return exponential(splat(p) * ln) * load(exists);
}

struct Steps {
    V16 scale, zero;
};

// Scale and zero point of sixteen ranges that contain 0: qparams/from_range.py says why it is done so.
inline Steps steps_of(const Grid& grid, V16 low, V16 high) {
    const double steps = grid.symmetric ? (grid.q_max - grid.q_min) / 2.0 : grid.q_max - grid.q_min;
    alignas(64) float extent[16], nearest[16], scale[16];
    alignas(64) uint16_t halves[16];
    alignas(64) uint32_t bits[16];
    store(extent, grid.symmetric ? larger(splat(0) - low, high) : high - low);
    for (int i = 0; i < 16; i++) nearest[i] = float(double(extent[i]) / steps);
    if (grid.stored == ScaleType::f16) {
        store_f16(halves, load(nearest));
        store(nearest, load_f16(halves));
        for (int i = 0; i < 16; i++) halves[i] += (steps + 0.5) * double(nearest[i]) < double(extent[i]);
        store(scale, load_f16(halves));
    } else {
        const bool shortened = grid.stored == ScaleType::bf16;
        const uint32_t last_bit = shortened ? 0x10000 : 1;
        if (shortened)
            for (float& n : nearest) n = from_bf16(to_bf16(n));
        std::memcpy(bits, nearest, sizeof bits);
        for (int i = 0; i < 16; i++) bits[i] += (steps + 0.5) * double(nearest[i]) < double(extent[i]) ? last_bit : 0;
        std::memcpy(scale, bits, sizeof bits);
    }
    for (int i = 0; i < 16; i++) scale[i] = extent[i] == 0 ? 1.0f : scale[i];
    const V16 s = load(scale);
    if (grid.symmetric) return {s, splat(0)};
    const V16 zero = round_even(splat(float(grid.q_min)) - low / s);
    return {s, larger(smaller(zero, splat(float(grid.q_max))), splat(float(grid.q_min)))};
}

// sum over i of weights[i] * |value(i) - what comes back of it|^p
template <class F>
inline V16 range_error(const RangeSearch& task, const float* weights, int count, V16 scale, V16 zero, F value) {
    const V16 least = splat(float(task.grid.q_min)), most = splat(float(task.grid.q_max));
    const auto difference = [&](int i) {
        const V16 x = value(i), code = smaller(larger(round_even(x / scale + zero), least), most);
        return (code - zero) * scale - x;
    };
    if (task.p == 2)
        return cascade(count, [&](int i) {
            const V16 d = difference(i);
            return d * d * splat(weights[i]);
        });
    return cascade(count, [&](int i) { return power(magnitude(difference(i)), task.p) * splat(weights[i]); });
}

// The power of two that brings the largest magnitude of a range into [0.5, 1), so that squares of tiny errors do not
// underflow: the choice must not depend on the unit in which a weight is measured.
inline float unit_of(float low, float high) {
    int exponent = 0;
    std::frexp(std::max(-low, high), &exponent);
    return std::ldexp(1.0f, -std::min(std::max(exponent, -126), 126));
}

// One group of up to sixteen rows. scratch: (group, 16).
inline void search_panel(const RangeSearch& task, int first, int count, int g, float* scratch) {
    alignas(64) float low[16] = {}, high[16] = {}, unit[16], least[16], error[16], at[16], to[16];
    for (int r = 0; r < 16; r++) {
        if (r < count) {
            low[r] = task.low[size_t(first + r) * task.groups + g];
            high[r] = task.high[size_t(first + r) * task.groups + g];
        }
        unit[r] = unit_of(low[r], high[r]);
        const float* row = task.values + (size_t(first + std::min(r, count - 1)) * task.groups + g) * task.group;
        for (int i = 0; i < task.group; i++) scratch[size_t(i) * 16 + r] = row[i] * unit[r];
    }
    const float* weights = task.weights + size_t(g) * task.group;
    const V16 seen_low = load(low), seen_high = load(high), units = load(unit);
    const auto error_of = [&](V16 lower, V16 upper) {
        const Steps steps = steps_of(task.grid, lower, upper);
        return range_error(task, weights, task.group, steps.scale * units, steps.zero,
                           [&](int i) { return load(scratch + size_t(i) * 16); });
    };
    const auto consider = [&](V16 lower, V16 upper) {
        store(error, error_of(lower, upper));
        store(at, lower);
        store(to, upper);
        for (int r = 0; r < 16; r++) {
            const bool better = error[r] < least[r];
            least[r] = better ? error[r] : least[r];
            low[r] = better ? at[r] : low[r];
            high[r] = better ? to[r] : high[r];
        }
    };
    store(least, error_of(seen_low, seen_high));
    for (int i = 0; i < task.both_count; i++) consider(seen_low * splat(task.both[i]), seen_high * splat(task.both[i]));
    const V16 fixed_high = load(high);
    for (int i = 0; i < task.single_count; i++) consider(seen_low * splat(task.single[i]), fixed_high);
    const V16 fixed_low = load(low);
    for (int i = 0; i < task.single_count; i++) consider(fixed_low, seen_high * splat(task.single[i]));
    for (int r = 0; r < count; r++) {
        task.low[size_t(first + r) * task.groups + g] = low[r];
        task.high[size_t(first + r) * task.groups + g] = high[r];
    }
}

// One group of the only row: sixteen candidates at a time, which changes no sum.
inline void search_alone(const RangeSearch& task, int g) {
    const float seen_low = task.low[g], seen_high = task.high[g], unit = unit_of(seen_low, seen_high);
    const float* values = task.values + size_t(g) * task.group;
    const float* weights = task.weights + size_t(g) * task.group;
    float low = seen_low, high = seen_high, least = 0;
    alignas(64) float error[16], at[16], to[16];
    int waiting = 0;
    bool judged = false;                                                      // the seen range
    const auto judge = [&] {
        for (int i = waiting; i < 16; i++) at[i] = seen_low, to[i] = seen_high;
        const Steps steps = steps_of(task.grid, load(at), load(to));
        store(error, range_error(task, weights, task.group, steps.scale * splat(unit), steps.zero,
                                 [&](int i) { return splat(values[i] * unit); }));
        for (int i = 0; i < waiting; i++)
            if (!judged || error[i] < least) least = error[i], low = at[i], high = to[i], judged = true;
        waiting = 0;
    };
    const auto consider = [&](float lower, float upper) {
        at[waiting] = lower, to[waiting] = upper;
        if (++waiting == 16) judge();
    };
    consider(seen_low, seen_high);
    for (int i = 0; i < task.both_count; i++) consider(seen_low * task.both[i], seen_high * task.both[i]);
    judge();
    const float fixed_high = high;
    for (int i = 0; i < task.single_count; i++) consider(seen_low * task.single[i], fixed_high);
    judge();
    const float fixed_low = low;
    for (int i = 0; i < task.single_count; i++) consider(fixed_low, seen_high * task.single[i]);
    judge();
    task.low[g] = low, task.high[g] = high;
}

inline void search_ranges(const RangeSearch& task) {
    if (task.rows == 1) {
        for (int g = 0; g < task.groups; g++) search_alone(task, g);
        return;
    }
    Buffer<float> scratch(size_t(task.group) * 16);
    for (int first = 0; first < task.rows; first += 16)
        for (int g = 0; g < task.groups; g++)
            search_panel(task, first, std::min(16, task.rows - first), g, scratch.data());
}

// Sixteen rows, which lie in `w` as (count, 16); their errors take its place.
inline void round_panel(const RoundColumns& task, int first, int count, float* w) {
    const V16 least = splat(float(task.q_min)), most = splat(float(task.q_max));
    alignas(64) float scale[16], zero[16] = {};
    alignas(64) int8_t codes[16];
    std::fill(scale, scale + 16, 1.0f);                                       // where there is no row
    for (int j = 0; j < task.count; j++) {
        const size_t at = size_t(task.group[j]) * task.rows + first;
        std::memcpy(scale, task.scale + at, count * sizeof(float));
        if (task.zero) std::memcpy(zero, task.zero + at, count * sizeof(float));
        const V16 s = load(scale), z = load(zero), x = load(w + size_t(j) * 16);
        const V16 code = smaller(larger(round_even(x / s + z), least), most);
        store_i8(codes, code);
        std::memcpy(task.codes + size_t(j) * task.rows + first, codes, count);
        const float* factor = task.factor + size_t(j) * task.count;
        const V16 error = (x - (code - z) * s) / splat(factor[j]);
        store(w + size_t(j) * 16, error);
        for (int k = j + 1; k < task.count; k++) {
            float* later = w + size_t(k) * 16;
            store(later, fma(splat(-factor[k]), error, load(later)));
        }
    }
}

inline void round_columns(const RoundColumns& task) {
    Buffer<float> panel(size_t(task.count) * 16);
    for (int first = 0; first < task.rows; first += 16) {
        const int count = std::min(16, task.rows - first);
        for (int j = 0; j < task.count; j++)
            std::memcpy(panel.data() + size_t(j) * 16, task.w + size_t(j) * task.rows + first, count * sizeof(float));
        round_panel(task, first, count, panel.data());
        for (int j = 0; j < task.count; j++)
            std::memcpy(task.w + size_t(j) * task.rows + first, panel.data() + size_t(j) * 16, count * sizeof(float));
    }
}

}  // namespace
}  // namespace zeropoint
