// A model as a list of steps, run for some tokens at once by all threads, with a barrier after each step.
//
// The list is recorded by Python from the model's own description (runtime/ops_native.py): what a block does is written
// once, there. Here it runs without Python: a call for each token, not for each operation, and no allocation once the
// buffers have their size.
//
// A slot is an activation: float32 (rows, stride), rows being the tokens at hand. Its stride is a multiple of CHUNK and
// what lies past its width is 0 (weight.h). A quantized slot is the same in integers, made by one step for all linears
// that read it. So is a slot of bfloat16 numbers: halve leaves them in two bytes each where the linears of so many tokens
// multiply bfloat16, and in float32 elsewhere. Each input is then off by at most 2^-8 of itself, an output by at most 2^-8
// of the sum of |w x|.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "repack.h"

namespace zeropoint {

constexpr int NONE = -1;
constexpr int MOST_HEAD_DIM = 512;
constexpr int HALVES_ROWS = 16;   // rows of x from which a linear multiplies bfloat16: a tile of AMX

struct Part {                  // one of the linears of a step, which all read the same input
    std::shared_ptr<const StoredWeight> weight;
    std::shared_ptr<const Buffer<float>> bias;   // or null
    int out;
};

struct Step {
    enum class Kind {
        embed, norm, take, slice, quantize, restore, halve, linear, rope, attention, gated, add, softcap,
        clear, route, send, collect
    } kind;
    int a = NONE, b = NONE, c = NONE, out = NONE;   // slots; `out` of quantize is a quantized slot
    InputRounding rounding;                         // quantize; restore: from a quantized slot a to floats
    bool add = false;                               // linear: onto the output slot
    bool halves = false;                            // linear: halve has filled slot a
    std::vector<Part> parts;                        // linear; embed: the table
    float factor = 1;                               // embed: what rows of the table are multiplied by
    int first_position = NONE;                      // embed: rows by position, that of the first token; NONE: by token
    std::shared_ptr<const Buffer<float>> gain;      // norm; of each of `heads` parts of a, where there are several
    std::shared_ptr<const Buffer<float>> bias;      // norm: takes the mean away, too; null for one that does not
    float eps = 0;
    std::vector<int> columns;                       // take: these columns of a go to b, the others with 0 for them to out
    int first = 0;                                  // slice: out is these columns of each head of a, from `first` on
    int heads = 0, kv_heads = 0, head_dim = 0;      // norm, slice, rope, attention
    int table = NONE;                               // rope: which frequencies; features behind the last pair stay
    int layer = NONE;                               // attention: which part of the cache
    int window = 0;                                 // attention: the last positions that a token sees, itself too; 0: all
    float scale = 0;                                // attention: of scores; 0: 1 / sqrt(head_dim)
    float softcap = 0;                              // attention: of scores; softcap: of a
    int activation = 0;                             // gated
    int chosen = 0;                                 // route: so many experts for each token, those of the largest logits
    bool normalized = false;                        // route: their weights are divided by their sum
    int expert = NONE;                              // the rows are those that were sent to it; without any nothing is done
};

// Keys and values of one conversation, in pages that are added as it grows and never move.
class Cache {
   public:
    Cache(int layers, int kv_heads, int head_dim, CacheType type);
    Cache(const Cache&) = delete;
    Cache& operator=(const Cache&) = delete;
    int length() const { return length_; }
    void rewind(int length) { length_ = length < length_ ? length : length_; }
    void reserve(int length);
    size_t bytes() const;

   private:
    friend class Program;
    struct Page {
        Buffer<uint8_t> keys, values;               // (kv_heads, head_dim, PAGE), (kv_heads, PAGE, head_dim)
        Buffer<float> key_scales, value_scales;     // (kv_heads, PAGE) each for i8, else empty
    };
    void put(const Kernels& kernels, Page& page, int head, int at, const float* key, const float* value) const;
    PageAttention attention(const Page& page, int head) const;   // without what belongs to the queries
    int kv_heads_, head_dim_, length_ = 0;          // head_dim_: padded to 16
    CacheType type_;
    std::vector<std::vector<Page>> pages_;          // (layers, pages)
};

class Program {
   public:
    explicit Program(std::shared_ptr<Pool> pool);
    Program(std::shared_ptr<Pool> pool, const Kernels& kernels);   // kernels must outlive it
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    // Describing, in the order of the steps.
    int slot(int width);
    int width(int slot) const { return slots_.at(slot).width; }
    int quantized(int width, int block);
    int rope_table(const float* frequencies, int count, float factor);
    int rotated(int table) const { return 2 * int(ropes_.at(table).frequencies.size()); }   // features of a head
    void push(Step step);
    int longest() const { return longest_; }       // tokens that a cache may hold: the rows of a table by position
    void begin_head() { head_ = steps_.size(); }   // steps from here on run for those rows whose logits are wanted
    void set_result(int slot) { result_ = slot; }

    // Append tokens to the cache; put the logits of the last `wanted` of them into logits (wanted, stride), where stride
    // is the vocabulary in whole chunks.
    void run(Cache& cache, const int32_t* tokens, int count, int wanted, float* logits);

    int result_width() const { return slots_[result_].width; }
    size_t bytes() const;                          // of buffers, not of weights
    int expert() const { return expert_; }
    int experts() const { return int(sent_.size()); }   // of the steps so far
    void set_expert(int expert) { expert_ = expert; }   // of the steps from here on; NONE: they run for all tokens

   private:
    struct Slot {
        int width;
        int stride;
        float* data = nullptr;
    };
    struct Quantized {
        int width, block;
        QInput input{};
    };
    struct Rope {
        std::vector<float> frequencies;
        float factor;                              // of cosines and sines
        Buffer<float> cosines, sines;              // (positions, half)
    };
    void reserve(int rows, int positions);
    void run_chunk(Cache& cache, const int32_t* tokens, int rows, int wanted, float* logits);
    void execute(const Step& step, int thread, int begin, int end, Cache& cache, const int32_t* tokens);
    void route(const Step& step, int begin, int end);
    void normalize_heads(const Step& step, const float* from, int head_dim, float* to);
    void execute_halve(const Step& step, int first, int last, bool as_halves);
    void execute_linear(const Step& step, int thread, int begin, int end);
    bool multiplies_halves(int rows) const { return kernels_.linear_bf16 && rows >= HALVES_ROWS; }
    void execute_attention(const Step& step, int thread, int begin, int end, Cache& cache);

    std::shared_ptr<Pool> pool_;
    const Kernels& kernels_;
    std::vector<Step> steps_;
    size_t head_ = 0;
    int result_ = NONE, expert_ = NONE, longest_ = INT32_MAX;
    std::vector<Slot> slots_;
    std::vector<Quantized> quantized_;
    std::vector<Rope> ropes_;
    int rows_ = 0, positions_ = 0;
    size_t scratch_bytes_ = 0;
    std::vector<Buffer<float>> slot_memory_;
    std::vector<Buffer<int8_t>> q_memory_;
    std::vector<Buffer<float>> q_scales_;
    std::vector<Buffer<int32_t>> q_sums_;
    std::vector<Buffer<uint8_t>> scratch_;         // for each thread
    Buffer<float> partial_;                        // attention of a few rows, piece by piece
    std::vector<std::vector<int>> sent_;           // for each expert of the block at hand its rows, ascending
};

}  // namespace zeropoint
