// Every table of kernels that this machine can run, and the emulated ones, against loops written straight from weight.h.
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define ZEROPOINT_EMULATED
#include "cpu.h"
#include "kernels.h"
#include "program.h"
#include "tiles.h"

namespace zeropoint {
const Kernels& emulated_avx512_kernels();
const Kernels& emulated_amx_kernels();
}  // namespace zeropoint

using namespace zeropoint;

namespace {

int failures = 0, checks = 0;

void expect(bool holds, const std::string& what) {
    ++checks;
    if (holds) return;
    if (++failures <= 20) std::printf("FAILED  %s\n", what.c_str());
}

std::mt19937 random_source(7);
int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_source); }
float random_float(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_source); }

// Exactly `count` values, aligned to 64, so that a sanitizer sees what is read or written past them.
template <class T>
struct Array {
    explicit Array(size_t count) : count(count) {
        void* memory = nullptr;
        if (posix_memalign(&memory, 64, std::max<size_t>(count * sizeof(T), 1))) std::abort();
        data.reset(static_cast<T*>(memory));
        std::memset(memory, 0, count * sizeof(T));
    }
    T& operator[](size_t i) { return data.get()[i]; }
    T* get() { return data.get(); }

    struct Free {
        void operator()(T* p) const { std::free(p); }
    };
    size_t count;
    std::unique_ptr<T, Free> data;
};

float from_bf16(uint16_t half) {
    const uint32_t bits = uint32_t(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

uint16_t to_bf16(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool same(float a, float b) { return std::memcmp(&a, &b, 4) == 0; }

enum class Values { random, largest, smallest, opposite };

struct Case {
    int bits, rows, cols, group, block, x_rows;
    bool zeros, scale16, bias, add;
    Values values;

    std::string text() const {
        return std::to_string(bits) + " bits, " + std::to_string(rows) + " x " + std::to_string(cols) + ", group " +
               std::to_string(group) + ", block " + std::to_string(block) + ", " + std::to_string(x_rows) + " rows of x" +
               (zeros ? ", zeros" : "") + (scale16 ? ", scale16" : ", scale32") + (bias ? ", bias" : "") +
               (add ? ", add" : "") + ", values " + std::to_string(int(values));
    }
};

// Codes, and the same codes in planes: where weight.h says that the code of row r and column k lies.
struct Codes {
    Codes(const Case& c, int padded_rows, int padded_cols)
        : cols(padded_cols), code(size_t(padded_rows) * padded_cols), planes(size_t(padded_rows) * padded_cols * c.bits / 8) {
        for (int r = 0; r < padded_rows; ++r)
            for (int k = 0; k < padded_cols; ++k) {
                const int most = (1 << c.bits) - 1;
                int u = random_int(0, most);
                if (c.values == Values::largest) u = most;
                if (c.values == Values::smallest) u = 0;
                if (c.values == Values::opposite) u = k % 2 ? most : 0;
                code[size_t(r) * cols + k] = static_cast<uint8_t>(u);
                place(c.bits, r, k, u);
            }
    }

    void place(int bits, int r, int k, int u) {
        const int quad = k % 32 / 4, byte = 4 * (r % 16) + k % 4;
        size_t at = (size_t(r / 16) * cols / 32 + k / 32) * 64 * bits;       // the chunk
        if (bits == 8) {
            planes[at + 64 * quad + byte] = static_cast<uint8_t>(u);
            return;
        }
        if (bits >= 4) {
            planes[at + 64 * (quad % 4) + byte] |= static_cast<uint8_t>((u & 15) << (quad / 4 * 4));
            at += 4 * 64;
            u >>= 4;
        }
        if (bits == 2 || bits == 3 || bits == 6 || bits == 7) {
            planes[at + 64 * (quad % 2) + byte] |= static_cast<uint8_t>((u & 3) << (quad / 2 * 2));
            at += 2 * 64;
            u >>= 2;
        }
        if (bits == 3 || bits == 5 || bits == 7) planes[at + byte] |= static_cast<uint8_t>((u & 1) << quad);
    }

    int cols;
    Array<uint8_t> code, planes;
};

struct Table {
    const Kernels* kernels;
    std::string name;
};

void check_integer(const std::vector<Table>& tables, const Case& c) {
    const int padded_cols = round_up(c.cols, CHUNK), padded_rows = round_up(c.rows, PANEL);
    const int group = c.group ? c.group : padded_cols, groups = (padded_cols + group - 1) / group;
    const int panels = padded_rows / PANEL, blocks = (padded_cols + c.block - 1) / c.block;

    Codes codes(c, padded_rows, padded_cols);
    Array<uint16_t> scale16(size_t(panels) * groups * PANEL);
    Array<float> scale32(scale16.count);
    Array<uint8_t> zero(scale16.count);
    for (int panel = 0; panel < panels; ++panel)
        for (int g = 0; g < groups; ++g)
            for (int r = 0; r < PANEL; ++r) {
                const size_t i = (size_t(panel) * groups + g) * PANEL + r;
                const bool real = panel * PANEL + r < c.rows;
                scale32[i] = real ? random_float(0.001f, 0.02f) : 0.0f;
                scale16[i] = to_bf16(scale32[i]);
                if (c.scale16) scale32[i] = from_bf16(scale16[i]);
                zero[i] = static_cast<uint8_t>(random_int(0, (1 << c.bits) - 1));
                if (c.values == Values::largest) zero[i] = 0;
                if (c.values == Values::smallest) zero[i] = static_cast<uint8_t>((1 << c.bits) - 1);
            }
    const Weight w = {Kind::codes, c.bits, c.rows, c.cols, padded_cols, group, groups, c.block, codes.planes.get(),
                      c.scale16 ? scale16.get() : nullptr, c.scale16 ? nullptr : scale32.get(),
                      c.zeros ? zero.get() : nullptr};

    Array<int8_t> q(size_t(c.x_rows) * padded_cols);
    Array<float> x_scale(size_t(c.x_rows) * blocks);
    Array<int32_t> x_sum(x_scale.count);
    for (int t = 0; t < c.x_rows; ++t)
        for (int k = 0; k < c.cols; ++k) {
            int value = random_int(-128, 127);
            if (c.values == Values::largest || c.values == Values::smallest) value = t % 2 ? 127 : -128;
            if (c.values == Values::opposite) value = (k + t) % 2 ? 127 : -128;
            q[size_t(t) * padded_cols + k] = static_cast<int8_t>(value);
            x_sum[size_t(t) * blocks + k / c.block] += value;
        }
    for (size_t i = 0; i < x_scale.count; ++i) x_scale[i] = random_float(0.001f, 0.1f);
    const QInput x = {q.get(), x_scale.get(), x_sum.get(), padded_cols, c.block, blocks};

    const size_t stride = padded_rows + (c.bits % 2 ? 16 : 0);
    Array<float> bias(padded_rows), before(c.x_rows * stride), expected(before.count);
    for (int r = 0; r < c.rows; ++r) bias[r] = random_float(-1, 1);
    for (int t = 0; t < c.x_rows; ++t)
        for (int r = 0; r < c.rows; ++r) before[t * stride + r] = random_float(-1, 1);

    for (size_t i = 0; i < before.count; ++i) expected[i] = before[i];
    for (int t = 0; t < c.x_rows; ++t)
        for (int r = 0; r < padded_rows; ++r) {
            float y = 0;
            for (int b = 0; b < blocks; ++b) {
                const size_t scale = (size_t(r / 16) * groups + b * c.block / group) * 16 + r % 16;
                const int64_t z = c.zeros ? zero[scale] : 1 << (c.bits - 1);
                int64_t dot = 0;
                for (int k = b * c.block; k < std::min((b + 1) * c.block, padded_cols); ++k)
                    dot += (codes.code[size_t(r) * padded_cols + k] - z) * q[size_t(t) * padded_cols + k];
                y = std::fma(static_cast<float>(dot), x_scale[size_t(t) * blocks + b] * scale32[scale], y);
            }
            if (c.bias) y += bias[r];
            float& to = expected[t * stride + r];
            to = c.add ? to + y : y;
        }

    for (const Table& table : tables) {
        const Kernels& kernels = *table.kernels;
        Array<uint8_t> scratch(kernels.scratch_bytes(w));
        for (const bool few : {true, false}) {
            Array<float> y(before.count);
            std::memcpy(y.get(), before.get(), 4 * before.count);
            const Output out = {y.get(), stride, c.bias ? bias.get() : nullptr, c.add};
            // in parts, as threads would: panels [0, 1), [1, n); few: 8, 1, 8, 1 ... rows; many: 1 row, then the others
            int begin = 0, turn = 0;
            while (begin < c.x_rows) {
                int end = few ? begin + (turn++ % 2 ? 1 : MOST_FEW) : turn++ || c.x_rows % 2 ? c.x_rows : 1;
                end = std::min(end, c.x_rows);
                for (int first : {0, 1}) {
                    const int last = first ? panels : std::min(1, panels);
                    if (first >= last) continue;
                    if (few) kernels.linear_few(w, x, begin, end, first, last, out);
                    else kernels.linear_many(w, x, begin, end, first, last, out, scratch.get());
                }
                begin = end;
            }
            size_t wrong = 0;
            for (size_t i = 0; i < y.count; ++i) wrong += !same(y[i], expected[i]);
            expect(wrong == 0, table.name + (few ? " linear_few: " : " linear_many: ") + std::to_string(wrong) + " of " +
                                   std::to_string(y.count) + " differ; " + c.text());
        }
    }
}

void check_bf16(const std::vector<Table>& tables, int rows, int cols, int x_rows, bool bias_there, bool add) {
    const int padded_cols = round_up(cols, CHUNK), padded_rows = round_up(rows, PANEL), panels = padded_rows / PANEL;
    Array<uint16_t> weight(size_t(padded_rows) * padded_cols), x(size_t(x_rows) * padded_cols);
    Array<double> value(weight.count);
    for (int r = 0; r < rows; ++r)
        for (int k = 0; k < cols; ++k) {
            const uint16_t half = to_bf16(random_float(-1, 1));
            weight[size_t(r / 16) * 16 * padded_cols + k / 2 * 32 + r % 16 * 2 + k % 2] = half;
            value[size_t(r) * padded_cols + k] = from_bf16(half);
        }
    for (int t = 0; t < x_rows; ++t)
        for (int k = 0; k < cols; ++k) x[size_t(t) * padded_cols + k] = to_bf16(random_float(-1, 1));
    const Weight w = {Kind::bf16, 16, rows, cols, padded_cols, padded_cols, 1, CHUNK,
                      reinterpret_cast<const uint8_t*>(weight.get()), nullptr, nullptr, nullptr};
    Array<float> bias(padded_rows), before(size_t(x_rows) * padded_rows);
    for (int r = 0; r < rows; ++r) bias[r] = random_float(-1, 1);
    for (int t = 0; t < x_rows; ++t)
        for (int r = 0; r < rows; ++r) before[size_t(t) * padded_rows + r] = random_float(-1, 1);

    for (const Table& table : tables) {
        if (!table.kernels->linear_bf16) continue;
        Array<uint8_t> scratch(table.kernels->float_scratch_bytes(w));
        Array<float> y(before.count);
        std::memcpy(y.get(), before.get(), 4 * before.count);
        const Output out = {y.get(), size_t(padded_rows), bias_there ? bias.get() : nullptr, add};
        const int middle = x_rows % 5 == 1 ? 1 : 0;
        for (int first : {0, 1}) {
            const int last = first ? panels : 1;
            if (middle) table.kernels->linear_bf16(w, x.get(), padded_cols, 0, middle, first, last, out, scratch.get());
            table.kernels->linear_bf16(w, x.get(), padded_cols, middle, x_rows, first, last, out, scratch.get());
        }
        size_t wrong = 0;
        for (int t = 0; t < x_rows; ++t)
            for (int r = 0; r < padded_rows; ++r) {
                double exact = 0, size = 0;
                for (int k = 0; k < padded_cols; ++k) {
                    const double product = value[size_t(r) * padded_cols + k] * from_bf16(x[size_t(t) * padded_cols + k]);
                    exact += product;
                    size += std::fabs(product);
                }
                const size_t i = size_t(t) * padded_rows + r;
                exact += (bias_there ? bias[r] : 0) + (add ? before[i] : 0);
                // each of at most cols + 2 additions rounds by half a unit of at most the sum of all sizes
                wrong += !(std::fabs(y[i] - exact) <= (padded_cols + 2) * 0x1p-24 * (size + 2));
            }
        expect(wrong == 0, table.name + " linear_bf16: " + std::to_string(wrong) + " wrong; " + std::to_string(rows) +
                               " x " + std::to_string(cols) + ", " + std::to_string(x_rows) + " rows of x");
    }
}

int halves_calls = 0;
void (*halves_kernel)(const Weight&, const uint16_t*, size_t, int, int, int, int, const Output&, uint8_t*);

// The logits of one linear of bfloat16 weights, whose inputs a program has rounded to bfloat16, over `count` tokens.
std::vector<float> run_halves(const Kernels& kernels, int threads, int rows, int cols, int count,
                              const std::vector<float>& table_values, const std::vector<uint16_t>& weight_values) {
    auto pool = std::make_shared<Pool>(threads);
    auto table = std::make_shared<StoredWeight>(Kind::f32, 0, count, cols, cols, false, false);
    auto weight = std::make_shared<StoredWeight>(Kind::bf16, 0, rows, cols, cols, false, false);
    table->put_f32(*pool, 0, count, table_values.data());
    weight->put_bf16(*pool, 0, rows, weight_values.data());
    Program program(pool, kernels);
    const int x = program.slot(cols), rounded = program.slot(cols), y = program.slot(rows);
    const auto step = [](Step::Kind kind, int a, int out) {
        Step made;
        made.kind = kind, made.a = a, made.out = out;
        return made;
    };
    Step embed = step(Step::Kind::embed, NONE, x), linear = step(Step::Kind::linear, rounded, NONE);
    embed.parts.push_back({table, nullptr, x});
    linear.parts.push_back({weight, nullptr, y});
    linear.halves = true;
    program.push(embed);
    program.push(step(Step::Kind::halve, x, rounded));
    program.push(linear);
    program.set_result(y);
    std::vector<int32_t> tokens(count);
    for (int t = 0; t < count; ++t) tokens[t] = t;
    Cache cache(0, 1, 16, CacheType::f32);
    std::vector<float> logits(size_t(count) * round_up(rows, CHUNK));
    program.begin_head();
    program.run(cache, tokens.data(), count, count, logits.data());
    return logits;
}

// A program multiplies bfloat16 as such from a tile of rows on, where the kernels can, and the same numbers elsewhere.
void check_halves() {
    Kernels counting = emulated_amx_kernels();
    halves_kernel = counting.linear_bf16;
    counting.linear_bf16 = [](const Weight& w, const uint16_t* x, size_t stride, int begin, int end, int first, int last,
                              const Output& y, uint8_t* scratch) {
        ++halves_calls;
        halves_kernel(w, x, stride, begin, end, first, last, y, scratch);
    };
    const int rows = 40, cols = 90, stride = round_up(rows, CHUNK);
    for (int count : {1, HALVES_ROWS - 1, HALVES_ROWS, 33, 70}) {
        std::vector<float> x(size_t(count) * cols);
        std::vector<uint16_t> weight(size_t(rows) * cols);
        for (float& value : x) value = random_float(-1, 1);
        for (uint16_t& value : weight) value = to_bf16(random_float(-1, 1));
        const std::string what = "halves, " + std::to_string(count) + " rows: ";
        const auto run = [&](const Kernels& kernels, int threads) {
            return run_halves(kernels, threads, rows, cols, count, x, weight);
        };
        halves_calls = 0;
        const std::vector<float> tiles = run(counting, 1), plain = run(portable_kernels(), 1);
        expect((halves_calls > 0) == (count >= HALVES_ROWS), what + std::to_string(halves_calls) + " calls of linear_bf16");
        expect(run(emulated_amx_kernels(), 3) == tiles, what + "threads change bits");
        if (count < HALVES_ROWS) expect(tiles == plain, what + "differ from portable");
        size_t wrong = 0, rounding = 0;
        for (int t = 0; t < count; ++t)
            for (int r = 0; r < rows; ++r) {
                double exact = 0, size = 0, unrounded = 0;
                for (int k = 0; k < cols; ++k) {
                    const double w = from_bf16(weight[size_t(r) * cols + k]), value = x[size_t(t) * cols + k];
                    const double product = w * from_bf16(to_bf16(static_cast<float>(value)));
                    exact += product, size += std::fabs(product), unrounded += w * value;
                }
                const double bound = (cols + 2) * 0x1p-24 * size;
                for (const auto& found : {tiles, plain}) wrong += !(std::fabs(found[size_t(t) * stride + r] - exact) <= bound);
                rounding += std::fabs(unrounded - exact) > bound;
            }
        expect(wrong == 0, what + std::to_string(wrong) + " wrong");
        expect(rounding > 0, what + "the inputs are not rounded");
    }
}

template <class T>
void expect_same(Array<T>& got, Array<T>& expected, const std::string& what) {
    size_t wrong = 0;
    for (size_t i = 0; i < got.count; ++i) wrong += std::memcmp(&got[i], &expected[i], sizeof(T)) != 0;
    expect(wrong == 0, what + ": " + std::to_string(wrong) + " of " + std::to_string(got.count) + " differ from portable");
}

// floats.h is compiled over each V16: the same operations in the same order, so the same bits.
void check_floats(const Table& table) {
    const Kernels &kernels = *table.kernels, &portable = portable_kernels();
    const int cols = 96, padded = 96;
    Array<float> x(16 * padded), other(x.count), a(x.count), b(x.count);
    for (size_t i = 0; i < x.count; ++i) {
        x[i] = random_float(-9, 9) * (i % 7 ? 1.0f : 1e-4f);
        other[i] = random_float(-9, 9);
    }
    for (int k = 0; k < padded; ++k) x[k] = 0;
    x[padded + 3] = 1e30f;
    x[padded + 4] = -7e4f;
    x[padded + 5] = 6e-8f;
    const auto both = [&](const char* name, auto run) {
        run(kernels, a);
        run(portable, b);
        expect_same(a, b, table.name + " " + name);
    };
    both("add", [&](const Kernels& k, Array<float>& y) { k.add(x.get(), other.get(), x.count, y.get()); });
    for (float cap : {0.5f, 30.0f}) {
        both("softcap", [&](const Kernels& k, Array<float>& y) { k.softcap(x.get(), cap, x.count, y.get()); });
        size_t wrong = 0;
        for (size_t i = 0; i < x.count; ++i) {
            const double expected = cap * std::tanh(double(x[i]) / cap);
            wrong += !(std::fabs(a[i] - expected) <= 1e-6 * std::fabs(expected));   // 8 ulp
        }
        expect(wrong == 0, table.name + " softcap: " + std::to_string(wrong) + " wrong");
    }
    both("rms_norm", [&](const Kernels& k, Array<float>& y) {
        for (int t = 0; t < 16; ++t) k.rms_norm(x.get() + t * padded, other.get(), 1e-6f, cols, y.get() + t * padded);
    });
    for (int width : {cols, cols - 5}) {
        Array<float> row(padded), gain(padded), bias(padded), y_a(16 * padded), y_b(16 * padded);
        for (int k = 0; k < width; ++k) gain[k] = other[k], bias[k] = other[padded + k];
        size_t wrong = 0;
        for (int t = 2; t < 16; ++t) {
            double mean = 0, square = 0;
            for (int k = 0; k < width; ++k) row[k] = x[t * padded + k], mean += row[k] / double(width);
            for (int k = 0; k < width; ++k) square += (row[k] - mean) * (row[k] - mean) / width;
            kernels.layer_norm(row.get(), gain.get(), bias.get(), 1e-6f, width, y_a.get() + t * padded);
            portable.layer_norm(row.get(), gain.get(), bias.get(), 1e-6f, width, y_b.get() + t * padded);
            for (int k = 0; k < padded; ++k) {
                const double expected = k < width ? (row[k] - mean) / std::sqrt(square + 1e-6) * gain[k] + bias[k] : 0;
                wrong += !(std::fabs(y_a[t * padded + k] - expected) <= 1e-5);
            }
        }
        expect_same(y_a, y_b, table.name + " layer_norm");
        expect(wrong == 0, table.name + " layer_norm: " + std::to_string(wrong) + " wrong");
    }
    for (int activation = 0; activation < 4; ++activation)
        both("activated", [&](const Kernels& k, Array<float>& y) { k.gated(x.get(), nullptr, activation, x.count, y.get()); });
    for (int activation = 0; activation < 4; ++activation)
        both("gated", [&](const Kernels& k, Array<float>& y) { k.gated(x.get(), other.get(), activation, x.count, y.get()); });
    for (int half : {8, 16, 24, 48})
        both("rope", [&](const Kernels& k, Array<float>& y) {
            std::memcpy(y.get(), x.get(), 4 * x.count);
            k.rope(y.get() + padded, other.get(), other.get() + half, half);
        });
    Array<uint16_t> half_a(x.count), half_b(x.count);
    kernels.to_half(x.get(), x.count, half_a.get());
    portable.to_half(x.get(), x.count, half_b.get());
    expect_same(half_a, half_b, table.name + " to_half");

    Array<int8_t> q[2] = {Array<int8_t>(x.count), Array<int8_t>(x.count)};
    Array<float> scale[2] = {Array<float>(16 * 3), Array<float>(16 * 3)};
    Array<int32_t> sum[2] = {Array<int32_t>(16 * 3), Array<int32_t>(16 * 3)};
    using How = InputRounding::Kind;
    const InputRounding roundings[] = {{}, {How::token, 1, 0}, {How::fixed, 0.01f, -100}, {How::fixed, 3, 90}};
    for (const InputRounding& how : roundings) {
        for (int i = 0; i < 2; ++i) {
            const QInput to = {q[i].get(), scale[i].get(), sum[i].get(), padded, 32, 3};
            (i ? portable : kernels).quantize(x.get(), padded, cols, to, how, 0, 16);
        }
        const std::string name = table.name + " quantize " + std::to_string(int(how.kind));
        expect_same(q[0], q[1], name + " q");
        expect_same(scale[0], scale[1], name + " scale");
        expect_same(sum[0], sum[1], name + " sum");
    }

    // linear_float with 37 rows (3 panels) of every kind, 1..16 rows of x
    const int rows = 37, panels = 3;
    for (int bits : {2, 3, 4, 5, 6, 7, 8, 16, 32}) {
        const Case c = {std::min(bits, 8), rows, cols, 32, 32, 16, true, false, false, false, Values::random};
        Codes codes(c, panels * PANEL, padded);
        Array<float> f32(size_t(panels) * PANEL * padded), scales(panels * 3 * PANEL);
        Array<uint16_t> bf16(f32.count);
        Array<uint8_t> zero(scales.count);
        for (size_t i = 0; i < f32.count; ++i) {
            f32[i] = random_float(-1, 1);
            bf16[i] = to_bf16(f32[i]);
        }
        for (size_t i = 0; i < scales.count; ++i) {
            scales[i] = random_float(0.01f, 0.02f);
            zero[i] = static_cast<uint8_t>(random_int(0, (1 << c.bits) - 1));
        }
        Weight w = {Kind::codes, c.bits, rows, cols, padded, 32, 3, 32, codes.planes.get(), nullptr, scales.get(), zero.get()};
        if (bits == 16) w.kind = Kind::bf16, w.data = reinterpret_cast<const uint8_t*>(bf16.get());
        if (bits == 32) w.kind = Kind::f32, w.data = reinterpret_cast<const uint8_t*>(f32.get());
        for (int x_rows = 1; x_rows <= 16; ++x_rows) {
            Array<float> y[2] = {Array<float>(x_rows * panels * PANEL), Array<float>(x_rows * panels * PANEL)};
            for (int i = 0; i < 2; ++i) {
                const Kernels& k = i ? portable : kernels;
                Array<uint8_t> scratch(k.float_scratch_bytes(w));
                k.linear_float(w, other.get(), padded, 0, x_rows, 0, panels, {y[i].get(), panels * PANEL, nullptr, false},
                               scratch.get());
            }
            expect_same(y[0], y[1], table.name + " linear_float, bits " + std::to_string(bits));
        }
    }

}

// Keys and values of one head in a page, and what they stand for.
struct CachedPage {
    CachedPage(CacheType type, int head_dim)
        : type(type), head_dim(head_dim), keys(size_t(head_dim) * PAGE * item_bytes(type)), values(keys.count),
          key_scales(PAGE), value_scales(PAGE), key(size_t(head_dim) * PAGE), value(key.count) {
        for (int p = 0; p < PAGE; ++p) {
            key_scales[p] = random_float(0.001f, 0.02f);
            value_scales[p] = random_float(0.001f, 0.02f);
            for (int d = 0; d < head_dim; ++d) {
                key[size_t(d) * PAGE + p] = put(keys.get(), size_t(d) * PAGE + p, key_scales[p]);
                value[size_t(p) * head_dim + d] = put(values.get(), size_t(p) * head_dim + d, value_scales[p]);
            }
        }
    }

    // Put a random number there and return it as it is stored.
    double put(uint8_t* to, size_t i, float scale) {
        const float x = random_float(-1, 1);
        if (type == CacheType::f32) return reinterpret_cast<float*>(to)[i] = x;
        if (type == CacheType::i8) return double(scale) * (reinterpret_cast<int8_t*>(to)[i] = static_cast<int8_t>(random_int(-127, 127)));
        const int sixteenths = random_int(0, 16);               // a half, 1 + n / 16, made by hand
        reinterpret_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(0x3c00 + 64 * sixteenths);
        return 1 + sixteenths / 16.0;
    }

    CacheType type;
    int head_dim;
    Array<uint8_t> keys, values;
    Array<float> key_scales, value_scales;
    Array<double> key, value;                                   // (head_dim, PAGE), (PAGE, head_dim)
};

// Two pages, as a softmax over both in double has it; and every table to the same bits. windowed: some queries see only
// the end of what others see, or nothing of a page. softcap: of the scores; 0 for none.
void check_attention(const std::vector<Table>& tables, CacheType type, int head_dim, int queries, bool windowed, float softcap) {
    CachedPage pages[2] = {CachedPage(type, head_dim), CachedPage(type, head_dim)};
    const std::string what = " attend, " + std::to_string(8 * item_bytes(type)) + " bits, " + std::to_string(head_dim) +
                             " features, " + std::to_string(queries) + " queries" + (windowed ? ", windowed" : "") +
                             (softcap > 0 ? ", softcap" : "");
    Array<float> query(size_t(queries) * head_dim);
    for (size_t i = 0; i < query.count; ++i) query[i] = random_float(-1, 1);
    std::vector<int> seen[2] = {std::vector<int>(queries), std::vector<int>(queries)};
    for (int r = 0; r < queries; ++r) seen[0][r] = random_int(1, PAGE), seen[1][r] = r % 3 ? random_int(0, PAGE) : 0;
    std::vector<int> first[2] = {std::vector<int>(queries), std::vector<int>(queries)};
    for (int r = 0; windowed && r < queries; ++r) {
        const bool later = seen[1][r] > 0 && r % 2;               // then nothing of the first page
        first[0][r] = later ? PAGE : random_int(0, seen[0][r] - 1);
        first[1][r] = later ? random_int(0, seen[1][r] - 1) : 0;
    }

    Array<double> expected(query.count);
    for (int r = 0; r < queries; ++r) {
        std::vector<double> score;
        for (int i = 0; i < 2; ++i)
            for (int p = first[i][r]; p < seen[i][r]; ++p) {
                double s = 0;
                for (int d = 0; d < head_dim; ++d) s += double(query[size_t(r) * head_dim + d]) * pages[i].key[size_t(d) * PAGE + p];
                score.push_back(softcap > 0 ? softcap * std::tanh(s / softcap) : s);
            }
        const double most = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& s : score) total += s = std::exp(s - most);
        size_t at = 0;
        for (int i = 0; i < 2; ++i)
            for (int p = first[i][r]; p < seen[i][r]; ++p, ++at)
                for (int d = 0; d < head_dim; ++d)
                    expected[size_t(r) * head_dim + d] += score[at] / total * pages[i].value[size_t(p) * head_dim + d];
    }

    Array<float> bits(query.count);
    for (const Table& table : tables) {
        Array<float> out(query.count), scores(size_t(queries) * PAGE), most(queries), total(queries);
        for (int r = 0; r < queries; ++r) most[r] = -INFINITY;
        for (int i = 0; i < 2; ++i) {
            const bool scaled = type == CacheType::i8;
            table.kernels->attend({query.get(), pages[i].keys.get(), pages[i].values.get(),
                                   scaled ? pages[i].key_scales.get() : nullptr, scaled ? pages[i].value_scales.get() : nullptr,
                                   type, queries, head_dim, first[i].data(), seen[i].data(), softcap, scores.get(), most.get(),
                                   total.get(), out.get()});
        }
        size_t wrong = 0;
        for (size_t i = 0; i < out.count; ++i) {
            const double found = double(out[i]) / total[i / head_dim], most_value = type == CacheType::i8 ? 127 * 0.02 : 2;
            // scores of some tens, each summed to 1e-6 of that, are the exponents; the weights then sum to 1
            wrong += !(std::fabs(found - expected[i]) <= 2e-5 * most_value);
        }
        expect(wrong == 0, table.name + what + ": " + std::to_string(wrong) + " wrong");
        if (&table == &tables.front()) std::memcpy(bits.get(), out.get(), 4 * out.count);
        else expect_same(out, bits, table.name + what);
    }
}

// The emulated processor refuses what a real one would: run in a child, which must abort.
template <class F>
void expect_fault(const char* what, F run) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) _exit(1);
        run();
        _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    expect(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT, std::string("no fault: ") + what);
}

void check_faults() {
    using namespace zeropoint::emulated;
    static uint8_t config[64], memory[16 * 64];
    const auto shape = [](int tile, int rows, int bytes) {
        config[0] = 1;
        config[48 + tile] = static_cast<uint8_t>(rows);
        config[16 + 2 * tile] = static_cast<uint8_t>(bytes);
    };
    expect_fault("a tile before ldtilecfg", [] { _tile_loadd(4, memory, 64); });
    expect_fault("a tile after tilerelease", [&] {
        shape(4, 16, 64);
        _tile_loadconfig(config);
        _tile_release();
        _tile_loadd(4, memory, 64);
    });
    expect_fault("a tile without rows", [&] {
        shape(4, 16, 64);
        _tile_loadconfig(config);
        _tile_zero(5);
    });
    expect_fault("17 rows", [&] { shape(0, 17, 64), _tile_loadconfig(config), _tile_zero(0); });
    expect_fault("68 bytes", [&] { shape(0, 16, 68), _tile_loadconfig(config), _tile_zero(0); });
    expect_fault("rows without bytes", [&] { shape(0, 16, 0), _tile_loadconfig(config), _tile_zero(0); });
    expect_fault("reserved bytes", [&] { config[5] = 1, shape(0, 16, 64), _tile_loadconfig(config), _tile_zero(0); });
    expect_fault("mismatched shapes", [&] {
        shape(0, 16, 64), shape(4, 16, 32), shape(6, 16, 64);
        _tile_loadconfig(config);
        _tile_dpbssd(0, 4, 6);
    });
}

// Nothing but the instruction reads the configuration: gcc must be kept from removing the stores to it.
[[gnu::noinline]] void only_configure(int rows, int step) { emulated::configure_tiles(rows, step); }

void check_configuration() {
    const auto is = [](int tile, int rows, int bytes) {
        return emulated::tiles.rows(tile) == rows && emulated::tiles.row_bytes(tile) == bytes;
    };
    for (int rows = 1; rows <= 32; ++rows)
        for (int step : {32, 64}) {
            only_configure(rows, step);
            const int low = std::min(rows, 16), high = rows - low;
            const bool all = is(0, low, 64) && is(1, low, 64) && is(2, high, high ? 64 : 0) && is(3, high, high ? 64 : 0) &&
                             is(4, low, step) && is(5, high, high ? step : 0) && is(6, step / 4, 64) && is(7, step / 4, 64);
            expect(all, "tiles for " + std::to_string(rows) + " rows, step " + std::to_string(step));
        }
    emulated::_tile_release();
}

// The literal search of one group, from the lines above RangeSearch: errors in float64.
struct Found {
    float low, high;
    double error;
};

// The nearest number of the stored kind, or the next one above.
float as_stored(float scale, ScaleType stored, bool above) {
    if (stored == ScaleType::bf16) return from_bf16(uint16_t(to_bf16(scale) + above));
    if (stored == ScaleType::f32) return above ? std::nextafter(scale, INFINITY) : scale;
    _Float16 half = _Float16(scale);
    uint16_t bits;
    std::memcpy(&bits, &half, 2);
    bits = uint16_t(bits + above);
    std::memcpy(&half, &bits, 2);
    return float(half);
}

double literal_error(const RangeSearch& task, const float* x, const float* weights, float low, float high) {
    const Grid& g = task.grid;
    const float extent = g.symmetric ? std::max(-low, high) : high - low, steps = g.symmetric ? (g.q_max - g.q_min) / 2.0f : g.q_max - g.q_min;
    float scale = as_stored(extent / steps, g.stored, false);
    if (double(scale) * (steps + 0.5) < extent) scale = as_stored(extent / steps, g.stored, true);
    if (extent == 0) scale = 1;
    const float zero = g.symmetric ? 0 : std::min(std::max(std::nearbyint(g.q_min - low / scale), float(g.q_min)), float(g.q_max));
    double total = 0;
    for (int k = 0; k < task.group; ++k) {
        const float code = std::min(std::max(std::nearbyint(x[k] / scale + zero), float(g.q_min)), float(g.q_max));
        total += weights[k] * std::pow(std::fabs(double((code - zero) * scale) - x[k]), task.p);
    }
    return total;
}

Found literal_search(const RangeSearch& task, const float* x, const float* weights, float low, float high) {
    Found best{low, high, literal_error(task, x, weights, low, high)};
    const auto consider = [&](float lower, float upper) {
        const double error = literal_error(task, x, weights, lower, upper);
        if (error < best.error) best = {lower, upper, error};
    };
    for (int i = 0; i < task.both_count; ++i) consider(low * task.both[i], high * task.both[i]);
    const float fixed_high = best.high;
    for (int i = 0; i < task.single_count; ++i) consider(low * task.single[i], fixed_high);
    const float fixed_low = best.low;
    for (int i = 0; i < task.single_count; ++i) consider(fixed_low, high * task.single[i]);
    return best;
}

void check_search(const std::vector<Table>& tables, ScaleType stored, bool symmetric, int rows) {
    for (const int group : {1, 16, 33, 300})
        for (const float p : {2.0f, 1.5f}) {
            constexpr int GROUPS = 3;
            const int bits = random_int(2, 8);
            Array<float> values(size_t(rows) * GROUPS * group), weights(size_t(GROUPS) * group), both(12), single(6);
            Array<float> low(size_t(rows) * GROUPS), high(size_t(rows) * GROUPS);
            for (size_t i = 0; i < values.count; ++i) values[i] = random_float(-1, 1) * random_float(0, 1);
            for (size_t i = 0; i < weights.count; ++i) weights[i] = random_float(0, 1);
            for (int i = 0; i < 12; ++i) both[i] = 1.1f - 0.06f * i;
            for (int i = 0; i < 6; ++i) single[i] = 1.0f - 0.1f * i;
            for (int k = 0; k < group; ++k) values[k] = 0;                    // an empty group
            for (int i = 0; i < rows * GROUPS; ++i) {
                low[i] = high[i] = 0;
                for (int k = 0; k < group; ++k) {
                    low[i] = std::min(low[i], values[size_t(i) * group + k]);
                    high[i] = std::max(high[i], values[size_t(i) * group + k]);
                }
            }
            RangeSearch task{values.get(), weights.get(), rows, GROUPS, group, {-(1 << (bits - 1)), (1 << (bits - 1)) - 1, symmetric, stored},
                             p, both.get(), 12, single.get(), symmetric ? 0 : 6, nullptr, nullptr};
            Array<float> first_low(low.count), first_high(low.count);
            for (const Table& table : tables) {
                Array<float> found_low(low.count), found_high(low.count);
                std::memcpy(found_low.get(), low.get(), low.count * 4);
                std::memcpy(found_high.get(), high.get(), low.count * 4);
                task.low = found_low.get(), task.high = found_high.get();
                table.kernels->search_ranges(task);
                const std::string what = table.name + " ranges, " + std::to_string(bits) + " bits, group " + std::to_string(group);
                for (int i = 0; i < rows * GROUPS; ++i) {
                    const float* x = values.get() + size_t(i) * group;
                    const float* w = weights.get() + size_t(i % GROUPS) * group;
                    const Found best = literal_search(task, x, w, low[i], high[i]);
                    // sums of float32, and between two sweeps another of two equally good ranges
                    const double error = literal_error(task, x, w, found_low[i], found_high[i]);
                    expect(error <= best.error * (symmetric ? 1.0001 : 1.2) + 1e-10 * group, what + ", error");
                    if (&table == &tables[0]) first_low[i] = found_low[i], first_high[i] = found_high[i];
                    expect(same(found_low[i], first_low[i]) && same(found_high[i], first_high[i]), what + ", as portable");
                }
            }
        }
}

void check_columns(const std::vector<Table>& tables, int rows, int count) {
    constexpr int GROUPS = 3;
    const bool zeros = random_int(0, 1);
    const int bits = random_int(2, 8), q_min = -(1 << (bits - 1)), q_max = -q_min - 1;
    Array<float> w(size_t(count) * rows), factor(size_t(count) * count), scale(size_t(GROUPS) * rows), zero(size_t(GROUPS) * rows);
    Array<int32_t> group(count);
    for (size_t i = 0; i < w.count; ++i) w[i] = random_float(-1, 1);
    for (size_t i = 0; i < factor.count; ++i) factor[i] = random_float(-1, 1) / 8;
    for (int j = 0; j < count; ++j) factor[size_t(j) * (count + 1)] = random_float(0.5f, 2), group[j] = random_int(0, GROUPS - 1);
    for (size_t i = 0; i < scale.count; ++i) scale[i] = random_float(0.01f, 0.3f), zero[i] = float(random_int(q_min, q_max));
    Array<float> expected(w.count);
    Array<int8_t> codes(w.count);
    std::memcpy(expected.get(), w.get(), w.count * 4);
    for (int r = 0; r < rows; ++r)
        for (int j = 0; j < count; ++j) {
            float& x = expected[size_t(j) * rows + r];
            const float s = scale[size_t(group[j]) * rows + r], z = zeros ? zero[size_t(group[j]) * rows + r] : 0;
            const float code = std::min(std::max(std::nearbyint(x / s + z), float(q_min)), float(q_max));
            codes[size_t(j) * rows + r] = int8_t(code);
            x = (x - (code - z) * s) / factor[size_t(j) * (count + 1)];
            for (int k = j + 1; k < count; ++k) {
                float& later = expected[size_t(k) * rows + r];
                later = std::fma(-factor[size_t(j) * count + k], x, later);
            }
        }
    for (const Table& table : tables) {
        Array<float> errors(w.count);
        Array<int8_t> found(w.count);
        std::memcpy(errors.get(), w.get(), w.count * 4);
        table.kernels->round_columns({errors.get(), factor.get(), scale.get(), zeros ? zero.get() : nullptr, group.get(),
                                      found.get(), count, rows, q_min, q_max});
        const std::string what = table.name + " columns, " + std::to_string(rows) + " x " + std::to_string(count);
        expect(!std::memcmp(found.get(), codes.get(), w.count), what + ", codes");
        expect(!std::memcmp(errors.get(), expected.get(), w.count * 4), what + ", errors");
    }
}

void check_choice() {
    const auto names = available();
    expect(!names.empty() && std::string(names[0]) == "portable", "portable is available first");
    unsetenv("ZEROPOINT_ISA");
    expect(choose().isa == std::string(names.back()), "the last is chosen");
    for (const char* name : names) {
        setenv("ZEROPOINT_ISA", name, 1);
        expect(choose().isa == std::string(name), std::string("chosen: ") + name);
    }
    setenv("ZEROPOINT_ISA", "avx3", 1);
    std::string error;
    try {
        choose();
    } catch (const std::invalid_argument& e) {
        error = e.what();
    }
    expect(error.find("avx3") != std::string::npos, "a wrong name is named");
    for (const char* name : names) expect(error.find(name) != std::string::npos, "the error lists what is allowed");
    unsetenv("ZEROPOINT_ISA");
}

}  // namespace

// Pages of /proc/self/statm: addresses that are mapped.
long mapped_pages() {
    std::FILE* f = std::fopen("/proc/self/statm", "r");
    long pages = -1;
    if (!f || std::fscanf(f, "%ld", &pages) != 1) pages = -1;
    if (f) std::fclose(f);
    return pages;
}

void check_pages() {
    const auto take = [](size_t bytes) {
        auto buffer = Buffer<uint8_t>::in_huge_pages(bytes);
        bool zero = true;
        for (size_t i = 0; i < bytes; i += 61) zero = zero && buffer.data()[i] == 0;
        expect(zero && reinterpret_cast<uintptr_t>(buffer.data()) % 64 == 0, "pages of zeros, aligned");
        std::memset(buffer.data(), 255, bytes);
        return buffer;
    };
    take(1);
    const long before = mapped_pages();
    for (int turn = 0; turn < 3; turn++) {
        std::vector<Buffer<uint8_t>> buffers;
        for (const size_t bytes : {1, 100, 3 << 20, 140 << 20, 7, 1 << 20}) buffers.push_back(take(bytes));
        Buffer<uint8_t> moved = std::move(buffers[2]);
        buffers.erase(buffers.begin());
        bool kept = true;
        for (const auto& buffer : buffers)
            for (size_t i = 0; i < buffer.size(); i += 61) kept = kept && buffer.data()[i] == 255;
        expect(kept, "pages keep what was written");
    }
    expect(mapped_pages() <= before, "pages go back to the system");
}

int main() {
    check_choice();
    check_pages();
    check_faults();
    check_configuration();

    std::vector<Table> tables;
    for (const char* name : available()) tables.push_back({kernels_named(name), name});
    tables.push_back({&emulated_avx512_kernels(), "emulated avx512vnni"});
    tables.push_back({&emulated_amx_kernels(), "emulated amx"});
    for (const Table& table : tables) std::printf("%s\n", table.name.c_str());

    // group 0: one for all columns
    constexpr int SHAPES[][3] = {// cols, group, block
                                 {32, 32, 32},  {64, 64, 64},   {128, 128, 128}, {96, 32, 32},   {160, 64, 32}, {160, 64, 64},
                                 {224, 128, 64}, {288, 128, 128}, {256, 128, 32},  {90, 0, 32},    {150, 0, 64},  {200, 0, 128},
                                 {192, 96, 96}, {224, 96, 96},  {384, 192, 192}, {416, 192, 64}, {33, 0, 128},
                                 {96, 0, 96},   {1184, 0, 1184}, {1300, 640, 640}, {640, 0, 96}};
    int number = 0;
    for (int bits = 2; bits <= 8; ++bits)
        for (const bool zeros : {false, true})
            for (const auto& shape : SHAPES)
                for (int turn = 0; turn < 3; ++turn, ++number) {
                    const int x_rows = turn == 0 ? 1 + number % 8 : turn == 1 ? random_int(9, 40) : random_int(9, 70);
                    check_integer(tables, {bits, 1 + (number * 7) % 40, shape[0], shape[1], shape[2], x_rows, zeros,
                                           (number & 1) != 0, (number & 2) != 0, (number & 4) != 0, Values::random});
                }
    for (int bits = 2; bits <= 8; ++bits)
        for (const bool zeros : {false, true})
            for (const Values values : {Values::largest, Values::smallest, Values::opposite})
                for (int x_rows : {1, 4, 33})
                    check_integer(tables, {bits, 48, 4096, 0, 4096, x_rows, zeros, true, false, false, values});
    for (const bool zeros : {false, true})                             // as many columns as are sure to fit
        for (const Values values : {Values::largest, Values::smallest})
            check_integer(tables, {8, 16, MOST_SUMMED, 0, MOST_SUMMED, 9, zeros, true, false, false, values});
    for (int x_rows = 1; x_rows <= 70; ++x_rows)
        check_integer(tables, {4, 33, 160, 64, 64, x_rows, (x_rows & 1) != 0, true, true, true, Values::random});

    for (int x_rows = 1; x_rows <= 70; ++x_rows)
        check_bf16(tables, 1 + (x_rows * 7) % 60, random_int(1, 400), x_rows, x_rows % 2, x_rows % 3 == 0);

    check_halves();

    for (const ScaleType stored : {ScaleType::f32, ScaleType::bf16, ScaleType::f16})
        for (const bool symmetric : {false, true})
            for (int rows : {1, 2, 16, 35}) check_search(tables, stored, symmetric, rows);

    for (int rows : {1, 15, 16, 17, 40})
        for (int count : {1, 2, 31, 128}) check_columns(tables, rows, count);

    for (const Table& table : tables) check_floats(table);
    for (const CacheType type : {CacheType::f16, CacheType::f32, CacheType::i8})
        for (int head_dim : {16, 48, 64, 128})
            for (int queries : {1, 3, 14, 32}) {
                check_attention(tables, type, head_dim, queries, false, 0);
                check_attention(tables, type, head_dim, queries, true, head_dim == 48 ? 5.0f : 0);
            }

    std::printf("%d checks, %d failed\n", checks, failures);
    return failures != 0;
}
