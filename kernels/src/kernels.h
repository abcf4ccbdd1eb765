// What the entry points (dispatch.cpp) and the paths for each processor (path.cpp) share.
#pragma once
#include <stdint.h>

namespace qe {

constexpr int PANEL = 16;  // output channels side by side

enum Kind : int32_t { NONE = 0, BFLOAT16 = 1, INT8 = 2 };

// (rows, columns) with one bfloat16 scale for each row where the kind is INT8.
struct Matrix {
    const void* data;
    const uint16_t* scale;
    int64_t kind, rows;
};

// One input group's activation. Tokens lie in the order of `order`, sorted by expert; `choice` is by token. Sections of
// `prepared`, in this order, each at a multiple of 64 bytes:
// codes (planes, tokens, width) int8 · offsets (groups, tokens) int32, -8 times the sums of codes · scales (groups or 1, tokens)
// float32 ·
// low (tokens, shared + routed rank) float32 · choice (tokens) int32 · order (tokens) int32 · rows (tokens, width) bfloat16.
struct Sections {
    int8_t* codes;
    int32_t* offsets;
    float* scales;
    float* low;
    int32_t* choice;
    int32_t* order;
    uint16_t* rows;
};

struct Prepare {
    const uint16_t* x;      // (tokens, width) bfloat16
    const float* smooth;    // (width), or null
    const float* turned;    // (tokens, width): what is quantized where it is not x / smooth, or null
    const float* scale;     // (tokens): where it is not the largest magnitude / bound, or null
    Matrix shared, routed;  // "down" halves; routed: one after the other, `rows` of each
    const uint16_t* router; // (experts, width) bfloat16, or null
    int64_t experts, tokens, width, group, bits;
    Sections out;
};

struct Linear {
    uint16_t* y;            // (tokens, outs) bfloat16
    Sections in;
    const uint8_t* blocks;  // (panels, parts * width / 8, 16, 4): k and k + 4 in the halves of a byte
    const uint16_t* scales; // (panels, parts * width / weight_group, 16) bfloat16
    const uint16_t* bias;   // (outs) bfloat16, or null
    Matrix shared, routed;  // "up" halves: (panels, rank, 16), routed one after the other; `rows` is the rank
    int64_t tokens, width, group, weight_group, parts, planes, outs;
};

struct Path {
    const char* name;
    // The expert of tokens first to last - 1.
    void (*route)(const Prepare&, int64_t first, int64_t last);
    // Codes and scales of places first to last - 1.
    void (*quantize)(const Prepare&, int64_t first, int64_t last);
    // Low-rank activations of places first to last - 1: rows first_row to last_row - 1 of both "down" halves together.
    void (*down)(const Prepare&, int64_t first, int64_t last, int64_t first_row, int64_t last_row);
    // Panels first to last - 1 of every token.
    void (*linear)(const Linear&, int64_t first, int64_t last);
};

extern const Path baseline;
#if defined(__x86_64__)
extern const Path avx2, avxvnni, avx512vnni, avx512bf16;
#elif defined(__aarch64__)
extern const Path neondot;
#endif

}  // namespace qe
