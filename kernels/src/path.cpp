// One path, compiled once for each processor with PATH as its name and the flags of its instructions (compile.py).
//
// Lanes of a vector are output channels; four consecutive inputs of a channel are one lane of an integer dot product.
// Weights are stored as code + 8, unsigned: sum (c + 8) x - 8 sum x, both exact in int32.
#include "kernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace qe {
namespace {

#if defined(__AVX512VNNI__)
constexpr int W = 16, TILE = 12;
#elif defined(__AVX2__)
constexpr int W = 8, TILE = 4;
#else
constexpr int W = 4, TILE = 4;
#endif
constexpr int VECTORS = PANEL / W;

typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef uint32_t U __attribute__((vector_size(4 * W)));
typedef uint16_t H __attribute__((vector_size(2 * W)));
typedef int8_t B __attribute__((vector_size(W)));

#define INLINE static inline __attribute__((always_inline))

template <class T> INLINE T load(const void* p) { T v; memcpy(&v, p, sizeof v); return v; }
template <class T> INLINE void store(void* p, T v) { memcpy(p, &v, sizeof v); }
INLINE F splat(float v) { return v - F{}; }
INLINE I splat_int(int32_t v) { return v - I{}; }
INLINE F widen(H v) { return (F)(__builtin_convertvector(v, U) << 16); }
INLINE F load_bfloat16(const uint16_t* p) { return widen(load<H>(p)); }
INLINE I load_int8(const int8_t* p) {
#if defined(__AVX512VNNI__)  // gcc 12 makes scalar code of the conversion below
    return (I)_mm512_cvtepi8_epi32(load<__m128i>(p));
#elif defined(__AVX2__)
    return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
    return __builtin_convertvector(load<B>(p), I);
#endif
}
template <bool INTEGER> INLINE F load_entries(const void* data, int64_t at) {
    if (INTEGER) return __builtin_convertvector(load_int8((const int8_t*)data + at), F);
    return load_bfloat16((const uint16_t*)data + at);
}
INLINE H narrow(F v) {  // to nearest, ties to even
    U u = (U)v;
    U rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
    U quiet = (u >> 16) | 0x40;
    return __builtin_convertvector((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded, H);
}
INLINE float bfloat16(uint16_t v) { uint32_t u = (uint32_t)v << 16; float f; memcpy(&f, &u, 4); return f; }
INLINE float total(F v) {
    float s[W];
    store(s, v);
    for (int step = W / 2; step; step /= 2)
        for (int i = 0; i < step; i++) s[i] += s[i + step];
    return s[0];
}
INLINE int32_t total(I v) { int32_t s = 0; for (int i = 0; i < W; i++) s += v[i]; return s; }
INLINE uint32_t largest(U v) { uint32_t s = 0; for (int i = 0; i < W; i++) s = v[i] > s ? v[i] : s; return s; }
INLINE int32_t four(const int8_t* p) { int32_t v; memcpy(&v, p, 4); return v; }

// --- The integer product --------------------------------------------------------------------------------------------

// acc[m][v] += sum over k of (c + 8)[k][v] x[m][k], `depth` values of k, a multiple of 32. panels: of each, its blocks.
template <int M, int P>
INLINE void multiply(I (&acc)[M][P * VECTORS], const uint8_t* const (&panels)[P], const int8_t* x, int64_t stride, int64_t depth) {
#if defined(__AVX512VNNI__)
    const __m512i low = _mm512_set1_epi8(15);
    for (int64_t k = 0; k < depth; k += 8) {
        __m512i first[P], second[P];
        for (int p = 0; p < P; p++) {
            __m512i both = _mm512_loadu_si512(panels[p] + 8 * k);
            first[p] = _mm512_and_si512(both, low);
            second[p] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        }
        for (int m = 0; m < M; m++) {
            __m512i four_x = _mm512_set1_epi32(four(x + m * stride + k));
            for (int p = 0; p < P; p++) acc[m][p] = (I)_mm512_dpbusd_epi32((__m512i)acc[m][p], first[p], four_x);
        }
        for (int m = 0; m < M; m++) {
            __m512i four_x = _mm512_set1_epi32(four(x + m * stride + k + 4));
            for (int p = 0; p < P; p++) acc[m][p] = (I)_mm512_dpbusd_epi32((__m512i)acc[m][p], second[p], four_x);
        }
    }
#elif defined(__AVX2__)
    const __m256i low = _mm256_set1_epi8(15);
#if !defined(__AVXVNNI__)
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t start = 0; start < depth; start += 32) {
        // 8 pairs of at most 2 * 15 * 128 fit in 16 bits.
        __m256i half[M][P * 2];
        for (int m = 0; m < M; m++) for (int v = 0; v < P * 2; v++) half[m][v] = _mm256_setzero_si256();
        for (int64_t k = start; k < start + 32; k += 8)
#else
        for (int64_t k = 0; k < depth; k += 8)
#endif
            for (int v = 0; v < P * 2; v++) {
                __m256i both = _mm256_loadu_si256((const __m256i*)(panels[v / 2] + 8 * k + 32 * (v % 2)));
                __m256i first = _mm256_and_si256(both, low), second = _mm256_and_si256(_mm256_srli_epi16(both, 4), low);
                for (int m = 0; m < M; m++) {
                    __m256i a = _mm256_set1_epi32(four(x + m * stride + k)), b = _mm256_set1_epi32(four(x + m * stride + k + 4));
#if defined(__AVXVNNI__)
                    acc[m][v] = (I)_mm256_dpbusd_avx_epi32((__m256i)acc[m][v], first, a);
                    acc[m][v] = (I)_mm256_dpbusd_avx_epi32((__m256i)acc[m][v], second, b);
#else
                    half[m][v] = _mm256_add_epi16(half[m][v], _mm256_maddubs_epi16(first, a));
                    half[m][v] = _mm256_add_epi16(half[m][v], _mm256_maddubs_epi16(second, b));
#endif
                }
            }
#if !defined(__AVXVNNI__)
        for (int m = 0; m < M; m++)
            for (int v = 0; v < P * 2; v++) acc[m][v] += (I)_mm256_madd_epi16(half[m][v], ones);
    }
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
    const uint8x16_t low = vdupq_n_u8(15);
    for (int64_t k = 0; k < depth; k += 8)
        for (int v = 0; v < P * 4; v++) {
            uint8x16_t both = vld1q_u8(panels[v / 4] + 8 * k + 16 * (v % 4));
            int8x16_t first = vreinterpretq_s8_u8(vandq_u8(both, low)), second = vreinterpretq_s8_u8(vshrq_n_u8(both, 4));
            for (int m = 0; m < M; m++) {
                int8x16_t a = vreinterpretq_s8_s32(vdupq_n_s32(four(x + m * stride + k)));
                int8x16_t b = vreinterpretq_s8_s32(vdupq_n_s32(four(x + m * stride + k + 4)));
                acc[m][v] = (I)vdotq_s32(vdotq_s32((int32x4_t)acc[m][v], first, a), second, b);
            }
        }
#else
    for (int64_t k = 0; k < depth; k += 8)
        for (int p = 0; p < P; p++)
            for (int n = 0; n < PANEL; n++)
                for (int m = 0; m < M; m++) {
                    int32_t sum = 0;
                    for (int j = 0; j < 4; j++) {
                        uint8_t both = panels[p][8 * k + 4 * n + j];
                        const int8_t* at = x + m * stride + k + j;
                        sum += (both & 15) * at[0] + (both >> 4) * at[4];
                    }
                    acc[m][p * VECTORS + n / W][n % W] += sum;
                }
#endif
}

// sums[m] += low[m] up for M tokens of one matrix; up: (matrices, panels, rank, 16), vector v of the panel.
template <int M, bool INTEGER>
INLINE void add_up(F* sums, const float* low, int64_t stride, const Matrix& up, int64_t place, int v) {
    constexpr int CHAINS = M == 1 ? 4 : M == 2 ? 2 : 1;  // additions that do not wait for one another
    F own[CHAINS][M] = {};
    const int64_t start = place * up.rows * PANEL + v * W;
    int64_t r = 0;
    for (; r + CHAINS <= up.rows; r += CHAINS)
        for (int c = 0; c < CHAINS; c++) {
            F entries = load_entries<INTEGER>(up.data, start + (r + c) * PANEL);
            for (int m = 0; m < M; m++) own[c][m] += entries * low[m * stride + r + c];
        }
    for (; r < up.rows; r++) {
        F entries = load_entries<INTEGER>(up.data, start + r * PANEL);
        for (int m = 0; m < M; m++) own[0][m] += entries * low[m * stride + r];
    }
    for (int c = 1; c < CHAINS; c++) for (int m = 0; m < M; m++) own[0][m] += own[c][m];
    const F scale = INTEGER ? load_bfloat16(up.scale + place * PANEL + v * W) : splat(1);
    for (int m = 0; m < M; m++) sums[m] += INTEGER ? own[0][m] * scale : own[0][m];
}

template <int M> INLINE void add_up(F* sums, const float* low, int64_t stride, const Matrix& up, int64_t place, int v) {
    if (up.kind == INT8) add_up<M, true>(sums, low, stride, up, place, v);
    else add_up<M, false>(sums, low, stride, up, place, v);
}

// Of any number of tokens.
template <int M> static void add_up_run(F* sums, const float* low, int64_t stride, const Matrix& up, int64_t place, int v, int tokens) {
    int m = 0;
    if (M >= 8) for (; tokens - m >= 8; m += 8) add_up<8>(sums + m, low + m * stride, stride, up, place, v);
    if (M >= 4) for (; tokens - m >= 4; m += 4) add_up<4>(sums + m, low + m * stride, stride, up, place, v);
    for (; m < tokens; m++) add_up<1>(sums + m, low + m * stride, stride, up, place, v);
}

// sums[m][v]: the product of places `first` to first + M - 1 with panels `panel` to panel + P - 1, without the token's scale.
template <int M, int P, bool TWO> INLINE void multiply_groups(F (&sums)[M][P * VECTORS], const Linear& a, int64_t first, int64_t panel) {
    constexpr int V = P * VECTORS;
    static const int32_t nothing[TILE] = {};
    const int64_t groups = a.width / a.group, depth = a.group, weight_groups = a.parts * a.width / a.weight_group;
    const int64_t panel_bytes = a.parts * a.width * PANEL / 2;
    for (int64_t g = 0; g < a.parts * groups; g++) {
        const int64_t at = g % groups;
        const uint8_t* blocks[P];
        for (int p = 0; p < P; p++) blocks[p] = a.blocks + (panel + p) * panel_bytes + g * depth * PANEL / 2;
        const int8_t* x = a.in.codes + first * a.width + at * depth;
        const int32_t* offsets = g < groups ? a.in.offsets + at * a.tokens + first : nothing; // of two parts the second has none
        I acc[M][V];
        if (TWO) {
            for (int m = 0; m < M; m++) for (int v = 0; v < V; v++) acc[m][v] = I{};
            multiply<M, P>(acc, blocks, x, a.width, depth);
            for (int m = 0; m < M; m++) for (int v = 0; v < V; v++) acc[m][v] = (acc[m][v] << 8) + offsets[m];
            x += a.tokens * a.width;
        } else
            for (int m = 0; m < M; m++) for (int v = 0; v < V; v++) acc[m][v] = splat_int(offsets[m]);
        multiply<M, P>(acc, blocks, x, a.width, depth);
        const int64_t weight_group = g * depth / a.weight_group;
        const float* scales = a.in.scales + at * a.tokens + first;
        for (int v = 0; v < V; v++) {
            F scale = load_bfloat16(a.scales + ((panel + v / VECTORS) * weight_groups + weight_group) * PANEL + v % VECTORS * W);
            for (int m = 0; m < M; m++) sums[m][v] += __builtin_convertvector(acc[m][v], F) * (TWO ? scale * scales[m] : scale);
        }
    }
}

template <int M, int P> static void tile(const Linear& a, int64_t first, int64_t panel) {
    constexpr int V = P * VECTORS;
    const bool two = a.planes == 2;
    F sums[M][V] = {};
    if (two) multiply_groups<M, P, true>(sums, a, first, panel);
    else multiply_groups<M, P, false>(sums, a, first, panel);
    const int64_t rank = a.shared.rows + a.routed.rows, panels = (a.outs + PANEL - 1) / PANEL;
    const float* low = a.in.low + first * rank;
    int64_t token[M];
    int end[M];  // of the run of tokens with the expert of m
    for (int m = M - 1; m >= 0; m--) {
        token[m] = a.in.order[first + m];
        end[m] = m + 1 < M && a.in.choice[token[m]] == a.in.choice[token[m + 1]] ? end[m + 1] : m + 1;
    }
    for (int v = 0; v < V; v++) {
        const int64_t here = panel + v / VECTORS, channel = here * PANEL + v % VECTORS * W, left = a.outs - channel;
        const int inner = v % VECTORS;
        if (left <= 0) continue;
        F y[M];
        for (int m = 0; m < M; m++) y[m] = two ? sums[m][v] : sums[m][v] * a.in.scales[first + m];
        if (a.shared.kind) add_up<M>(y, low, rank, a.shared, here, inner);
        if (a.routed.kind)
            for (int m = 0; m < M; m = end[m])
                add_up_run<M>(y + m, low + m * rank + a.shared.rows, rank, a.routed, a.in.choice[token[m]] * panels + here, inner, end[m] - m);
        if (a.bias) {
            uint16_t padded[W] = {};
            memcpy(padded, a.bias + channel, 2 * (left < W ? left : W));
            F bias = load_bfloat16(padded);
            for (int m = 0; m < M; m++) y[m] += bias;
        }
        for (int m = 0; m < M; m++) {
            H rounded = narrow(y[m]);
            memcpy(a.y + token[m] * a.outs + channel, &rounded, 2 * (left < W ? left : W));
        }
    }
}

template <int P> static int64_t tiles(const Linear& a, int64_t panel) {
    int64_t first = 0;
    constexpr int big = P > 2 ? 2 : TILE;
    for (; a.tokens - first >= big; first += big) tile<big, P>(a, first, panel);
    if (big > 8) for (; a.tokens - first >= 8; first += 8) tile<(big > 8 ? 8 : big), P>(a, first, panel);
    if (big > 4) for (; a.tokens - first >= 4; first += 4) tile<(big > 4 ? 4 : big), P>(a, first, panel);
    if (big > 2) for (; a.tokens - first >= 2; first += 2) tile<2, P>(a, first, panel);
    for (; first < a.tokens; first++) tile<1, P>(a, first, panel);
    return P;
}

void linear(const Linear& a, int64_t first, int64_t last) {
    while (first < last) {
        if (W == 16 && a.tokens <= 2 && last - first >= 4) first += tiles<(W == 16 ? 4 : 1)>(a, first);
        else if (W == 16 && last - first >= 2) first += tiles<(W == 16 ? 2 : 1)>(a, first);
        else first += tiles<1>(a, first);
    }
}

// --- Preparing ------------------------------------------------------------------------------------------------------

INLINE float power_of_two(uint32_t exponent) { exponent <<= 23; float f; memcpy(&f, &exponent, 4); return f; }

// Whole numbers of v / scale, to nearest, ties to even, bounded.
INLINE I whole(F v, float bound) {
    const F most = splat(bound), least = splat(-bound);
    v = v > most ? most : v;
    v = v < least ? least : v;
    const F magic = splat(12582912.0f); // 1.5 * 2^23: its last bit is 1
    return (I)(v + magic) - 0x4B400000;
}

// x / smooth, in `scaled`; returns the bits of the largest magnitude.
INLINE uint32_t scale_row(const Prepare& a, int64_t token, float* scaled) {
    const uint16_t* x = a.x + token * a.width;
    U most = {};
    for (int64_t k = 0; k < a.width; k += W) {
        F h = load_bfloat16(x + k);
        if (a.smooth) h = h / load<F>(a.smooth + k);
        store(scaled + k, h);
        U size = (U)h & 0x7fffffff;
        most = size > most ? size : most;
    }
    return largest(most);
}

void route(const Prepare& a, int64_t first, int64_t last) {
    const int64_t d = a.width;
    float* scaled = (float*)__builtin_alloca(d * sizeof(float));
    for (int64_t t = first; t < last; t++) {
        scale_row(a, t, scaled);
        float best = 0;
        int32_t choice = 0;
        for (int64_t e = 0; e < a.experts; e++) {
            F score[2] = {};
            const uint16_t* r = a.router + e * d;
            for (int64_t k = 0; k < d; k += 2 * W)
                for (int i = 0; i < 2; i++)
                    score[i] += (F)((U)load<F>(scaled + k + i * W) & 0x7fffffff) * load_bfloat16(r + k + i * W);
            float sum = total(score[0] + score[1]);
            if (e == 0 || sum < best) best = sum, choice = e;
        }
        a.out.choice[t] = choice;
    }
}

void quantize(const Prepare& a, int64_t first, int64_t last) {
    const int64_t d = a.width, groups = d / a.group;
    float* scaled = (float*)__builtin_alloca(d * sizeof(float));
    for (int64_t t = first; t < last; t++) {
        const int64_t token = a.out.order[t];
        uint32_t bits = scale_row(a, token, scaled);
        if (a.out.rows) for (int64_t k = 0; k < d; k += W) store(a.out.rows + t * d + k, narrow(load<F>(scaled + k)));
        const float* source = scaled;
        if (a.turned) {
            source = a.turned + token * d;
            U most = {};
            for (int64_t k = 0; k < d; k += W) {
                U size = (U)load<F>(source + k) & 0x7fffffff;
                most = size > most ? size : most;
            }
            bits = largest(most);
        }
        const bool finite = bits < 0x7f800000;
        const float nothing = __builtin_nanf("");
        int8_t* codes = a.out.codes + t * d;
        if (a.bits < 16) {
            const float bound = (1 << (a.bits - 1)) - 1;
            float scale;
            memcpy(&scale, &bits, 4);
            scale = a.scale ? a.scale[token] : scale / bound;
            if (!(scale > 0)) scale = 1;
            const F divisor = splat(scale);
            for (int64_t g = 0; g < groups; g++) {
                I sum = {};
                for (int64_t k = g * a.group; k < (g + 1) * a.group; k += W) {
                    I code = whole(load<F>(source + k) / divisor, bound);
                    store(codes + k, __builtin_convertvector(code, B));
                    sum += code;
                }
                a.out.offsets[g * a.tokens + t] = -8 * total(sum);
            }
            a.out.scales[t] = finite ? scale : nothing;
            continue;
        }
        // Sixteen bits in fixed point, a power of two for each group: exact for all within 2^7 of the group's largest.
        for (int64_t g = 0; g < groups; g++) {
            U own = {};
            for (int64_t k = g * a.group; k < (g + 1) * a.group; k += W) {
                U size = (U)load<F>(source + k) & 0x7fffffff;
                own = size > own ? size : own;
            }
            uint32_t exponent = (largest(own) + 0x8000) >> 23; // rounding to bfloat16 may carry
            exponent = exponent < 27 ? 27 : exponent > 254 ? 254 : exponent;
            const float inverse = power_of_two(268 - exponent);
            I sum = {};
            for (int64_t k = g * a.group; k < (g + 1) * a.group; k += W) {
                I value = whole(widen(narrow(load<F>(source + k))) * inverse, 32639.0f);
                I high = (value + 128) >> 8;
                store(codes + k, __builtin_convertvector(high, B));
                store(codes + a.tokens * d + k, __builtin_convertvector(value - (high << 8), B));
                sum += value;
            }
            a.out.offsets[g * a.tokens + t] = -8 * total(sum);
            a.out.scales[g * a.tokens + t] = finite ? power_of_two(exponent - 14) : nothing;
        }
    }
}

// low[m][r] = rows[m] . matrix[r] for M tokens and R rows.
template <int M, int R, bool INTEGER>
static void dots(const Prepare& a, const Matrix& matrix, int64_t start, int64_t place, int64_t column, int64_t row) {
    const int64_t d = a.width, rank = a.shared.rows + a.routed.rows;
    const uint16_t* x = a.out.rows + place * d;
    const int64_t at = (start + row) * d;
    F sum[M][R] = {};
#if defined(__AVX512BF16__)
    for (int64_t k = 0; k < d; k += 2 * W) {
        __m512bh own[R];
        for (int r = 0; r < R; r++)
            own[r] = INTEGER ? _mm512_cvtne2ps_pbh((__m512)load_entries<true>(matrix.data, at + r * d + k + W),
                                                   (__m512)load_entries<true>(matrix.data, at + r * d + k))
                             : load<__m512bh>((const uint16_t*)matrix.data + at + r * d + k);
        for (int m = 0; m < M; m++) {
            __m512bh h = load<__m512bh>(x + m * d + k);
            for (int r = 0; r < R; r++) sum[m][r] = (F)_mm512_dpbf16_ps((__m512)sum[m][r], h, own[r]);
        }
    }
#else
    for (int64_t k = 0; k < d; k += W) {
        F own[R];
        for (int r = 0; r < R; r++) own[r] = load_entries<INTEGER>(matrix.data, at + r * d + k);
        for (int m = 0; m < M; m++) {
            F h = load_bfloat16(x + m * d + k);
            for (int r = 0; r < R; r++) sum[m][r] += h * own[r];
        }
    }
#endif
    for (int r = 0; r < R; r++) {
        const float scale = INTEGER ? bfloat16(matrix.scale[start + row + r]) : 1;
        for (int m = 0; m < M; m++) a.out.low[(place + m) * rank + column + row + r] = total(sum[m][r]) * scale;
    }
}

template <int M, bool INTEGER>
static void dots(const Prepare& a, const Matrix& matrix, int64_t start, int64_t place, int64_t column, int64_t row, int64_t last) {
    constexpr int R = M == 1 ? 8 : 4;
    for (; last - row >= R; row += R) dots<M, R, INTEGER>(a, matrix, start, place, column, row);
    for (; row < last; row++) dots<M, 1, INTEGER>(a, matrix, start, place, column, row);
}

// `together`: tokens that are multiplied with the same matrix.
INLINE int64_t dots(const Prepare& a, const Matrix& matrix, int64_t start, int64_t place, int64_t together, int64_t column, int64_t row, int64_t last) {
    const bool integer = matrix.kind == INT8, four = together >= 4;
    if (four) integer ? dots<4, true>(a, matrix, start, place, column, row, last) : dots<4, false>(a, matrix, start, place, column, row, last);
    else integer ? dots<1, true>(a, matrix, start, place, column, row, last) : dots<1, false>(a, matrix, start, place, column, row, last);
    return four ? 4 : 1;
}

void down(const Prepare& a, int64_t first, int64_t last, int64_t first_row, int64_t last_row) {
    const int64_t shared = a.shared.rows, end = last_row < shared ? last_row : shared;
    if (first_row < end)
        for (int64_t place = first; place < last;)
            place += dots(a, a.shared, 0, place, last - place, 0, first_row, end);
    const int64_t begin = first_row > shared ? first_row - shared : 0, stop = last_row - shared;
    if (begin < stop)
        for (int64_t place = first; place < last;) {
            const int32_t* choice = a.out.choice;
            const int64_t expert = choice[a.out.order[place]];
            int64_t together = 1;
            while (together < 4 && place + together < last && choice[a.out.order[place + together]] == expert) together++;
            place += dots(a, a.routed, expert * a.routed.rows, place, together, shared, begin, stop);
        }
}

}  // namespace

#define TEXT(name) #name
#define NAME(name) TEXT(name)
const Path PATH = {NAME(PATH), route, quantize, down, linear};

}  // namespace qe
