// What a weight lost, in one pass over it and what became of it, and how its values and its codes are spread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropoint {

struct Lost {
    double signal, noise, product, restored;      // sums of w^2, (r - w)^2, w r and r^2
    double largest;                               // of |r - w|
};

// Sums in float64, of every eighth value first: the order is fixed, and a compiler can keep eight of them at once. NaN and
// infinity show in the sums.
Lost lost(const float* weight, const float* restored, size_t count);

// Return the sum of (r - w)^2 over the values outside their grids. A weight (rows, cols) has one scale, and maybe one zero
// point, for each `group` columns of a row; outside is where w / scale + zero, in float32 as codes are found, is more than
// half a step past q_min or q_max.
double clipped(const float* weight, const float* restored, size_t rows, size_t cols, const float* scale, const float* zero,
               size_t group, int q_min, int q_max);

// Add to counts[0 .. 2 half + 2): how many values lie below -half * width, in each of the 2 half bars between there and
// half * width, and from there on. per_width: 1 / width, a power of two, so that no value comes into its neighbour's bar.
// NaN counts anywhere.
void count_bars(const float* values, size_t count, float per_width, int half, int64_t* counts);

// Add to counts[0 .. 256): how many of the codes are -128, -127 ... 127.
void count_codes(const int8_t* codes, size_t count, int64_t* counts);

}  // namespace zeropoint
