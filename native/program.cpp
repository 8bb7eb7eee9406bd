#include "program.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "bf16.h"
#include "cpu.h"

namespace zeropoint {

namespace {

constexpr int MOST_ROWS = 512;      // tokens at once; longer texts go through in pieces
constexpr int QUERY_ROWS = 32;      // rows of one attention task, about
constexpr int PIECE = 2 * PAGE;     // positions that one task of a few tokens looks at

int pages_for(int length) { return (length + PAGE - 1) / PAGE; }

// thread's share of n things
struct Share {
    int begin, end;
    Share(int n, int thread, int threads, int step = 1) {
        const int64_t units = (n + step - 1) / step;
        begin = std::min(n, int(units * thread / threads) * step);
        end = std::min(n, int(units * (thread + 1) / threads) * step);
    }
};

// What one attention task works in: rows of one head of keys and values.
struct AttentionScratch {
    float *q, *scores, *out, *most, *total;
    int *first, *seen;
    static size_t floats(int rows, int head_dim) { return size_t(rows) * (2 * head_dim + PAGE + 4); }
    AttentionScratch(float* memory, int rows, int head_dim) {
        q = memory;
        out = q + size_t(rows) * head_dim;
        scores = out + size_t(rows) * head_dim;
        most = scores + size_t(rows) * PAGE;
        total = most + rows;
        first = reinterpret_cast<int*>(total + rows);
        seen = first + rows;
    }
};

}  // namespace

// ---- cache -------------------------------------------------------------------------------------------------------

Cache::Cache(int layers, int kv_heads, int head_dim, CacheType type)
    : kv_heads_(kv_heads), head_dim_(round_up(head_dim, 16)), type_(type), pages_(layers) {}

void Cache::reserve(int length) {
    const size_t positions = size_t(kv_heads_) * PAGE, bytes = positions * head_dim_ * item_bytes(type_);
    const size_t scales = type_ == CacheType::i8 ? positions : 0;
    for (auto& layer : pages_)
        while (int(layer.size()) < pages_for(length))
            layer.push_back({Buffer<uint8_t>(bytes), Buffer<uint8_t>(bytes), Buffer<float>(scales), Buffer<float>(scales)});
}

size_t Cache::bytes() const {
    size_t total = 0;
    for (auto& layer : pages_)
        for (auto& page : layer)
            total += page.keys.size() + page.values.size() + (page.key_scales.size() + page.value_scales.size()) * 4;
    return total;
}

PageAttention Cache::attention(const Page& page, int head) const {
    const size_t start = size_t(head) * head_dim_ * PAGE * item_bytes(type_), scales = size_t(head) * PAGE;
    const bool scaled = type_ == CacheType::i8;
    PageAttention a{};
    a.keys = page.keys.data() + start;
    a.values = page.values.data() + start;
    a.key_scales = scaled ? page.key_scales.data() + scales : nullptr;
    a.value_scales = scaled ? page.value_scales.data() + scales : nullptr;
    a.type = type_;
    a.head_dim = head_dim_;
    return a;
}

// key, value: (head_dim,) padded with 0. The key becomes a column, the value a row.
void Cache::put(const Kernels& kernels, Page& page, int head, int at, const float* key, const float* value) const {
    const size_t start = size_t(head) * head_dim_ * PAGE, row = start + size_t(at) * head_dim_;
    const auto spread = [&](auto* column, const auto* from) {
        for (int d = 0; d < head_dim_; d++) column[start + d * PAGE + at] = from[d];
    };
    switch (type_) {
        case CacheType::f32:
            spread(reinterpret_cast<float*>(page.keys.data()), key);
            std::memcpy(reinterpret_cast<float*>(page.values.data()) + row, value, head_dim_ * 4);
            break;
        case CacheType::f16: {
            alignas(64) uint16_t half[MOST_HEAD_DIM];
            kernels.to_half(key, head_dim_, half);
            spread(reinterpret_cast<uint16_t*>(page.keys.data()), half);
            kernels.to_half(value, head_dim_, reinterpret_cast<uint16_t*>(page.values.data()) + row);
            break;
        }
        case CacheType::i8: {
            alignas(64) int8_t q[MOST_HEAD_DIM];
            int32_t sum;
            const auto round = [&](const float* x, int8_t* to, float* scale) {
                kernels.quantize(x, head_dim_, head_dim_, {to, scale, &sum, head_dim_, head_dim_, 1}, InputRounding{}, 0, 1);
            };
            const size_t scale = size_t(head) * PAGE + at;
            round(key, q, page.key_scales.data() + scale);
            spread(reinterpret_cast<int8_t*>(page.keys.data()), q);
            round(value, reinterpret_cast<int8_t*>(page.values.data()) + row, page.value_scales.data() + scale);
            break;
        }
    }
}

// ---- description -------------------------------------------------------------------------------------------------

Program::Program(std::shared_ptr<Pool> pool) : Program(std::move(pool), choose()) {}

Program::Program(std::shared_ptr<Pool> pool, const Kernels& kernels)
    : pool_(std::move(pool)), kernels_(kernels), scratch_(pool_->size()) {}

int Program::slot(int width) {
    slots_.push_back({width, round_up(width, CHUNK), nullptr});
    return int(slots_.size()) - 1;
}

int Program::quantized(int width, int block) {
    Quantized q{width, block, {}};
    q.input.padded_cols = round_up(width, CHUNK);
    q.input.block = block;
    q.input.blocks = (q.input.padded_cols + block - 1) / block;
    quantized_.push_back(q);
    return int(quantized_.size()) - 1;
}

int Program::rope_table(const float* frequencies, int count, float factor) {
    Rope rope;
    rope.frequencies.assign(frequencies, frequencies + count);
    rope.factor = factor;
    ropes_.push_back(std::move(rope));
    return int(ropes_.size()) - 1;
}

void Program::push(Step step) {
    for (const Part& part : step.parts) {
        const Weight& w = part.weight->view();
        scratch_bytes_ = std::max(scratch_bytes_, kernels_.float_scratch_bytes(w));
        if (w.kind == Kind::codes) scratch_bytes_ = std::max(scratch_bytes_, kernels_.scratch_bytes(w));
    }
    if (step.kind == Step::Kind::attention) {
        const int group = step.heads / step.kv_heads, rows = std::max(QUERY_ROWS, MOST_FEW * group);
        scratch_bytes_ = std::max(scratch_bytes_, AttentionScratch::floats(rows, round_up(step.head_dim, 16)) * 4);
    }
    step.expert = expert_;
    if (step.kind == Step::Kind::embed && step.first_position != NONE)
        longest_ = std::min(longest_, step.parts[0].weight->view().rows - step.first_position);
    if (step.kind == Step::Kind::route) sent_.resize(std::max(sent_.size(), size_t(slots_[step.a].width)));
    steps_.push_back(std::move(step));
}

size_t Program::bytes() const {
    size_t total = partial_.size() * 4;
    for (auto& b : slot_memory_) total += b.size() * 4;
    for (auto& b : q_memory_) total += b.size();
    for (auto& b : q_scales_) total += b.size() * 4;
    for (auto& b : q_sums_) total += b.size() * 4;
    for (auto& b : scratch_) total += b.size();
    for (auto& r : ropes_) total += (r.cosines.size() + r.sines.size()) * 4;
    return total;
}

void Program::reserve(int rows, int positions) {
    if (rows > rows_) {
        rows_ = rows == 1 ? 1 : std::min(MOST_ROWS, std::max(rows, 2 * rows_));
        slot_memory_.clear(), q_memory_.clear(), q_scales_.clear(), q_sums_.clear();
        for (int i = 0; i < int(slots_.size()); i++) {
            if (i == result_) continue;
            slot_memory_.emplace_back(size_t(rows_) * slots_[i].stride);
            slots_[i].data = slot_memory_.back().data();
        }
        for (Quantized& q : quantized_) {
            q_memory_.emplace_back(size_t(rows_) * q.input.padded_cols);
            q_scales_.emplace_back(size_t(rows_) * q.input.blocks);
            q_sums_.emplace_back(size_t(rows_) * q.input.blocks);
            q.input.q = q_memory_.back().data();
            q.input.scale = q_scales_.back().data();
            q.input.sum = q_sums_.back().data();
        }
        for (auto& scratch : scratch_)
            if (scratch.size() < scratch_bytes_) scratch = Buffer<uint8_t>(scratch_bytes_);
    }
    if (positions > positions_) {
        positions_ = std::max(PIECE, std::max(positions, 2 * positions_));
        for (Rope& rope : ropes_) {
            const int half = int(rope.frequencies.size());
            rope.cosines = Buffer<float>(size_t(positions_) * half);
            rope.sines = Buffer<float>(size_t(positions_) * half);
            for (int p = 0; p < positions_; p++)
                for (int i = 0; i < half; i++) {
                    const float angle = float(p) * rope.frequencies[i];
                    rope.cosines.data()[size_t(p) * half + i] = std::cos(angle) * rope.factor;
                    rope.sines.data()[size_t(p) * half + i] = std::sin(angle) * rope.factor;
                }
        }
        size_t floats = 0;
        for (const Step& step : steps_)
            if (step.kind == Step::Kind::attention) {
                const int rows = MOST_FEW * step.heads / step.kv_heads, pieces = (positions_ + PIECE - 1) / PIECE;
                floats = std::max(floats, size_t(step.kv_heads) * pieces * rows * (round_up(step.head_dim, 16) + 2));
            }
        partial_ = Buffer<float>(floats);
    }
}

// ---- running -----------------------------------------------------------------------------------------------------

void Program::run(Cache& cache, const int32_t* tokens, int count, int wanted, float* logits) {
    const size_t stride = slots_[result_].stride;
    reserve(std::min(count, MOST_ROWS), cache.length_ + count);
    cache.reserve(cache.length_ + count);
    for (int start = 0; start < count; start += MOST_ROWS) {
        const int rows = std::min(MOST_ROWS, count - start);
        const int here = std::max(0, start + rows - std::max(start, count - wanted));
        run_chunk(cache, tokens + start, rows, here, logits);
        logits += here * stride;
    }
}

void Program::run_chunk(Cache& cache, const int32_t* tokens, int rows, int wanted, float* logits) {
    const auto begin_of = [&](size_t i) { return i < head_ ? 0 : rows - wanted; };
    const auto rows_of = [&](size_t i) {
        return steps_[i].expert == NONE ? rows - begin_of(i) : int(sent_[steps_[i].expert].size());
    };
    const auto serial = [&](size_t i) {
        if (steps_[i].expert == NONE ? rows > 1 : rows_of(i) > 1) return false;
        switch (steps_[i].kind) {
            case Step::Kind::embed: case Step::Kind::norm: case Step::Kind::take: case Step::Kind::slice:
            case Step::Kind::quantize: case Step::Kind::restore: case Step::Kind::halve: case Step::Kind::rope:
            case Step::Kind::clear: case Step::Kind::send: case Step::Kind::collect: return true;
            default: return false;
        }
    };
    slots_[result_].data = logits - size_t(rows - wanted) * slots_[result_].stride;
    const size_t count = wanted ? steps_.size() : head_;
    pool_->run([&](int thread) {
        for (size_t i = 0; i < count; i++) {
            const Step& step = steps_[i];
            if (rows_of(i) == 0) continue;
            const int begin = begin_of(i), end = begin + rows_of(i);
            if (serial(i)) {
                if (thread == 0) execute(step, 0, begin, end, cache, tokens);
                size_t next = i + 1;   // that is not left out
                while (next < count && rows_of(next) == 0) next++;
                if (next < count && serial(next)) continue;
            } else {
                execute(step, thread, begin, end, cache, tokens);
            }
            pool_->barrier();
        }
    });
    cache.length_ += rows;
}

void Program::execute(const Step& step, int thread, int begin, int end, Cache& cache, const int32_t* tokens) {
    const Share rows(end - begin, thread, end - begin == 1 ? 1 : pool_->size());
    const int first = begin + rows.begin, last = begin + rows.end;
    switch (step.kind) {
        case Step::Kind::embed: {
            const Slot& out = slots_[step.out];
            for (int t = first; t < last; t++) {
                float* row = out.data + size_t(t) * out.stride;
                const bool by_token = step.first_position == NONE;
                step.parts[0].weight->read_row(by_token ? tokens[t] : step.first_position + cache.length_ + t, row);
                if (step.factor != 1)
                    for (int k = 0; k < out.width; k++) row[k] *= step.factor;
            }
            break;
        }
        case Step::Kind::norm: {
            const Slot &a = slots_[step.a], &out = slots_[step.out];
            for (int t = first; t < last; t++) {
                const float* from = a.data + size_t(t) * a.stride;
                float* to = out.data + size_t(t) * out.stride;
                if (step.bias) kernels_.layer_norm(from, step.gain->data(), step.bias->data(), step.eps, a.width, to);
                else if (step.heads > 1) normalize_heads(step, from, a.width / step.heads, to);
                else kernels_.rms_norm(from, step.gain->data(), step.eps, a.width, to);
            }
            break;
        }
        case Step::Kind::take: {
            const Slot &a = slots_[step.a], &taken = slots_[step.b], &others = slots_[step.out];
            for (int t = first; t < last; t++) {
                const float* x = a.data + size_t(t) * a.stride;
                float *to = taken.data + size_t(t) * taken.stride, *rest = others.data + size_t(t) * others.stride;
                std::memcpy(rest, x, a.width * 4);
                for (const int column : step.columns) *to++ = x[column], rest[column] = 0;
            }
            break;
        }
        case Step::Kind::slice: {
            const Slot &a = slots_[step.a], &out = slots_[step.out];
            const int from = a.width / step.heads, to = out.width / step.heads;
            for (int t = first; t < last; t++)
                for (int h = 0; h < step.heads; h++)
                    std::memcpy(out.data + size_t(t) * out.stride + h * to,
                                a.data + size_t(t) * a.stride + h * from + step.first, to * 4);
            break;
        }
        case Step::Kind::quantize: {
            const Slot& a = slots_[step.a];
            kernels_.quantize(a.data, a.stride, a.width, quantized_[step.out].input, step.rounding, first, last);
            break;
        }
        case Step::Kind::restore: {
            const QInput& q = quantized_[step.a].input;
            const Slot& out = slots_[step.out];
            for (int t = first; t < last; t++) {
                const int8_t* codes = q.q + size_t(t) * q.padded_cols;
                float* to = out.data + size_t(t) * out.stride;
                for (int k = 0; k < out.width; k++)
                    to[k] = float(codes[k] - step.rounding.zero) * q.scale[size_t(t) * q.blocks + k / q.block];
            }
            break;
        }
        case Step::Kind::halve: execute_halve(step, first, last, multiplies_halves(end - begin)); break;
        case Step::Kind::rope: {
            const Slot& a = slots_[step.a];
            const Rope& rope = ropes_[step.table];
            const int half = int(rope.frequencies.size());
            for (int t = first; t < last; t++) {
                const size_t at = size_t(cache.length_ + t) * half;
                for (int h = 0; h < step.heads; h++)
                    kernels_.rope(a.data + size_t(t) * a.stride + h * step.head_dim, rope.cosines.data() + at,
                                  rope.sines.data() + at, half);
            }
            break;
        }
        case Step::Kind::gated:
        case Step::Kind::add:
        case Step::Kind::softcap: {
            const Slot &a = slots_[step.a], &out = slots_[step.out];
            const float* b = step.b == NONE ? nullptr : slots_[step.b].data;
            // rows lie one after the other: split the values, whatever the number of rows
            const Share share((end - begin) * a.stride, thread, pool_->size(), 16);
            const size_t from = size_t(begin) * a.stride + share.begin, count = share.end - share.begin;
            if (step.kind == Step::Kind::add) kernels_.add(a.data + from, b + from, count, out.data + from);
            else if (step.kind == Step::Kind::softcap) kernels_.softcap(a.data + from, step.softcap, count, out.data + from);
            else kernels_.gated(a.data + from, b ? b + from : b, step.activation, count, out.data + from);
            break;
        }
        case Step::Kind::clear: {
            const Slot& out = slots_[step.out];
            if (first < last) std::memset(out.data + size_t(first) * out.stride, 0, size_t(last - first) * out.stride * 4);
            break;
        }
        case Step::Kind::route:
            if (thread == 0) route(step, begin, end);
            break;
        case Step::Kind::send: {
            const Slot &a = slots_[step.a], &out = slots_[step.out];
            const std::vector<int>& from = sent_[step.expert];
            for (int i = first; i < last; i++)
                std::memcpy(out.data + size_t(i) * out.stride, a.data + size_t(from[i]) * a.stride, a.stride * 4);
            break;
        }
        case Step::Kind::collect: {
            const Slot &a = slots_[step.a], &routes = slots_[step.b], &out = slots_[step.out];
            const std::vector<int>& to = sent_[step.expert];
            for (int i = first; i < last; i++) {
                const float* row = a.data + size_t(i) * a.stride;
                const float weight = routes.data[size_t(to[i]) * routes.stride + step.expert];
                float* total = out.data + size_t(to[i]) * out.stride;
                for (int k = 0; k < out.width; k++) total[k] += weight * row[k];
            }
            break;
        }
        case Step::Kind::linear: execute_linear(step, thread, begin, end); break;
        case Step::Kind::attention: execute_attention(step, thread, begin, end, cache); break;
    }
}

// The weights of the experts of each token, 0 for those it is not sent to; and for each expert the rows it is sent.
void Program::route(const Step& step, int begin, int end) {
    const Slot &a = slots_[step.a], &out = slots_[step.out];
    const int experts = a.width;
    std::vector<int> order(experts);
    for (auto& rows : sent_) rows.clear();
    for (int t = begin; t < end; t++) {
        const float* logits = a.data + size_t(t) * a.stride;
        float* weights = out.data + size_t(t) * out.stride;
        for (int e = 0; e < experts; e++) order[e] = e;
        std::partial_sort(order.begin(), order.begin() + step.chosen, order.end(), [&](int one, int other) {
            return logits[one] != logits[other] ? logits[one] > logits[other] : one < other;
        });
        const float most = logits[order[0]];
        float total = 0;
        for (int i = 0; i < (step.normalized ? step.chosen : experts); i++) total += std::exp(logits[order[i]] - most);
        std::memset(weights, 0, size_t(out.stride) * 4);
        for (int i = 0; i < step.chosen; i++) {
            const int e = order[i];
            weights[e] = std::exp(logits[e] - most) / total;
            sent_[e].push_back(t);
        }
    }
}

// A norm of each head. Heads need not begin where the kernels may read 16 floats at once, nor end there.
void Program::normalize_heads(const Step& step, const float* from, int head_dim, float* to) {
    alignas(64) float row[MOST_HEAD_DIM] = {};
    for (int h = 0; h < step.heads; h++, from += head_dim, to += head_dim) {
        std::memcpy(row, from, head_dim * 4);
        kernels_.rms_norm(row, step.gain->data(), step.eps, head_dim, row);
        std::memcpy(to, row, head_dim * 4);
    }
}

void Program::execute_halve(const Step& step, int first, int last, bool as_halves) {
    const Slot &a = slots_[step.a], &out = slots_[step.out];
    const size_t from = size_t(first) * a.stride, to = size_t(last) * a.stride;
    uint16_t* halves = reinterpret_cast<uint16_t*>(out.data);
    if (as_halves)
        for (size_t i = from; i < to; i++) halves[i] = to_bf16(a.data[i]);
    else
        for (size_t i = from; i < to; i++) out.data[i] = from_bf16(to_bf16(a.data[i]));
}

void Program::execute_linear(const Step& step, int thread, int begin, int end) {
    int panels = 0;
    for (const Part& part : step.parts) panels += part.weight->view().panels();
    const Share share(panels, thread, pool_->size());
    uint8_t* scratch = scratch_[thread].data();
    int start = 0;
    for (const Part& part : step.parts) {
        const Weight& w = part.weight->view();
        const int first = std::max(share.begin - start, 0), last = std::min(share.end - start, w.panels());
        start += w.panels();
        if (first >= last) continue;
        const Slot& out = slots_[part.out];
        const Output y{out.data, size_t(out.stride), part.bias ? part.bias->data() : nullptr, step.add};
        if (step.halves && multiplies_halves(end - begin)) {
            const Slot& a = slots_[step.a];
            const uint16_t* halves = reinterpret_cast<const uint16_t*>(a.data);
            kernels_.linear_bf16(w, halves, a.stride, begin, end, first, last, y, scratch);
        } else if (step.b == NONE) {
            const Slot& a = slots_[step.a];
            kernels_.linear_float(w, a.data, a.stride, begin, end, first, last, y, scratch);
        } else if (end - begin <= MOST_FEW) {
            kernels_.linear_few(w, quantized_[step.b].input, begin, end, first, last, y);
        } else {
            kernels_.linear_many(w, quantized_[step.b].input, begin, end, first, last, y, scratch);
        }
    }
}

void Program::execute_attention(const Step& step, int thread, int begin, int end, Cache& cache) {
    const Slot &q = slots_[step.a], &k = slots_[step.b], &v = slots_[step.c], &out = slots_[step.out];
    const int hd = step.head_dim, padded = round_up(hd, 16), kv_heads = step.kv_heads, group = step.heads / kv_heads;
    const int before = cache.length_, threads = pool_->size(), rows = end - begin;
    auto& pages = cache.pages_[step.layer];

    // 1. Keys and values of the new tokens go into the cache.
    const Share mine(rows, thread, rows == 1 ? 1 : threads);
    if (rows > 1 || thread == 0)
        for (int t = begin + mine.begin; t < begin + mine.end; t++) {
            auto& page = pages[(before + t) / PAGE];
            const int at = (before + t) % PAGE;
            for (int h = 0; h < kv_heads; h++) {
                alignas(64) float row[2][MOST_HEAD_DIM];
                for (int part = 0; part < 2; part++) {
                    const Slot& from = part ? v : k;
                    std::memcpy(row[part], from.data + size_t(t) * from.stride + h * hd, hd * 4);
                    std::memset(row[part] + hd, 0, (padded - hd) * 4);
                }
                cache.put(kernels_, page, h, at, row[0], row[1]);
            }
        }
    pool_->barrier();

    // 2. Each task: the queries of some tokens that read one head, over some positions.
    const float scale = step.scale > 0 ? step.scale : 1.0f / std::sqrt(float(hd));
    const auto sees_from = [&](int t) { return step.window ? std::max(0, before + t + 1 - step.window) : 0; };
    const bool few = rows <= MOST_FEW;
    const int per_task = few ? rows : std::max(1, QUERY_ROWS / group);
    const int skipped = few ? sees_from(begin) / PIECE : 0;   // pieces that lie before the window
    const int pieces = few ? (before + end + PIECE - 1) / PIECE - skipped : 1;
    const int parts = few ? pieces : (rows + per_task - 1) / per_task;
    const size_t record = size_t(per_task) * group * (padded + 2);
    for (int task = thread; task < kv_heads * parts; task += threads) {
        const int head = task % kv_heads, part = task / kv_heads;
        const int t0 = few ? begin : begin + part * per_task, t1 = std::min(end, t0 + per_task);
        const int piece = (skipped + part) * PIECE, first = std::max(few ? piece : 0, sees_from(t0));
        const int last = few ? std::min(piece + PIECE, before + end) : before + t1;
        const int n = (t1 - t0) * group;
        AttentionScratch s(reinterpret_cast<float*>(scratch_[thread].data()), n, padded);
        for (int r = 0; r < n; r++) {
            const float* from = q.data + size_t(t0 + r / group) * q.stride + (head * group + r % group) * hd;
            for (int d = 0; d < hd; d++) s.q[size_t(r) * padded + d] = from[d] * scale;
            for (int d = hd; d < padded; d++) s.q[size_t(r) * padded + d] = 0;
            s.most[r] = -std::numeric_limits<float>::infinity();
            s.total[r] = 0;
        }
        std::memset(s.out, 0, size_t(n) * padded * 4);
        for (int p = first / PAGE; p * PAGE < last; p++) {
            for (int r = 0; r < n; r++) {
                const int t = t0 + r / group;
                s.first[r] = std::clamp(sees_from(t) - p * PAGE, 0, PAGE);
                s.seen[r] = std::clamp(before + t + 1 - p * PAGE, 0, PAGE);
            }
            PageAttention page = cache.attention(pages[p], head);
            page.q = s.q, page.rows = n, page.first = s.first, page.seen = s.seen, page.scores = s.scores;
            page.softcap = step.softcap;
            page.most = s.most, page.total = s.total, page.out = s.out;
            kernels_.attend(page);
        }
        if (few) {
            float* to = partial_.data() + (size_t(head) * pieces + part) * record;
            std::memcpy(to, s.out, size_t(n) * padded * 4);
            std::memcpy(to + size_t(n) * padded, s.most, n * 4);
            std::memcpy(to + size_t(n) * (padded + 1), s.total, n * 4);
        } else {
            for (int r = 0; r < n; r++) {
                float* to = out.data + size_t(t0 + r / group) * out.stride + (head * group + r % group) * hd;
                for (int d = 0; d < hd; d++) to[d] = s.out[size_t(r) * padded + d] / s.total[r];
            }
        }
    }
    if (!few) return;
    pool_->barrier();

    // 3. A few tokens: put the pieces together, always in the same order.
    const int n = rows * group;
    const Share heads(kv_heads * n, thread, threads);
    for (int i = heads.begin; i < heads.end; i++) {
        const int head = i / n, r = i % n;
        const float* from = partial_.data() + size_t(head) * pieces * record;
        float most = -std::numeric_limits<float>::infinity(), total = 0;
        for (int p = 0; p < pieces; p++) most = std::max(most, from[p * record + size_t(n) * padded + r]);
        float* to = out.data + size_t(begin + r / group) * out.stride + (head * group + r % group) * hd;
        std::memset(to, 0, hd * 4);
        for (int p = 0; p < pieces; p++) {
            const float* piece = from + p * record;
            if (piece[size_t(n) * (padded + 1) + r] == 0) continue;
            const float weight = std::exp(piece[size_t(n) * padded + r] - most);
            total += weight * piece[size_t(n) * (padded + 1) + r];
            for (int d = 0; d < hd; d++) to[d] += weight * piece[size_t(r) * padded + d];
        }
        for (int d = 0; d < hd; d++) to[d] /= total;
    }
}

}  // namespace zeropoint
