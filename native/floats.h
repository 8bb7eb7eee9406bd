// The kernels on floats, written once over V16. A file that provides V16 is included before this one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels.h"
#include "planes.h"

namespace zeropoint {
namespace {

// ---- small things ------------------------------------------------------------------------------------------------

inline float sum_of(V16 x) {
    alignas(64) float v[16];
    store(v, x);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

inline float largest_of(V16 x) {
    alignas(64) float v[16];
    store(v, x);
    for (int step = 8; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] = std::max(v[i], v[i + step]);
    return v[0];
}

// e^x to 2 ulp: x = n ln 2 + r, e^r by its Taylor polynomial of degree 7 on |r| <= ln 2 / 2. Below -87 it is 1e-38.
inline V16 exponential(V16 x) {
    x = smaller(larger(x, splat(-87.0f)), splat(88.0f));
    const V16 n = round_even(x * splat(1.44269504f));
    V16 r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    V16 p = splat(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = fma(p, r, splat(c));
    return p * power_of_two(n);
}

// tanh x = (e^2x - 1) / (e^2x + 1), e^2x - 1 being 2^n (e^r - 1) + (2^n - 1): nothing is lost near 0. To 4 ulp.
inline V16 hyperbolic_tangent(V16 x) {
    x = smaller(larger(x + x, splat(-40.0f)), splat(40.0f));   // beyond, it is 1 in float32
    const V16 n = round_even(x * splat(1.44269504f));
    V16 r = fma(n, splat(-0.693359375f), x);
    r = fma(n, splat(2.12194440e-4f), r);
    V16 p = splat(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f}) p = fma(p, r, splat(c));
    const V16 power = power_of_two(n), less_one = fma(p * r, power, power - splat(1));
    return less_one / (less_one + splat(2));
}

inline V16 softcapped(V16 x, V16 cap) { return cap * hyperbolic_tangent(x / cap); }

inline void rms_norm(const float* x, const float* gain, float eps, int cols, float* y) {
    V16 squares = splat(0);
    for (int k = 0; k < cols; k += 16) {
        const V16 v = load(x + k);
        squares = fma(v, v, squares);
    }
    const V16 factor = splat(1.0f / std::sqrt(sum_of(squares) / float(cols) + eps));
    for (int k = 0; k < cols; k += 16) store(y + k, load(x + k) * factor * load(gain + k));
}

inline void layer_norm(const float* x, const float* gain, const float* bias, float eps, int cols, float* y) {
    V16 total = splat(0), squares = splat(0);
    for (int k = 0; k < cols; k += 16) total = total + load(x + k);
    const float mean = sum_of(total) / float(cols);
    int k = 0;
    for (; k + 16 <= cols; k += 16) {
        const V16 v = load(x + k) - splat(mean);
        squares = fma(v, v, squares);
    }
    float sum = sum_of(squares);
    for (; k < cols; k++) sum += (x[k] - mean) * (x[k] - mean);   // past cols x is 0, and that is not the mean
    const V16 factor = splat(1.0f / std::sqrt(sum / float(cols) + eps));
    for (k = 0; k < cols; k += 16) store(y + k, fma((load(x + k) - splat(mean)) * factor, load(gain + k), load(bias + k)));
}

inline void add(const float* x, const float* y, size_t count, float* out) {
    for (size_t i = 0; i < count; i += 16) store(out + i, load(x + i) + load(y + i));
}

inline void softcap(const float* x, float cap, size_t count, float* y) {
    for (size_t i = 0; i < count; i += 16) store(y + i, softcapped(load(x + i), splat(cap)));
}

inline V16 sigmoid(V16 x) { return splat(1) / (splat(1) + exponential(splat(0) - x)); }

inline void gated(const float* gate, const float* up, int activation, size_t count, float* y) {
    for (size_t i = 0; i < count; i += 16) {
        V16 g = load(gate + i);
        switch (activation) {
            case 0: g = g * sigmoid(g); break;
            case 1: {
                alignas(64) float v[16];
                store(v, g);
                for (float& f : v) f = 0.5f * f * (1.0f + std::erf(f * 0.70710678f));
                g = load(v);
                break;
            }
            case 2: {  // 0.5 (1 + tanh(u)) = sigmoid(2u)
                const V16 u = g * fma(g * g, splat(0.044715f), splat(1)) * splat(2 * 0.79788456f);
                g = g * sigmoid(u);
                break;
            }
            default: g = larger(g, splat(0));
        }
        store(y + i, up ? g * load(up + i) : g);
    }
}

// what is not a multiple of 16 goes one by one
inline void rope(float* x, const float* cosines, const float* sines, int half) {
    int i = 0;
    for (; i + 16 <= half; i += 16) {
        const V16 low = load(x + i), high = load(x + half + i), c = load(cosines + i), s = load(sines + i);
        store(x + i, low * c - high * s);
        store(x + half + i, high * c + low * s);
    }
    for (; i < half; i++) {
        const float low = x[i], high = x[half + i];
        x[i] = low * cosines[i] - high * sines[i];
        x[half + i] = high * cosines[i] + low * sines[i];
    }
}

inline void to_half(const float* x, size_t count, uint16_t* y) {
    const V16 most = splat(65504), least = splat(-65504);
    for (size_t i = 0; i < count; i += 16) store_f16(y + i, larger(smaller(load(x + i), most), least));
}

inline float largest_magnitude(const float* x, int begin, int end) {
    V16 most = splat(0);
    for (int k = begin; k < end; k += 16) most = larger(most, magnitude(load(x + k)));
    return largest_of(most);
}

// A row of x whose columns share one scale: q = clamp(round(x / scale + zero)), 0 past cols.
inline void quantize_row(const float* x, int cols, const QInput& q, int t, float scale, int zero) {
    const V16 divisor = splat(scale), shift = splat(float(zero)), least = splat(-128), most = splat(127);
    int8_t* to = q.q + size_t(t) * q.padded_cols;
    for (int b = 0; b < q.blocks; b++) {
        const int first = b * q.block, last = std::min(first + q.block, q.padded_cols);
        int32_t total = 0;
        for (int k = first; k < last; k += 16) {
            const V16 code = round_even(load(x + k) / divisor + shift);
            total += store_i8(to + k, larger(smaller(code, most), least));
        }
        const int filled = std::max(0, last - std::max(first, cols));   // x is 0 there, so its code is zero
        q.scale[size_t(t) * q.blocks + b] = scale;
        q.sum[size_t(t) * q.blocks + b] = total - filled * zero;
    }
    std::memset(to + cols, 0, q.padded_cols - cols);
}

inline void quantize(const float* x, size_t stride, int cols, const QInput& q, const InputRounding& how, int begin, int end) {
    for (int t = begin; t < end; t++) {
        const float* row = x + size_t(t) * stride;
        if (how.kind == InputRounding::Kind::fixed) {
            quantize_row(row, cols, q, t, how.scale, how.zero);
            continue;
        }
        if (how.kind == InputRounding::Kind::token) {
            const float scale = largest_magnitude(row, 0, q.padded_cols) / 127.5f;
            quantize_row(row, cols, q, t, scale > 0 ? scale : 1.0f, 0);
            continue;
        }
        for (int b = 0; b < q.blocks; b++) {
            const int first = b * q.block, last = std::min(first + q.block, q.padded_cols);
            const float largest = largest_magnitude(row, first, last);
            // where 127 / largest would overflow the block is as good as zero
            const V16 inverse = splat(largest > 1e-36f ? 127.0f / largest : 0.0f);
            int32_t total = 0;
            for (int k = first; k < last; k += 16)
                total += store_i8(q.q + size_t(t) * q.padded_cols + k, round_even(load(row + k) * inverse));
            q.scale[size_t(t) * q.blocks + b] = largest / 127.0f;
            q.sum[size_t(t) * q.blocks + b] = total;
        }
    }
}

// ---- products ----------------------------------------------------------------------------------------------------

// sums[r] += sum over i < k of a[r][i] * column(i), i ascending
template <int R, class Column>
inline void accumulate(const float* a, size_t stride, int k, Column column, V16* sums) {
    V16 s[R];
    for (int r = 0; r < R; r++) s[r] = sums[r];
    for (int i = 0; i < k; i++) {
        const V16 c = column(i);
        for (int r = 0; r < R; r++) s[r] = fma(splat(a[r * stride + i]), c, s[r]);
    }
    for (int r = 0; r < R; r++) sums[r] = s[r];
}

// Call f<R>() for the run-time number of rows.
template <int R = TILE_ROWS, class F>
inline void with_rows(int rows, F f) {
    if constexpr (R > 1)
        if (rows < R) return with_rows<R - 1>(rows, f);
    f(std::integral_constant<int, R>{});
}

template <int R>
inline void put(const Output& y, int t, int panel, const V16* sums) {
    for (int r = 0; r < R; r++) {
        float* to = y.y + size_t(t + r) * y.stride + panel * PANEL;
        V16 v = sums[r];
        if (y.bias) v = v + load(y.bias + panel * PANEL);
        store(to, y.add ? load(to) + v : v);
    }
}

inline V16 scales_of(const Weight& w, size_t index) {
    return w.scale16 ? load_bf16(w.scale16 + index * PANEL) : load(w.scale32 + index * PANEL);
}

// The values of a panel without their scale, u - zero, as float (padded_cols, 16).
inline void spread(const Weight& w, int panel, float* values) {
    if (w.kind == Kind::bf16) {
        const uint16_t* from = reinterpret_cast<const uint16_t*>(w.data + panel * w.panel_bytes());
        for (int k = 0; k < w.padded_cols; k += 2, from += 32, values += 32) {
            store(values, first_of_pairs(from));
            store(values + 16, second_of_pairs(from));
        }
        return;
    }
    alignas(64) uint8_t quads[8 * 64];
    const uint8_t* from = w.data + panel * w.panel_bytes();
    for (int k = 0; k < w.padded_cols; k += CHUNK, from += 64 * w.bits) {
        const size_t index = (size_t(panel) * w.groups + k / w.group);
        const V16 zero = w.zero ? load_u8(w.zero + index * PANEL) : splat(float(1 << (w.bits - 1)));
        unpack_chunk(w.bits, from, quads);
        for (int j = 0; j < CHUNK; j++, values += 16) store(values, load_column(quads + j / 4 * 64, j % 4) - zero);
    }
}

// Many rows go through a panel in blocks of columns that stay in the first cache, with their sums beside them.
constexpr int FLOAT_COLUMNS = 256;
constexpr int FLOAT_ROWS = 96;     // a multiple of every TILE_ROWS but AVX-512's, where the last tile is smaller

inline size_t float_scratch_bytes(const Weight& w) { return size_t(w.padded_cols) * 64 + FLOAT_ROWS * 64; }

// A panel as bfloat16, for a few rows: read once, so not spread.
template <int R>
inline void few_bf16(const uint16_t* pairs, int cols, const float* a, size_t stride, V16* sums) {
    for (int k = 0; k < cols; k += 2) {
        const V16 even = first_of_pairs(pairs + k * 16), odd = second_of_pairs(pairs + k * 16);
        for (int r = 0; r < R; r++) {
            sums[r] = fma(splat(a[r * stride + k]), even, sums[r]);
            sums[r] = fma(splat(a[r * stride + k + 1]), odd, sums[r]);
        }
    }
}

// sums += rows of `a` times columns [k0, k1) of a panel, which are whole groups where the weight has scales.
template <int R>
inline void add_columns(const Weight& w, int panel, const float* values, int k0, int k1, const float* a, size_t stride,
                        V16* sums) {
    const int step = w.kind == Kind::codes ? w.group : k1 - k0;
    for (int k = k0; k < k1; k += step) {
        const int end = std::min(k + step, k1);
        const auto column = [&](int i) { return load(values + size_t(k + i) * 16); };
        if (w.kind != Kind::codes) {
            accumulate<R>(a + k, stride, end - k, column, sums);
            continue;
        }
        V16 part[R];
        for (V16& p : part) p = splat(0);
        accumulate<R>(a + k, stride, end - k, column, part);
        const V16 scale = scales_of(w, size_t(panel) * w.groups + k / w.group);
        for (int r = 0; r < R; r++) sums[r] = fma(part[r], scale, sums[r]);
    }
}

inline void linear_float(const Weight& w, const float* x, size_t stride, int begin, int end, int first, int last,
                         const Output& y, uint8_t* scratch) {
    float* spread_out = reinterpret_cast<float*>(scratch);
    float* totals = spread_out + size_t(w.padded_cols) * 16;
    const int columns = w.kind == Kind::codes ? std::max(w.group, FLOAT_COLUMNS / w.group * w.group) : FLOAT_COLUMNS;
    for (int panel = first; panel < last; panel++) {
        const uint8_t* data = w.data + panel * w.panel_bytes();
        if (w.kind == Kind::bf16 && end - begin <= TILE_ROWS) {
            with_rows(end - begin, [&](auto rows) {
                constexpr int R = decltype(rows)::value;
                V16 sums[R];
                for (V16& s : sums) s = splat(0);
                few_bf16<R>(reinterpret_cast<const uint16_t*>(data), w.padded_cols, x + size_t(begin) * stride, stride, sums);
                put<R>(y, begin, panel, sums);
            });
            continue;
        }
        if (w.kind != Kind::f32) spread(w, panel, spread_out);
        const float* values = w.kind == Kind::f32 ? reinterpret_cast<const float*>(data) : spread_out;
        for (int t0 = begin; t0 < end; t0 += FLOAT_ROWS) {
            const int t1 = std::min(t0 + FLOAT_ROWS, end);
            for (int k0 = 0; k0 < w.padded_cols; k0 += columns) {
                const int k1 = std::min(k0 + columns, w.padded_cols);
                for (int t = t0; t < t1; t += TILE_ROWS) {
                    with_rows(std::min(TILE_ROWS, t1 - t), [&](auto rows) {
                        constexpr int R = decltype(rows)::value;
                        float* kept = totals + size_t(t - t0) * 16;
                        V16 sums[R];
                        for (int r = 0; r < R; r++) sums[r] = k0 ? load(kept + r * 16) : splat(0);
                        add_columns<R>(w, panel, values, k0, k1, x + size_t(t) * stride, stride, sums);
                        if (k1 == w.padded_cols) put<R>(y, t, panel, sums);
                        else for (int r = 0; r < R; r++) store(kept + r * 16, sums[r]);
                    });
                }
            }
        }
    }
}

// ---- attention ---------------------------------------------------------------------------------------------------

template <class T>
inline V16 load_cached(const T* p) {
    if constexpr (sizeof(T) == 1) return load_i8(p);
    else if constexpr (sizeof(T) == 2) return load_f16(p);
    else return load(p);
}

// Turn row r's scores [begin, length) into exp(score - most), zero where it does not see, and scale what was summed before.
inline void weigh(const PageAttention& a, int r, int begin, int length) {
    float* scores = a.scores + size_t(r) * PAGE;
    const int first = a.first[r], seen = a.seen[r];
    constexpr float nothing = -std::numeric_limits<float>::infinity();
    for (int i = begin; i < first; i++) scores[i] = nothing;
    for (int i = seen; i < length; i++) scores[i] = nothing;
    V16 most = splat(nothing);
    for (int i = begin; i < length; i += 16) most = larger(most, load(scores + i));
    const float before = a.most[r], now = std::max(before, largest_of(most));
    a.most[r] = now;
    V16 total = splat(0);
    for (int i = begin; i < length; i += 16) {
        const V16 p = exponential(load(scores + i) - splat(now));
        store(scores + i, p);
        total = total + p;
    }
    // exp(-inf) came out as 1e-38: what is not seen must weigh nothing
    float lost = 0;
    for (int i = begin; i < first; i++) lost += scores[i], scores[i] = 0;
    for (int i = seen; i < length; i++) lost += scores[i], scores[i] = 0;
    const float shrink = before == nothing ? 0.0f : std::exp(before - now);
    a.total[r] = a.total[r] * shrink + (sum_of(total) - lost);
    float* out = a.out + size_t(r) * a.head_dim;
    for (int d = 0; d < a.head_dim; d += 16) store(out + d, load(out + d) * splat(shrink));
}

template <class T>
inline void attend_typed(const PageAttention& a) {
    const T* keys = static_cast<const T*>(a.keys);
    const T* values = static_cast<const T*>(a.values);
    constexpr bool SCALED = sizeof(T) == 1;
    for (int r0 = 0; r0 < a.rows; r0 += TILE_ROWS) {
        with_rows(std::min(TILE_ROWS, a.rows - r0), [&](auto rows) {
            constexpr int R = decltype(rows)::value;
            int begin = PAGE, length = 0;   // of what any of these rows sees
            for (int r = r0; r < r0 + R; r++)
                if (a.first[r] < a.seen[r]) begin = std::min(begin, a.first[r]), length = std::max(length, a.seen[r]);
            if (!length) return;
            begin = begin / 16 * 16;
            const int whole = (length + 15) / 16 * 16;
            V16 sums[R];
            for (int p = begin; p < whole; p += 16) {
                for (V16& s : sums) s = splat(0);
                accumulate<R>(a.q + size_t(r0) * a.head_dim, a.head_dim, a.head_dim,
                              [&](int d) { return load_cached(keys + d * PAGE + p); }, sums);
                if constexpr (SCALED)
                    for (V16& s : sums) s = s * load(a.key_scales + p);
                if (a.softcap > 0)
                    for (V16& s : sums) s = softcapped(s, splat(a.softcap));
                for (int r = 0; r < R; r++) store(a.scores + size_t(r0 + r) * PAGE + p, sums[r]);
            }
            for (int r = r0; r < r0 + R; r++) {
                if (a.first[r] < a.seen[r]) weigh(a, r, begin, whole);
                else std::memset(a.scores + size_t(r) * PAGE + begin, 0, (whole - begin) * sizeof(float));
                if constexpr (SCALED) {
                    float* weights = a.scores + size_t(r) * PAGE;
                    for (int p = begin; p < whole; p += 16) store(weights + p, load(weights + p) * load(a.value_scales + p));
                }
            }
            for (int d = 0; d < a.head_dim; d += 16) {
                for (int r = 0; r < R; r++) sums[r] = load(a.out + size_t(r0 + r) * a.head_dim + d);
                accumulate<R>(a.scores + size_t(r0) * PAGE + begin, PAGE, length - begin,
                              [&](int p) { return load_cached(values + size_t(begin + p) * a.head_dim + d); }, sums);
                for (int r = 0; r < R; r++) store(a.out + size_t(r0 + r) * a.head_dim + d, sums[r]);
            }
        });
    }
}

inline void attend(const PageAttention& a) {
    switch (a.type) {
        case CacheType::f16: return attend_typed<uint16_t>(a);
        case CacheType::f32: return attend_typed<float>(a);
        case CacheType::i8: return attend_typed<int8_t>(a);
    }
}

}  // namespace
}  // namespace zeropoint
