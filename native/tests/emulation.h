// The AVX-512, VNNI and AMX instructions that the kernels use, in plain C++, so that the same sources run on any x86-64.
//
// Written from the pseudo-code in Intel's manuals, not from the kernels. Floats round to nearest, ties to even, as with the
// default MXCSR; denormals are kept, but for tdpbf16ps, which ignores MXCSR. Integers wrap where the name does not say
// that they saturate. Tiles behave as ldtilecfg configured them: what would raise #GP or #UD aborts with a message.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

// Kernels unrolled over inlined emulations took gcc 12 minutes.
#define EMULATED [[gnu::noinline]] inline
#define UNSEEN [[gnu::always_inline]] inline

namespace zeropoint::emulated {

struct __m128i { uint8_t byte[16]; };
struct __m256i { uint8_t byte[32]; };
struct __m512i { uint8_t byte[64]; };
struct __m512 { float lane[16]; };

[[noreturn]] inline void fault(const char* what) {
    std::fprintf(stderr, "emulated processor: %s\n", what);
    std::abort();
}

template <class T, class V>
T get(const V& v, int i) {
    T x;
    std::memcpy(&x, v.byte + i * sizeof(T), sizeof(T));
    return x;
}

template <class T, class V>
void set(V& v, int i, T x) {
    std::memcpy(v.byte + i * sizeof(T), &x, sizeof(T));
}

// One 512-bit vector of T, lane by lane.
template <class T, class F>
__m512i lanes(F f) {
    __m512i v;
    for (int i = 0; i < int(64 / sizeof(T)); ++i) set<T>(v, i, static_cast<T>(f(i)));
    return v;
}

template <class F>
__m512 floats(F f) {
    __m512 v;
    for (int i = 0; i < 16; ++i) v.lane[i] = f(i);
    return v;
}

template <class V>
V read(const void* p) {
    V v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// ---- integers ----------------------------------------------------------------------------------------------------

EMULATED __m128i _mm_loadu_si128(const __m128i* p) { return read<__m128i>(p); }
EMULATED __m256i _mm256_loadu_si256(const __m256i* p) { return read<__m256i>(p); }
EMULATED __m512i _mm512_loadu_si512(const void* p) { return read<__m512i>(p); }
EMULATED void _mm_storeu_si128(__m128i* p, __m128i v) { std::memcpy(static_cast<void*>(p), &v, 16); }
EMULATED void _mm256_storeu_si256(__m256i* p, __m256i v) { std::memcpy(static_cast<void*>(p), &v, 32); }
EMULATED void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, 64); }

EMULATED __m128i _mm_cvtsi32_si128(int x) {      // the other lanes are 0
    __m128i v = {};
    set<int32_t>(v, 0, x);
    return v;
}

EMULATED __m512i _mm512_setzero_si512() { return lanes<uint8_t>([](int) { return 0; }); }
EMULATED __m512i _mm512_set1_epi8(char x) { return lanes<int8_t>([=](int) { return x; }); }
EMULATED __m512i _mm512_set1_epi32(int x) { return lanes<int32_t>([=](int) { return x; }); }

EMULATED __m512i _mm512_and_si512(__m512i a, __m512i b) {
    return lanes<uint64_t>([&](int i) { return get<uint64_t>(a, i) & get<uint64_t>(b, i); });
}

// Bit by bit: the result is bit 4a + 2b + c of `table`.
EMULATED __m512i _mm512_ternarylogic_epi32(__m512i a, __m512i b, __m512i c, int table) {
    return lanes<uint8_t>([&](int i) {
        int out = 0;
        for (int bit = 0; bit < 8; ++bit) {
            const int index = (a.byte[i] >> bit & 1) * 4 + (b.byte[i] >> bit & 1) * 2 + (c.byte[i] >> bit & 1);
            out |= (table >> index & 1) << bit;
        }
        return out;
    });
}

// Shifts are logical; counts beyond the lane give 0.
EMULATED __m512i _mm512_slli_epi16(__m512i a, unsigned n) {
    return lanes<uint16_t>([&](int i) { return n > 15 ? 0 : get<uint16_t>(a, i) << n; });
}
EMULATED __m512i _mm512_srli_epi16(__m512i a, unsigned n) {
    return lanes<uint16_t>([&](int i) { return n > 15 ? 0 : get<uint16_t>(a, i) >> n; });
}
EMULATED __m512i _mm512_slli_epi32(__m512i a, unsigned n) {
    return lanes<uint32_t>([&](int i) { return n > 31 ? 0 : get<uint32_t>(a, i) << n; });
}
EMULATED __m512i _mm512_srl_epi32(__m512i a, __m128i count) {    // the count: 64 bits
    const uint64_t n = get<uint64_t>(count, 0);
    return lanes<uint32_t>([&](int i) { return n > 31 ? 0 : get<uint32_t>(a, i) >> n; });
}

EMULATED __m512i _mm512_sub_epi8(__m512i a, __m512i b) {
    return lanes<uint8_t>([&](int i) { return a.byte[i] - b.byte[i]; });
}
EMULATED __m512i _mm512_add_epi32(__m512i a, __m512i b) {
    return lanes<uint32_t>([&](int i) { return get<uint32_t>(a, i) + get<uint32_t>(b, i); });
}
EMULATED __m512i _mm512_sub_epi32(__m512i a, __m512i b) {
    return lanes<uint32_t>([&](int i) { return get<uint32_t>(a, i) - get<uint32_t>(b, i); });
}
EMULATED __m512i _mm512_mullo_epi32(__m512i a, __m512i b) {      // the low 32 bits of the product
    return lanes<uint32_t>([&](int i) { return uint64_t(get<uint32_t>(a, i)) * get<uint32_t>(b, i); });
}
EMULATED int _mm512_reduce_add_epi32(__m512i a) {
    uint32_t total = 0;
    for (int i = 0; i < 16; ++i) total += get<uint32_t>(a, i);
    return static_cast<int>(total);
}

EMULATED __m512i _mm512_cvtepu8_epi32(__m128i a) {
    return lanes<int32_t>([&](int i) { return get<uint8_t>(a, i); });
}
EMULATED __m512i _mm512_cvtepi8_epi32(__m128i a) {
    return lanes<int32_t>([&](int i) { return get<int8_t>(a, i); });
}
EMULATED __m512i _mm512_cvtepu16_epi32(__m256i a) {
    return lanes<int32_t>([&](int i) { return get<uint16_t>(a, i); });
}
EMULATED __m128i _mm512_cvtsepi32_epi8(__m512i a) {              // signed saturation
    __m128i v;
    for (int i = 0; i < 16; ++i) {
        const int32_t x = get<int32_t>(a, i);
        set<int8_t>(v, i, static_cast<int8_t>(x > 127 ? 127 : x < -128 ? -128 : x));
    }
    return v;
}

// VNNI: unsigned bytes of a with signed bytes of b; the four products of a lane are added to it without saturation.
EMULATED __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    return lanes<uint32_t>([&](int i) {
        uint32_t total = get<uint32_t>(sum, i);
        for (int c = 4 * i; c < 4 * i + 4; ++c)
            total += static_cast<uint32_t>(int32_t(get<uint8_t>(a, c)) * int32_t(get<int8_t>(b, c)));
        return total;
    });
}

// ---- floats ------------------------------------------------------------------------------------------------------

EMULATED __m512 _mm512_loadu_ps(const void* p) { return read<__m512>(p); }
EMULATED void _mm512_storeu_ps(void* p, __m512 v) { std::memcpy(p, &v, 64); }
EMULATED __m512 _mm512_setzero_ps() { return floats([](int) { return 0.0f; }); }
EMULATED __m512 _mm512_set1_ps(float x) { return floats([=](int) { return x; }); }
EMULATED __m512 _mm512_castsi512_ps(__m512i v) { return read<__m512>(&v); }
EMULATED __m512i _mm512_castps_si512(__m512 v) { return read<__m512i>(&v); }

EMULATED __m512 _mm512_add_ps(__m512 a, __m512 b) { return floats([&](int i) { return a.lane[i] + b.lane[i]; }); }
EMULATED __m512 _mm512_sub_ps(__m512 a, __m512 b) { return floats([&](int i) { return a.lane[i] - b.lane[i]; }); }
EMULATED __m512 _mm512_mul_ps(__m512 a, __m512 b) { return floats([&](int i) { return a.lane[i] * b.lane[i]; }); }
EMULATED __m512 _mm512_div_ps(__m512 a, __m512 b) { return floats([&](int i) { return a.lane[i] / b.lane[i]; }); }
EMULATED __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) {
    return floats([&](int i) { return std::fma(a.lane[i], b.lane[i], c.lane[i]); });
}
// The second operand where one of them is NaN, or both are zeros.
EMULATED __m512 _mm512_max_ps(__m512 a, __m512 b) {
    return floats([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
EMULATED __m512 _mm512_min_ps(__m512 a, __m512 b) {
    return floats([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}

// imm: bits 4-7 the binary digits to keep, bits 0-2 the rounding, 0 to even. Only whole numbers to even are written here.
EMULATED __m512 _mm512_roundscale_ps(__m512 a, int imm) {
    if (imm & ~8) fault("vrndscaleps: rounding that is not emulated");
    return floats([&](int i) { return std::nearbyint(a.lane[i]); });
}

EMULATED __m512 _mm512_cvtepi32_ps(__m512i a) {
    return floats([&](int i) { return static_cast<float>(get<int32_t>(a, i)); });
}
// To even; 0x80000000 for what does not fit and for NaN.
EMULATED __m512i _mm512_cvtps_epi32(__m512 a) {
    return lanes<int32_t>([&](int i) {
        const float x = std::nearbyint(a.lane[i]);
        return x >= -2147483648.0f && x < 2147483648.0f ? static_cast<int32_t>(x) : INT32_MIN;
    });
}

EMULATED __m512 _mm512_cvtph_ps(__m256i a) {
    return floats([&](int i) {
        const uint16_t h = get<uint16_t>(a, i);
        const int exponent = h >> 10 & 31, fraction = h & 1023;
        float x = exponent == 31 ? (fraction ? NAN : INFINITY)
                  : exponent     ? std::ldexp(float(1024 + fraction), exponent - 25)
                                 : std::ldexp(float(fraction), -24);
        return h >> 15 ? -x : x;
    });
}

// imm 0 or 8: to even. Overflow goes to infinity, denormals are kept.
EMULATED __m256i _mm512_cvtps_ph(__m512 a, int imm) {
    if (imm & ~8) fault("vcvtps2ph: rounding that is not emulated");
    __m256i v;
    for (int i = 0; i < 16; ++i) {
        const float x = std::fabs(a.lane[i]);
        uint32_t h;
        if (std::isnan(x)) {
            h = 0x7e00;
        } else if (x >= 65520.0f) {
            h = 0x7c00;
        } else {
            int exponent = x < 0x1p-14f ? -14 : std::ilogb(x);
            const uint32_t digits = static_cast<uint32_t>(std::nearbyint(std::ldexp(x, 10 - exponent)));
            h = (uint32_t(exponent + 14) << 10) + digits;          // digits from 1024 up carry into the exponent
        }
        set<uint16_t>(v, i, static_cast<uint16_t>(h | (std::signbit(a.lane[i]) ? 0x8000 : 0)));
    }
    return v;
}

// ---- tiles -------------------------------------------------------------------------------------------------------

struct Tiles {
    uint8_t config[64];            // as ldtilecfg read it; all 0: no tile may be used
    uint8_t data[8][16][64];
    bool configured_now;           // and not used yet: ldtilecfg clears the tiles

    int rows(int tile) const { return config[48 + tile]; }
    int row_bytes(int tile) const { return config[16 + 2 * tile] | config[17 + 2 * tile] << 8; }

    void must_exist(int tile) {
        must_be_configured();
        if (configured_now) std::memset(data, 0, sizeof data);
        configured_now = false;
        if (!rows(tile)) fault("a tile is used that has no rows");
    }
    // What ldtilecfg would refuse. Looked at when a tile is used, see _tile_loadconfig.
    void must_be_configured() const {
        if (config[0] == 0) fault("a tile is used without ldtilecfg");
        if (config[0] != 1) fault("ldtilecfg: unknown palette");
        if (config[1]) fault("ldtilecfg: starts at a row, which is only for resuming");
        for (int i = 2; i < 64; ++i)
            if ((i < 16 || (i >= 32 && i < 48) || i >= 56) && config[i]) fault("ldtilecfg: reserved bytes are not 0");
        for (int i = 0; i < 8; ++i) {
            if (rows(i) > 16 || row_bytes(i) > 64) fault("ldtilecfg: a tile is larger than 16 x 64 bytes");
            if (!rows(i) != !row_bytes(i)) fault("ldtilecfg: a tile has rows without bytes or bytes without rows");
        }
    }
};

inline thread_local Tiles tiles = {};

EMULATED void _tile_release() { tiles = Tiles{}; }

// Reads 64 bytes, but tells the compiler of 8, as gcc 12's <immintrin.h> does: without a barrier before it, stores to the
// rest of the configuration are removed here just as there. Any call in here would keep them. Sanitizers see a copy.
UNSEEN void _tile_loadconfig(const void* config) {
    tiles.configured_now = true;
#ifdef __SANITIZE_ADDRESS__
    std::memcpy(tiles.config, config, 64);
#else
    asm volatile("lea %X0, %%rsi\n\tmov %1, %%rdi\n\tmov $64, %%ecx\n\trep movsb"
                 :
                 : "m"(*static_cast<const void* const*>(config)), "r"(tiles.config)
                 : "rsi", "rdi", "rcx");
#endif
}

EMULATED void _tile_zero(int tile) {
    tiles.must_exist(tile);
    std::memset(tiles.data[tile], 0, sizeof tiles.data[tile]);
}

// What is past the rows and bytes of the tile becomes 0.
EMULATED void _tile_loadd(int tile, const void* base, long stride) {
    _tile_zero(tile);
    for (int row = 0; row < tiles.rows(tile); ++row)
        std::memcpy(tiles.data[tile][row], static_cast<const uint8_t*>(base) + row * stride, tiles.row_bytes(tile));
}

EMULATED void _tile_stored(int tile, void* base, long stride) {
    tiles.must_exist(tile);
    for (int row = 0; row < tiles.rows(tile); ++row)
        std::memcpy(static_cast<uint8_t*>(base) + row * stride, tiles.data[tile][row], tiles.row_bytes(tile));
}

inline void must_multiply(int sum, int a, int b) {
    Tiles& t = tiles;
    for (int tile : {sum, a, b}) {
        t.must_exist(tile);
        if (t.row_bytes(tile) % 4) fault("a tile product of rows that are no multiple of 4 bytes");
    }
    if (sum == a || sum == b || a == b) fault("a tile product of a tile with itself");
    if (t.rows(sum) != t.rows(a) || t.row_bytes(sum) != t.row_bytes(b) || t.row_bytes(a) / 4 != t.rows(b))
        fault("a tile product of shapes that do not match");
}

// sum[m][n] += a[m][k][0..3] * b[k][n][0..3], bytes of type A and B, int32 that wraps.
template <class A, class B>
void multiply_bytes(int sum, int a, int b) {
    must_multiply(sum, a, b);
    Tiles& t = tiles;
    for (int m = 0; m < t.rows(a); ++m)
        for (int k = 0; k < t.row_bytes(a) / 4; ++k)
            for (int n = 0; n < t.row_bytes(b) / 4; ++n) {
                uint32_t total;
                std::memcpy(&total, t.data[sum][m] + 4 * n, 4);
                for (int c = 0; c < 4; ++c)
                    total += static_cast<uint32_t>(int32_t(static_cast<A>(t.data[a][m][4 * k + c])) *
                                                   int32_t(static_cast<B>(t.data[b][k][4 * n + c])));
                std::memcpy(t.data[sum][m] + 4 * n, &total, 4);
            }
}

EMULATED void _tile_dpbssd(int sum, int a, int b) { multiply_bytes<int8_t, int8_t>(sum, a, b); }
EMULATED void _tile_dpbsud(int sum, int a, int b) { multiply_bytes<int8_t, uint8_t>(sum, a, b); }

inline float without_denormal(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }

// bfloat16 pairs. The products of the even columns and those of the odd ones are summed apart, each with one rounding per
// product, then both together, then onto the sum; denormals are 0 as operands and as results.
EMULATED void _tile_dpbf16ps(int sum, int a, int b) {
    must_multiply(sum, a, b);
    Tiles& t = tiles;
    const auto value = [](const uint8_t* p) {
        const uint32_t bits = uint32_t(p[0]) << 16 | uint32_t(p[1]) << 24;
        float x;
        std::memcpy(&x, &bits, 4);
        return without_denormal(x);
    };
    for (int m = 0; m < t.rows(a); ++m)
        for (int n = 0; n < t.row_bytes(b) / 4; ++n) {
            float part[2] = {0, 0};
            for (int k = 0; k < t.row_bytes(a) / 4; ++k)
                for (int c = 0; c < 2; ++c)
                    part[c] = without_denormal(std::fma(value(t.data[a][m] + 4 * k + 2 * c),
                                                        value(t.data[b][k] + 4 * n + 2 * c), part[c]));
            float total;
            std::memcpy(&total, t.data[sum][m] + 4 * n, 4);
            total = without_denormal(without_denormal(total) + without_denormal(part[0] + part[1]));
            std::memcpy(t.data[sum][m] + 4 * n, &total, 4);
        }
}

}  // namespace zeropoint::emulated

#undef EMULATED
#undef UNSEEN
