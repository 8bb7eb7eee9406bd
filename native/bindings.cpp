// What Python sees. Arrays are checked for dtype, rank and contiguity by their types, and never converted or copied.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>

#include "cpu.h"
#include "packing.h"
#include "program.h"
#include "stream.h"
#include "sums.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace zeropoint;

namespace {

template <class T, int RANK>
using In = nb::ndarray<const T, nb::ndim<RANK>, nb::c_contig, nb::device::cpu>;
template <class T, int RANK>
using Out = nb::ndarray<T, nb::ndim<RANK>, nb::c_contig, nb::device::cpu>;
using Floats = std::shared_ptr<const Buffer<float>>;

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

int rows_of(const StoredWeight& weight, int first, size_t count, size_t cols) {
    const Weight& w = weight.view();
    require(int(cols) == w.cols, "the rows have another number of columns than the weight");
    require(first >= 0 && first % PANEL == 0 && first + int64_t(count) <= w.rows, "rows outside the weight, or not at a panel");
    require(count % PANEL == 0 || first + int64_t(count) == w.rows, "rows must fill panels, but for the last ones");
    return int(count);
}

// A copy of floats with room and zeros up to whole chunks, as the kernels want gains and biases.
Floats padded(const In<float, 1>& values) {
    auto buffer = std::make_shared<Buffer<float>>(round_up(int(values.size()), CHUNK));
    std::memcpy(buffer->data(), values.data(), values.size() * sizeof(float));
    return buffer;
}

InputRounding rounding_of(const std::string& kind, float scale, int zero) {
    using Kind = InputRounding::Kind;
    require(kind == "blocks" || kind == "token" || kind == "fixed", "inputs are rounded by 'blocks', 'token' or 'fixed'");
    require(scale > 0 && zero >= -128 && zero <= 127, "a scale is positive, a zero point -128 to 127");
    return {kind == "blocks" ? Kind::blocks : kind == "token" ? Kind::token : Kind::fixed, scale, zero};
}

// x (rows, cols) in integers, for tests: q (rows, cols in whole chunks), scales and sums (rows, blocks).
void quantize(const In<float, 2>& x, const Out<int8_t, 2>& q, const Out<float, 2>& scales, const Out<int32_t, 2>& sums,
              int block, const InputRounding& rounding) {
    const int rows = int(x.shape(0)), cols = int(x.shape(1)), padded_cols = round_up(cols, CHUNK);
    require(block > 0 && block % CHUNK == 0, "a block is a multiple of 32 columns");
    const int blocks = (padded_cols + block - 1) / block;
    require(int(q.shape(0)) == rows && int(q.shape(1)) == padded_cols, "q must be (rows, cols in whole chunks)");
    require(int(scales.shape(0)) == rows && int(scales.shape(1)) == blocks && int(sums.shape(0)) == rows &&
            int(sums.shape(1)) == blocks, "scales and sums must be (rows, blocks)");
    Buffer<float> in(size_t(rows) * padded_cols);
    for (int t = 0; t < rows; t++) std::memcpy(in.data() + size_t(t) * padded_cols, x.data() + size_t(t) * cols, cols * 4);
    const QInput input{q.data(), scales.data(), sums.data(), padded_cols, block, blocks};
    choose().quantize(in.data(), padded_cols, cols, input, rounding, 0, rows);
}

// One linear on its own, for tests and benchmarks: y (rows, weight.rows) of x (rows, cols).
void linear(Pool& pool, const StoredWeight& weight, const In<float, 2>& x, const Out<float, 2>& y, bool floats, int repeats,
            const InputRounding& rounding) {
    const Weight& w = weight.view();
    const Kernels& kernels = choose();
    const int rows = int(x.shape(0)), stride = round_up(w.rows, CHUNK);
    require(int(x.shape(1)) == w.cols && int(y.shape(0)) == rows && int(y.shape(1)) == w.rows, "x must be (rows, cols), y (rows, weight.rows)");
    floats |= w.kind != Kind::codes;
    const int block = rounding.kind == InputRounding::Kind::blocks ? w.block : w.declared_block();
    const int blocks = (w.padded_cols + block - 1) / block;
    Buffer<float> in(size_t(rows) * w.padded_cols), out(size_t(rows) * stride), scales(size_t(rows) * blocks);
    Buffer<int8_t> q(size_t(rows) * w.padded_cols);
    Buffer<int32_t> sums(size_t(rows) * blocks);
    for (int t = 0; t < rows; t++) std::memcpy(in.data() + size_t(t) * w.padded_cols, x.data() + size_t(t) * w.cols, w.cols * 4);
    const QInput input{q.data(), scales.data(), sums.data(), w.padded_cols, block, blocks};
    std::vector<Buffer<uint8_t>> scratch;
    for (int i = 0; i < pool.size(); i++)
        scratch.emplace_back(floats ? kernels.float_scratch_bytes(w) : kernels.scratch_bytes(w));
    const Output to{out.data(), size_t(stride), nullptr, false};
    pool.run([&](int thread) {
        const int n = pool.size(), panels = w.panels();
        const int first = int(int64_t(panels) * thread / n), last = int(int64_t(panels) * (thread + 1) / n);
        for (int i = 0; i < repeats; i++) {
            if (floats) {
                kernels.linear_float(w, in.data(), w.padded_cols, 0, rows, first, last, to, scratch[thread].data());
            } else {
                if (thread == 0) kernels.quantize(in.data(), w.padded_cols, w.cols, input, rounding, 0, rows);
                pool.barrier();
                if (rows <= MOST_FEW) kernels.linear_few(w, input, 0, rows, first, last, to);
                else kernels.linear_many(w, input, 0, rows, first, last, to, scratch[thread].data());
            }
            pool.barrier();
        }
    });
    for (int t = 0; t < rows; t++) std::memcpy(y.data() + size_t(t) * w.rows, out.data() + size_t(t) * stride, w.rows * 4);
}

Grid grid_of(int q_min, int q_max, bool symmetric, const std::string& stored) {
    require(q_min >= -128 && q_min < q_max && q_max <= 127, "codes lie in [-128, 127]");
    const bool bf16 = stored == "bfloat16", f16 = stored == "float16";
    require(bf16 || f16 || stored == "float32", "scales are stored as float32, bfloat16 or float16");
    return {q_min, q_max, symmetric, bf16 ? ScaleType::bf16 : f16 ? ScaleType::f16 : ScaleType::f32};
}

Step step_of(Step::Kind kind, int a, int b, int c, int out) {
    Step step;
    step.kind = kind;
    step.a = a, step.b = b, step.c = c, step.out = out;
    return step;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The native runtime: weights in panels, programs of steps, threads. See native/ for what is behind it.";
    m.attr("CHUNK") = CHUNK;
    m.attr("PANEL") = PANEL;
    m.def("isas", [] {
        nb::list names;
        for (const char* name : available()) names.append(name);
        return names;
    }, "Return the instruction sets that this machine has, in rising order.");
    m.def("isa", [] { return choose().isa; }, "Return the one in use; ValueError if ZEROPOINT_ISA names none of them.");
    m.def("usable_cores", &usable_cores, "Return the cores of this process: its affinity, and its container's quota.");

    nb::class_<Pool>(m, "Pool", "A few threads that wait for work.")
        .def(nb::init<int>(), "threads"_a)
        .def_prop_ro("size", &Pool::size)
        .def("stream", [](Pool& pool, size_t bytes, int repeats) {
            require(bytes >= 4096 && repeats >= 1, "stream reads 4096 bytes or more, once or more often");
            nb::gil_scoped_release free;
            return stream(pool, bytes, repeats);
        }, "bytes"_a, "repeats"_a, "Return the bytes per second at which memory can be read, the best of `repeats`.");

    nb::class_<StoredWeight>(m, "Weight", "A weight in panels of 16 rows.")
        .def("put_codes", [](StoredWeight& self, Pool& pool, int first, const In<uint32_t, 2>& words, const In<float, 2>& scales,
                             std::optional<In<uint8_t, 2>> zeros) {
            const Weight& w = self.view();
            require(w.kind == Kind::codes, "the weight is a float one");
            const int count = rows_of(self, first, words.shape(0), w.cols);
            require(words.shape(1) * 32 >= size_t(w.cols) * w.bits, "the rows of words are too short");
            require(scales.shape(0) == words.shape(0) && int(scales.shape(1)) == w.groups, "scales must be (rows, groups)");
            require(zeros.has_value() == (w.zero != nullptr), "zero points belong to a weight that was made for them");
            require(!zeros || (zeros->shape(0) == words.shape(0) && int(zeros->shape(1)) == w.groups), "zeros must be (rows, groups)");
            nb::gil_scoped_release free;
            self.put_codes(pool, first, count, words.data(), words.shape(1), scales.data(), zeros ? zeros->data() : nullptr);
        }, "pool"_a, "first"_a, "words"_a.noconvert(), "scales"_a.noconvert(), "zeros"_a.noconvert().none())
        .def("put_bf16", [](StoredWeight& self, Pool& pool, int first, const In<uint16_t, 2>& values) {
            require(self.view().kind == Kind::bf16, "the weight is not of bfloat16");
            const int count = rows_of(self, first, values.shape(0), values.shape(1));
            nb::gil_scoped_release free;
            self.put_bf16(pool, first, count, values.data());
        }, "pool"_a, "first"_a, "values"_a.noconvert())
        .def("put_f32", [](StoredWeight& self, Pool& pool, int first, const In<float, 2>& values) {
            require(self.view().kind == Kind::f32, "the weight is not of float32");
            const int count = rows_of(self, first, values.shape(0), values.shape(1));
            nb::gil_scoped_release free;
            self.put_f32(pool, first, count, values.data());
        }, "pool"_a, "first"_a, "values"_a.noconvert())
        .def("round_f32", [](StoredWeight& self, Pool& pool, int first, const In<float, 2>& values) {
            require(self.view().kind == Kind::codes && self.view().bits == 8 && self.view().scale32, "not a weight to round to");
            const int count = rows_of(self, first, values.shape(0), values.shape(1));
            nb::gil_scoped_release free;
            self.put_rounded(pool, first, count, values.data(), nullptr);
        }, "pool"_a, "first"_a, "values"_a.noconvert())
        .def("round_bf16", [](StoredWeight& self, Pool& pool, int first, const In<uint16_t, 2>& values) {
            require(self.view().kind == Kind::codes && self.view().bits == 8 && self.view().scale32, "not a weight to round to");
            const int count = rows_of(self, first, values.shape(0), values.shape(1));
            nb::gil_scoped_release free;
            self.put_rounded(pool, first, count, nullptr, values.data());
        }, "pool"_a, "first"_a, "values"_a.noconvert())
        .def("read_row", [](const StoredWeight& self, int row, const Out<float, 1>& values) {
            require(row >= 0 && row < self.view().rows && int(values.size()) == self.view().cols, "no such row, or not of its length");
            self.read_row(row, values.data());
        }, "row"_a, "values"_a.noconvert())
        .def_prop_ro("rows", [](const StoredWeight& self) { return self.view().rows; })
        .def_prop_ro("cols", [](const StoredWeight& self) { return self.view().cols; })
        .def_prop_ro("block", [](const StoredWeight& self) { return self.view().block; })
        .def_prop_ro("declared_block", [](const StoredWeight& self) { return self.view().declared_block(); })
        .def_prop_ro("is_bf16", [](const StoredWeight& self) { return self.view().kind == Kind::bf16; })
        .def_prop_ro("is_float", [](const StoredWeight& self) { return self.view().kind != Kind::codes; })
        .def_prop_ro("bytes", &StoredWeight::bytes);

    m.def("codes_weight", [](int bits, int rows, int cols, int group, bool scales16, bool zeros) {
        require(bits >= 2 && bits <= 8 && rows > 0 && cols > 0, "codes have 2 to 8 bits, weights one row and column at least");
        require(group >= cols || (group > 0 && group % CHUNK == 0), "groups must be multiples of 32 columns, or whole rows");
        return std::make_shared<StoredWeight>(Kind::codes, bits, rows, cols, group, scales16, zeros);
    }, "bits"_a, "rows"_a, "cols"_a, "group"_a, "scales16"_a, "zeros"_a);
    m.def("float_weight", [](bool halves, int rows, int cols) {
        require(rows > 0 && cols > 0, "weights have one row and column at least");
        return std::make_shared<StoredWeight>(halves ? Kind::bf16 : Kind::f32, 0, rows, cols, cols, false, false);
    }, "halves"_a, "rows"_a, "cols"_a);
    m.def("linear", [](Pool& pool, const StoredWeight& weight, const In<float, 2>& x, const Out<float, 2>& y, bool floats, int repeats,
                       const std::string& kind, float scale, int zero) {
        const InputRounding rounding = rounding_of(kind, scale, zero);
        nb::gil_scoped_release free;
        linear(pool, weight, x, y, floats, repeats, rounding);
    }, "pool"_a, "weight"_a, "x"_a.noconvert(), "y"_a.noconvert(), "floats"_a = false, "repeats"_a = 1, "kind"_a = "blocks",
       "scale"_a = 1.0f, "zero"_a = 0);
    m.def("quantize", [](const In<float, 2>& x, const Out<int8_t, 2>& q, const Out<float, 2>& scales, const Out<int32_t, 2>& sums,
                         int block, const std::string& kind, float scale, int zero) {
        quantize(x, q, scales, sums, block, rounding_of(kind, scale, zero));
    }, "x"_a.noconvert(), "q"_a.noconvert(), "scales"_a.noconvert(), "sums"_a.noconvert(), "block"_a, "kind"_a = "blocks",
       "scale"_a = 1.0f, "zero"_a = 0);

    m.def("pack_codes", [](const In<int8_t, 2>& codes, const Out<int32_t, 2>& words, int bits) {
        require(bits >= 2 && bits <= 8, "codes have 2 to 8 bits");
        require(words.shape(0) == codes.shape(0) && words.shape(1) == (codes.shape(1) * bits + 31) / 32,
                "words must be (rows, words of a row of codes)");
        nb::gil_scoped_release free;
        pack_codes(codes.data(), codes.shape(0), codes.shape(1), bits, reinterpret_cast<uint32_t*>(words.data()));
    }, "codes"_a.noconvert(), "words"_a.noconvert(), "bits"_a,
       "Write each row of signed codes as one stream of bits; see zeropoint/formats/bits.py.");
    m.def("lost", [](const In<float, 1>& weight, const In<float, 1>& restored) {
        require(weight.size() == restored.size(), "a weight and what became of it have as many values");
        Lost found;
        {
            nb::gil_scoped_release free;
            found = lost(weight.data(), restored.data(), weight.size());
        }
        return nb::make_tuple(found.signal, found.noise, found.product, found.restored, found.largest);
    }, "weight"_a.noconvert(), "restored"_a.noconvert(),
       "Return the float64 sums of w^2, (r - w)^2, w r and r^2, and the largest |r - w|.");
    m.def("clipped", [](const In<float, 2>& weight, const In<float, 2>& restored, const In<float, 2>& scale,
                        std::optional<In<float, 2>> zero, int group, int q_min, int q_max) {
        const size_t rows = weight.shape(0), cols = weight.shape(1);
        require(restored.shape(0) == rows && restored.shape(1) == cols, "a weight and what became of it must be of one shape");
        require(group > 0 && scale.shape(0) == rows && scale.shape(1) == (cols + group - 1) / group, "scale must be (rows, groups)");
        require(!zero || (zero->shape(0) == rows && zero->shape(1) == scale.shape(1)), "zero must be (rows, groups)");
        nb::gil_scoped_release free;
        return clipped(weight.data(), restored.data(), rows, cols, scale.data(), zero ? zero->data() : nullptr, size_t(group),
                       q_min, q_max);
    }, "weight"_a.noconvert(), "restored"_a.noconvert(), "scale"_a.noconvert(), "zero"_a.noconvert().none(), "group"_a, "q_min"_a,
       "q_max"_a, "Return the float64 sum of (r - w)^2 over the values outside the ends of their grids.");
    m.def("count_bars", [](const In<float, 1>& values, float per_width, const Out<int64_t, 1>& counts) {
        require(counts.size() >= 2 && counts.size() % 2 == 0, "counts must be two, or a bar more on each side");
        require(per_width > 0, "the width of a bar is positive");
        nb::gil_scoped_release free;
        count_bars(values.data(), values.size(), per_width, int(counts.size() / 2) - 1, counts.data());
    }, "values"_a.noconvert(), "per_width"_a, "counts"_a.noconvert(),
       "Add how many values lie below, in each of the equal bars around 0, and above: see native/sums.h.");
    m.def("count_codes", [](const In<int8_t, 2>& codes, const Out<int64_t, 1>& counts) {
        require(counts.size() == 256, "counts must be 256, of -128 to 127");
        nb::gil_scoped_release free;
        count_codes(codes.data(), codes.size(), counts.data());
    }, "codes"_a.noconvert(), "counts"_a.noconvert(), "Add how many codes are -128, -127 ... 127.");
    m.def("search_ranges", [](const In<float, 3>& values, const In<float, 2>& weights, const In<float, 1>& both,
                              const In<float, 1>& single, const Out<float, 2>& low, const Out<float, 2>& high, int q_min,
                              int q_max, bool symmetric, const std::string& stored, float p) {
        const size_t rows = values.shape(0), groups = values.shape(1), group = values.shape(2);
        require(weights.shape(0) == groups && weights.shape(1) == group, "weights must be (groups, group)");
        require(low.shape(0) == rows && low.shape(1) == groups && high.shape(0) == rows && high.shape(1) == groups,
                "low and high must be (rows, groups)");
        require(p > 0, "the power of an error is positive");
        const RangeSearch task{values.data(), weights.data(), int(rows), int(groups), int(group),
                               grid_of(q_min, q_max, symmetric, stored), p, both.data(), int(both.size()),
                               single.data(), int(single.size()), low.data(), high.data()};
        const Kernels& kernels = choose();
        nb::gil_scoped_release free;
        kernels.search_ranges(task);
    }, "values"_a.noconvert(), "weights"_a.noconvert(), "both"_a.noconvert(), "single"_a.noconvert(), "low"_a.noconvert(),
       "high"_a.noconvert(), "q_min"_a, "q_max"_a, "symmetric"_a, "stored"_a, "p"_a,
       "Replace the seen ranges by those with the smallest error: see RangeSearch in native/kernels.h.");

    m.def("round_columns", [](const Out<float, 2>& w, const In<float, 2>& factor, const In<float, 2>& scale,
                              std::optional<In<float, 2>> zero, const In<int32_t, 1>& group, const Out<int8_t, 2>& codes,
                              int q_min, int q_max) {
        const size_t count = w.shape(0), rows = w.shape(1), groups = scale.shape(0);
        require(factor.shape(0) == count && factor.shape(1) == count, "factor must be (count, count)");
        require(codes.shape(0) == count && codes.shape(1) == rows, "codes must be (count, rows)");
        require(scale.shape(1) == rows && (!zero || (zero->shape(0) == groups && zero->shape(1) == rows)),
                "scale and zero must be (groups, rows)");
        require(group.size() == count, "group must be (count,)");
        for (size_t j = 0; j < count; j++) require(group.data()[j] >= 0 && size_t(group.data()[j]) < groups, "no such group");
        require(q_min >= -128 && q_min < q_max && q_max <= 127, "codes lie in [-128, 127]");
        const RoundColumns task{w.data(), factor.data(), scale.data(), zero ? zero->data() : nullptr, group.data(),
                                codes.data(), int(count), int(rows), q_min, q_max};
        const Kernels& kernels = choose();
        nb::gil_scoped_release free;
        kernels.round_columns(task);
    }, "w"_a.noconvert(), "factor"_a.noconvert(), "scale"_a.noconvert(), "zero"_a.noconvert().none(), "group"_a.noconvert(),
       "codes"_a.noconvert(), "q_min"_a, "q_max"_a, "Round a block of columns: see RoundColumns in native/kernels.h.");

    nb::class_<Cache>(m, "Cache", "Keys and values of one conversation.")
        .def("__init__", [](Cache* self, int layers, int kv_heads, int head_dim, const std::string& dtype) {
            require(layers >= 0 && kv_heads > 0 && head_dim > 0 && head_dim <= MOST_HEAD_DIM, "a cache needs heads of 1 to 512 features");
            const bool half = dtype == "float16", integer = dtype == "int8";
            require(half || integer || dtype == "float32", "the dtype of a cache is float16, float32 or int8");
            new (self) Cache(layers, kv_heads, head_dim, half ? CacheType::f16 : integer ? CacheType::i8 : CacheType::f32);
        }, "layers"_a, "kv_heads"_a, "head_dim"_a, "dtype"_a)
        .def_prop_ro("length", &Cache::length)
        .def_prop_ro("bytes", &Cache::bytes)
        .def("rewind", [](Cache& self, int length) { require(length >= 0, "a length is not negative"); self.rewind(length); }, "length"_a);

    using K = Step::Kind;
    nb::class_<Program>(m, "Program", "A model as a list of steps.")
        .def(nb::init<std::shared_ptr<Pool>>(), "pool"_a)
        .def("slot", &Program::slot, "width"_a)
        .def("quantized", &Program::quantized, "width"_a, "block"_a)
        .def("rope_table", [](Program& self, const In<float, 1>& f, float factor) {
            return self.rope_table(f.data(), int(f.size()), factor);
        }, "frequencies"_a.noconvert(), "factor"_a = 1.0f)
        .def("embed", [](Program& self, std::shared_ptr<StoredWeight> table, int out, float factor, int first_position) {
            Step step = step_of(K::embed, NONE, NONE, NONE, out);
            require(first_position >= NONE && first_position < table->view().rows, "a table by position has a row for the first");
            step.factor = factor, step.first_position = first_position;
            step.parts.push_back({table, nullptr, out});
            self.push(std::move(step));
        }, "table"_a, "out"_a, "factor"_a = 1.0f, "first_position"_a = NONE)
        .def("norm", [](Program& self, int a, const In<float, 1>& gain, float eps, int out, int heads) {
            Step step = step_of(K::norm, a, NONE, NONE, out);
            step.gain = padded(gain), step.eps = eps, step.heads = heads;
            require(heads >= 1 && int(gain.size()) * heads == self.width(a) && self.width(a) == self.width(out),
                    "a gain is as long as what is normalized");
            require(heads == 1 || int(gain.size()) <= MOST_HEAD_DIM, "heads have at most 512 features");
            self.push(std::move(step));
        }, "a"_a, "gain"_a.noconvert(), "eps"_a, "out"_a, "heads"_a = 1)
        .def("layer_norm", [](Program& self, int a, const In<float, 1>& gain, const In<float, 1>& bias, float eps, int out) {
            Step step = step_of(K::norm, a, NONE, NONE, out);
            step.gain = padded(gain), step.bias = padded(bias), step.eps = eps, step.heads = 1;
            require(int(gain.size()) == self.width(a) && bias.size() == gain.size() && self.width(a) == self.width(out),
                    "gain and bias are as long as what is normalized");
            self.push(std::move(step));
        }, "a"_a, "gain"_a.noconvert(), "bias"_a.noconvert(), "eps"_a, "out"_a)
        .def("slice", [](Program& self, int a, int first, int out, int heads) {
            Step step = step_of(K::slice, a, NONE, NONE, out);
            step.first = first, step.heads = heads;
            require(heads >= 1 && self.width(a) % heads == 0 && self.width(out) % heads == 0, "heads divide both slots");
            require(first >= 0 && first + self.width(out) / heads <= self.width(a) / heads,
                    "columns outside the head they are taken from");
            self.push(std::move(step));
        }, "a"_a, "first"_a, "out"_a, "heads"_a = 1)
        .def("take", [](Program& self, int a, const In<int32_t, 1>& columns, int taken, int others) {
            Step step = step_of(K::take, a, taken, NONE, others);
            step.columns.assign(columns.data(), columns.data() + columns.size());
            for (const int column : step.columns)
                require(column >= 0 && column < self.width(a), "a column outside the slot it is taken from");
            require(self.width(taken) == int(columns.size()) && self.width(others) == self.width(a),
                    "columns are taken to a slot of their number, the others to one as wide as it was");
            self.push(std::move(step));
        }, "a"_a, "columns"_a.noconvert(), "taken"_a, "others"_a)
        .def("quantize", [](Program& self, int a, int out, const std::string& kind, float scale, int zero) {
            Step step = step_of(K::quantize, a, NONE, NONE, out);
            step.rounding = rounding_of(kind, scale, zero);
            self.push(std::move(step));
        }, "a"_a, "out"_a, "kind"_a = "blocks", "scale"_a = 1.0f, "zero"_a = 0)
        .def("restore", [](Program& self, int quantized, int out, int zero) {
            Step step = step_of(K::restore, quantized, NONE, NONE, out);
            step.rounding.zero = zero;
            self.push(std::move(step));
        }, "quantized"_a, "out"_a, "zero"_a = 0)
        .def("halve", [](Program& self, int a, int out) { self.push(step_of(K::halve, a, NONE, NONE, out)); }, "a"_a, "out"_a)
        .def("linear", [](Program& self, int a, int quantized, const nb::list& parts, bool add, bool halves) {
            Step step = step_of(K::linear, a, quantized, NONE, NONE);
            step.add = add, step.halves = halves;
            for (nb::handle item : parts) {
                const auto part = nb::cast<nb::tuple>(item);
                Floats bias = part[1].is_none() ? nullptr : padded(nb::cast<In<float, 1>>(part[1], false));
                step.parts.push_back({nb::cast<std::shared_ptr<StoredWeight>>(part[0]), bias, nb::cast<int>(part[2])});
                require(!halves || step.parts.back().weight->view().kind == Kind::bf16, "bfloat16 inputs meet bfloat16 weights");
            }
            self.push(std::move(step));
        }, "a"_a, "quantized"_a, "parts"_a, "add"_a, "halves"_a = false)
        .def("rope", [](Program& self, int a, int heads, int head_dim, int table) {
            Step step = step_of(K::rope, a, NONE, NONE, a);
            step.heads = heads, step.head_dim = head_dim, step.table = table;
            require(self.rotated(table) <= head_dim, "a head has fewer features than are rotated");
            self.push(std::move(step));
        }, "a"_a, "heads"_a, "head_dim"_a, "table"_a)
        .def("attention", [](Program& self, int q, int k, int v, int out, int heads, int kv_heads, int head_dim, int layer,
                             int window, float scale, float softcap) {
            Step step = step_of(K::attention, q, k, v, out);
            require(window >= 0 && scale >= 0 && softcap >= 0, "a window, a scale and a cap are positive, or 0 for none");
            step.window = window, step.scale = scale, step.softcap = softcap;
            step.heads = heads, step.kv_heads = kv_heads, step.head_dim = head_dim, step.layer = layer;
            self.push(std::move(step));
        }, "q"_a, "k"_a, "v"_a, "out"_a, "heads"_a, "kv_heads"_a, "head_dim"_a, "layer"_a,
           "window"_a = 0, "scale"_a = 0.0f, "softcap"_a = 0.0f)
        .def("gated", [](Program& self, int gate, int up, int out, int activation) {
            Step step = step_of(K::gated, gate, up, NONE, out);
            step.activation = activation;
            self.push(std::move(step));
        }, "gate"_a, "up"_a, "out"_a, "activation"_a)
        .def("activate", [](Program& self, int a, int activation) {
            Step step = step_of(K::gated, a, NONE, NONE, a);
            step.activation = activation;
            self.push(std::move(step));
        }, "a"_a, "activation"_a)
        .def("add", [](Program& self, int a, int b, int out) { self.push(step_of(K::add, a, b, NONE, out)); }, "a"_a, "b"_a, "out"_a)
        .def("softcap", [](Program& self, int a, float cap) {
            Step step = step_of(K::softcap, a, NONE, NONE, a);
            require(cap > 0, "a cap is positive");
            step.softcap = cap;
            self.push(std::move(step));
        }, "a"_a, "cap"_a)
        .def("clear", [](Program& self, int out) { self.push(step_of(K::clear, NONE, NONE, NONE, out)); }, "out"_a)
        .def("route", [](Program& self, int a, int out, int chosen, bool normalized) {
            Step step = step_of(K::route, a, NONE, NONE, out);
            require(self.width(a) == self.width(out) && chosen >= 1 && chosen <= self.width(a),
                    "a token is sent to one expert at least, and not to more than there are");
            step.chosen = chosen, step.normalized = normalized;
            self.push(std::move(step));
        }, "a"_a, "out"_a, "chosen"_a, "normalized"_a)
        .def("send", [](Program& self, int a, int out) {
            require(self.expert() != NONE && self.width(a) == self.width(out), "rows are sent to an expert, as they are");
            self.push(step_of(K::send, a, NONE, NONE, out));
        }, "a"_a, "out"_a)
        .def("collect", [](Program& self, int a, int routes, int out) {
            require(self.expert() != NONE && self.expert() < self.width(routes) && self.width(a) == self.width(out),
                    "what an expert made is as wide as what it is added to");
            self.push(step_of(K::collect, a, routes, NONE, out));
        }, "a"_a, "routes"_a, "out"_a)
        .def("set_expert", [](Program& self, int expert) {
            require(expert >= NONE && expert < self.experts(), "an expert that nothing is sent to");
            self.set_expert(expert);
        }, "expert"_a)
        .def("begin_head", &Program::begin_head)
        .def("set_result", &Program::set_result, "slot"_a)
        .def("run", [](Program& self, Cache& cache, const In<int32_t, 1>& tokens, const Out<float, 2>& logits) {
            const int count = int(tokens.size()), wanted = int(logits.shape(0));
            require(count >= 1 && wanted >= 1 && wanted <= count, "wanted are logits of one token at least, and not of more than there are");
            require(count <= self.longest() - cache.length(), "the table of positions ends before these tokens do");
            require(int(logits.shape(1)) == round_up(self.result_width(), CHUNK), "logits must be (wanted, vocabulary in whole chunks)");
            nb::gil_scoped_release free;
            self.run(cache, tokens.data(), count, wanted, logits.data());
        }, "cache"_a, "tokens"_a.noconvert(), "logits"_a.noconvert())
        .def_prop_ro("bytes", &Program::bytes);
}
