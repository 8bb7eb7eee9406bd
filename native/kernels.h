// What every instruction set provides, under the same names: a table of functions, filled in by one file each.
//
// Results do not depend on the instruction set where integers are concerned, nor on the number of threads anywhere: the
// order of every sum is fixed by the layout.
//
//   integer linear   y[t][r] = sum over blocks b of  fma(float(dot - zero * sum), x.scale * w.scale, y)
//                    dot = sum over the columns of b of u[r][k] * q[t][k], exact in int32
//   float linear     y[t][r] = fma over k, ascending
#pragma once

#include "weight.h"

namespace zeropoint {

// One page of keys and values of one head: PAGE positions. Keys lie transposed, so that scores are computed for 16
// positions at once and outputs for 16 features at once. As int8 the key, and the value, of a position have one scale
// each, largest magnitude / 127; it is the same for all features, so it is applied to the score and to the weight:
//
//   score[p] = scale_k[p] * sum over d of q[d] * k[d][p]         out[d] = sum over p of (weight[p] * scale_v[p]) * v[p][d]
constexpr int PAGE = 256;
enum class CacheType : uint8_t { f16, f32, i8 };
constexpr size_t item_bytes(CacheType type) { return type == CacheType::f32 ? 4 : type == CacheType::f16 ? 2 : 1; }

// Attention of `rows` queries, which all read the same head of keys and values, over one page.
struct PageAttention {
    const float* q;            // (rows, head_dim), already multiplied by the scale of the scores
    const void* keys;          // (head_dim, PAGE)
    const void* values;        // (PAGE, head_dim)
    const float* key_scales;   // (PAGE,) each for i8, else null
    const float* value_scales;
    CacheType type;
    int rows, head_dim;        // head_dim: a multiple of 16
    const int* first;          // (rows,) each: a query sees the positions first..seen - 1 of this page, 0..PAGE; maybe none
    const int* seen;
    float softcap;             // scores become softcap * tanh(score / softcap); 0: they stay
    float* scores;             // scratch (rows, PAGE)
    float* most;               // (rows,): running maximum, -inf at the start
    float* total;              // (rows,): running sum of exp(score - most)
    float* out;                // (rows, head_dim): running sum of exp(score - most) * value
};

// What scales are stored as, and the integers that a range becomes: q = clamp(round(x / scale + zero), q_min, q_max).
enum class ScaleType : uint8_t { f32, bf16, f16 };
struct Grid {
    int q_min, q_max;
    bool symmetric;            // zero is 0
    ScaleType stored;
};

// The search for the range of every group of a weight: the seen range times each of `both`, then each end alone times each
// of `single`, the other end as it is best so far; of equally good ones the first. What is smallest is
//
//   sum over the group of weights[k] * |x[k] - scale * (q[k] - zero)|^p          scale rounded as it is stored
struct RangeSearch {
    const float* values;       // (rows, groups, group), filled up with zeros
    const float* weights;      // (groups, group), >= 0
    int rows, groups, group;
    Grid grid;
    float p;
    const float* both;
    int both_count;
    const float* single;
    int single_count;
    float* low;                // (rows, groups): the seen range, low <= 0 <= high; then the best
    float* high;
};

// GPTQ's columns, a block of them; each is a row here:
//
//   codes[j] = clamp(round(w[j] / scale + zero), q_min, q_max)     w[j] <- (w[j] - scale * (codes[j] - zero)) / factor[j][j]
//   w[k] <- w[k] - factor[j][k] * w[j]  for j < k < count          in one rounding
struct RoundColumns {
    float* w;                  // (count, rows): what is rounded, and then the error that is left to the columns behind
    const float* factor;       // (count, count), upper triangle
    const float* scale;        // (groups, rows)
    const float* zero;         // likewise, or null
    const int32_t* group;      // (count,): of each column
    int8_t* codes;             // (count, rows)
    int count, rows, q_min, q_max;
};

struct Kernels {
    const char* isa;

    // x: float32 (rows, stride) of `cols` columns -> q, row by row from `begin` to `end`.
    void (*quantize)(const float* x, size_t stride, int cols, const QInput& q, const InputRounding& how, int begin, int end);
    // y of rows [begin, end) of x and panels [first, last) of w. few: end - begin <= MOST_FEW.
    void (*linear_few)(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y);
    // scratch: scratch_bytes(w) bytes, aligned to 64, one for each thread.
    void (*linear_many)(const Weight& w, const QInput& x, int begin, int end, int first, int last, const Output& y,
                        uint8_t* scratch);
    size_t (*scratch_bytes)(const Weight& w);
    // The same with float activations: x float32 (rows, stride). Any kind of weight, any number of rows.
    void (*linear_float)(const Weight& w, const float* x, size_t stride, int begin, int end, int first, int last,
                         const Output& y, uint8_t* scratch);
    size_t (*float_scratch_bytes)(const Weight& w);
    // x: bfloat16 (rows, stride), 0 past cols up to padded_cols; w: Kind::bf16; products of bfloat16 summed in float32.
    // Null where the processor has no such product: x then stays float32.
    void (*linear_bf16)(const Weight& w, const uint16_t* x, size_t stride, int begin, int end, int first, int last,
                        const Output& y, uint8_t* scratch);

    void (*rms_norm)(const float* x, const float* gain, float eps, int cols, float* y);
    // (x - mean) / sqrt(variance + eps) * gain + bias; x, gain and bias are 0 past cols, and so is y.
    void (*layer_norm)(const float* x, const float* gain, const float* bias, float eps, int cols, float* y);
    // y = act(gate) * up, or act(gate) where up is null; activation: 0 silu, 1 gelu, 2 gelu_pytorch_tanh, 3 relu
    void (*gated)(const float* gate, const float* up, int activation, size_t count, float* y);
    void (*add)(const float* x, const float* y, size_t count, float* out);
    void (*softcap)(const float* x, float cap, size_t count, float* y);   // y = cap * tanh(x / cap)
    // Rotate one head: (x[i], x[i + half]) by the angle whose cosine and sine are given, i < half.
    void (*rope)(float* x, const float* cosines, const float* sines, int half);
    void (*attend)(const PageAttention& page);
    void (*to_half)(const float* x, size_t count, uint16_t* y);   // clamped to +-65504

    void (*search_ranges)(const RangeSearch& task);
    void (*round_columns)(const RoundColumns& task);
};

const Kernels& portable_kernels();
const Kernels* avx2_kernels();        // null where it was not compiled
const Kernels* avx512_kernels();
const Kernels* amx_kernels();

}  // namespace zeropoint
