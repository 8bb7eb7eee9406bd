// The nouns of the kernels: how a weight lies in memory, and how an activation does once it is in integers.
//
// Every kind of weight is cut into panels of 16 rows, so that one vector register (or two) holds one value of each row
// and no product is ever summed across lanes. A panel is stored column after column, which is the order it is read in:
//
//   kind   one step of columns            bytes of 16 rows      lane r holds
//   f32    1 column                       64                    w[r][k]
//   bf16   2 columns                      64                    w[r][k], w[r][k+1]: the pair that bf16 dot products want
//   codes  32 columns ("chunk")           64 * bits             bit planes, see below
//
// Codes are stored unsigned, u = code + 2^(bits-1). A chunk of 32 columns is 8 quads of 4 columns, and the unpacked form
// of a quad is 64 bytes: byte 4r + c is column c of row r, which is the operand of vpdpbusd and a row of an AMX tile.
// In memory a chunk is the concatenation of planes for the bits of the code, lowest bits first:
//
//   plane of 4 bits   4 x 64 bytes   vector j: bits 0-3 of quad j, bits 4-7 of quad j + 4
//   plane of 2 bits   2 x 64 bytes   vector j: bits 2i, 2i+1 of quad j + 2i, i < 4
//   plane of 1 bit    1 x 64 bytes   bit i of quad i
//   8 bits            8 x 64 bytes   quad after quad
//
//   2 = 2    3 = 2+1    4 = 4    5 = 4+1    6 = 4+2    7 = 4+2+1
//
// Scales and zero points are per panel and group, 16 of them together. Columns are filled up to whole chunks with codes
// that meet activations of 0; rows up to whole panels with scale 0, or weights of 0.
//
// Rows of floats (x, y, bias) have room for whole panels and chunks and hold 0 past their end, so that kernels read and
// write whole vectors everywhere and no kernel has a tail: what is written past the last row of a weight is 0 again.
#pragma once

#include <cstddef>
#include <cstdint>

namespace zeropoint {

constexpr int PANEL = 16;      // rows
constexpr int CHUNK = 32;      // columns
constexpr int MOST_SUMMED = 1 << 16;   // columns whose products fit into int32: 255 * 128 * 65,536 < 2^31
constexpr int MOST_FEW = 8;    // rows of x up to which a linear is bound by memory, not by arithmetic

enum class Kind : uint8_t { codes, bf16, f32 };

inline int round_up(int n, int step) { return (n + step - 1) / step * step; }

struct Weight {
    Kind kind;
    int bits;                  // codes: 2..8
    int rows, cols;
    int padded_cols;           // a multiple of CHUNK
    int group;                 // columns per scale, a multiple of CHUNK, or padded_cols
    int groups;
    int block;                 // columns per scale of an activation that the runtime rounds, a divisor of group
    const uint8_t* data;       // panels * panel_bytes(), aligned to 64
    const uint16_t* scale16;   // bfloat16 (panels, groups, 16) where that is exact, else null
    const float* scale32;      // float32 (panels, groups, 16), else null
    const uint8_t* zero;       // (panels, groups, 16), unsigned as the codes; null where all are 2^(bits-1)

    int panels() const { return (rows + PANEL - 1) / PANEL; }
    // Columns of one int32 sum where a row of the activation has one scale, as a file declares it: those of a scale of the
    // weight, where the sum is sure to fit.
    int declared_block() const { return group <= MOST_SUMMED ? group : block; }
    size_t panel_bytes() const {
        size_t per_column = kind == Kind::f32 ? 64 : kind == Kind::bf16 ? 32 : size_t(2) * bits;
        return per_column * padded_cols;
    }
};

// How activations become integers. blocks: the runtime's own, a scale for each block of columns, q in [-127, 127]. token
// and fixed are what a file declares, in the float32 operations of qparams/inputs.py, so that the integers are the same:
//
//   token   S = max |x| of the row / 127.5     q = clamp(round(x / S), -128, 127)
//   fixed   S and Z of the file                q = clamp(round(x / S + Z), -128, 127)
//
// The linears know no Z: they give S_x sum S_w (u - z) q, and what Z adds to that is -S_x Z times the sum of a row of
// weights, a constant that goes with the bias.
struct InputRounding {
    enum class Kind : uint8_t { blocks, token, fixed } kind = Kind::blocks;
    float scale = 1;
    int zero = 0;
};

// Activations in integers: x ~ scale * q, block by block of columns, q in [-128, 127]; one scale repeated where a row has
// one.
struct QInput {
    int8_t* q;                 // (rows, padded_cols), 0 past cols, aligned to 64
    float* scale;              // (rows, blocks)
    int32_t* sum;              // (rows, blocks): of q, for zero points
    int padded_cols;
    int block, blocks;         // columns per scale: a multiple of CHUNK that divides the group of the weight, or fills it
};

// Where a linear puts y (rows, stride). add: onto what is there, else over it.
struct Output {
    float* y;
    size_t stride;
    const float* bias;         // (weight.rows,) or null
    bool add;
};

}  // namespace zeropoint
