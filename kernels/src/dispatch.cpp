// The C interface. Chooses the path for this processor, and splits work between the threads of the caller's OpenMP.
#include "kernels.h"

#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace qe {
namespace {

// GOMP_parallel of the OpenMP runtime that torch has loaded; no second pool of threads beside torch's own.
typedef void (*Parallel)(void (*)(void*), void*, unsigned, unsigned);
Parallel parallel = nullptr;
const Path* path = &baseline;

struct Work {
    void (*run)(const void* argument, int64_t item);
    const void* argument;
    int64_t items, next;
};

void take_items(void* data) {
    Work& work = *(Work*)data;
    for (int64_t item; (item = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED)) < work.items;) work.run(work.argument, item);
}

void for_each(int64_t items, int64_t threads, void (*run)(const void*, int64_t), const void* argument) {
    Work work = {run, argument, items, 0};
    threads = threads < items ? threads : items;
    if (threads > 1 && parallel) parallel(take_items, &work, threads, 0);
    else take_items(&work);
}

int64_t align(int64_t bytes) { return (bytes + 63) / 64 * 64; }
int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t lay_out(Sections& s, char* start, int64_t tokens, int64_t width, int64_t groups, int64_t bits, int64_t rank) {
    const int64_t planes = bits == 16 ? 2 : 1;
    char* at = start;
    s.codes = (int8_t*)at, at += align(planes * tokens * width);
    s.offsets = (int32_t*)at, at += align(4 * tokens * groups);
    s.scales = (float*)at, at += align(4 * tokens * (planes == 2 ? groups : 1));
    s.low = (float*)at, at += align(4 * tokens * rank);
    s.choice = (int32_t*)at, at += align(4 * tokens);
    s.order = (int32_t*)at, at += align(4 * tokens);
    s.rows = (uint16_t*)at, at += rank ? align(2 * tokens * width) : 0;
    return at - start;
}

struct Split { const Prepare* prepare; int64_t tokens, rows; };

bool has(const Path& wanted) {
    if (&wanted == &baseline) return true;
#if defined(__x86_64__)
    unsigned a, b, c, d, c1;
    if (!__get_cpuid_count(1, 0, &a, &b, &c1, &d) || !(c1 & bit_OSXSAVE)) return false;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    const bool ymm = (low & 6) == 6, zmm = (low & 0xe6) == 0xe6;
    const bool has_avx2 = ymm && (b & (1u << 5)) && (c1 & (1u << 12));  // with FMA
    const unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    const bool has_avx512vnni = zmm && (b & f_dq_bw_vl) == f_dq_bw_vl && (c & (1u << 11));
    if (&wanted == &avx512vnni) return has_avx512vnni;
    if (&wanted == &avx2) return has_avx2;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d)) return false;
    return &wanted == &avx512bf16 ? has_avx512vnni && (a & (1u << 5)) : has_avx2 && (a & (1u << 4));
#elif defined(__aarch64__)
    return getauxval(AT_HWCAP) & (1ul << 20);  // ASIMDDP
#endif
}

const Path* const paths[] = {
#if defined(__x86_64__)
    &avx512bf16, &avx512vnni, &avxvnni, &avx2,
#elif defined(__aarch64__)
    &neondot,
#endif
    &baseline,
};

}  // namespace
}  // namespace qe

using namespace qe;

extern "C" {

// Chooses the path `name`, or the best one where it is empty. Returns its name; null where this processor lacks it.
__attribute__((visibility("default"))) const char* qe_choose(const char* name) {
    for (const Path* each : paths)
        if ((!*name || !strcmp(name, each->name)) && has(*each)) return (path = each)->name;
    return nullptr;
}

__attribute__((visibility("default"))) void qe_set_parallel(void* gomp_parallel) { parallel = (Parallel)gomp_parallel; }

// Bytes of `prepared`.
__attribute__((visibility("default"))) int64_t qe_prepared_bytes(int64_t tokens, int64_t width, int64_t group, int64_t bits, int64_t rank) {
    Sections s;
    return lay_out(s, nullptr, tokens, width, width / group, bits, rank);
}

__attribute__((visibility("default"))) void qe_prepare(
    char* prepared, const uint16_t* x, const float* smooth, const float* turned, const float* scale,
    const void* shared, int64_t shared_kind, const uint16_t* shared_scale, int64_t shared_rank,
    const void* routed, int64_t routed_kind, const uint16_t* routed_scale, int64_t routed_rank,
    const uint16_t* router, int64_t experts, int64_t tokens, int64_t width, int64_t group, int64_t bits, int64_t threads) {
    Prepare a = {x, smooth, turned, scale, {shared, shared_scale, shared_kind, shared_rank}, {routed, routed_scale, routed_kind, routed_rank},
                 router, experts, tokens, width, group, bits, {}};
    const int64_t rank = shared_rank + routed_rank;
    lay_out(a.out, prepared, tokens, width, width / group, bits, rank);
    if (!rank) a.out.rows = nullptr;
    const int64_t few = 4, parts = ceil(tokens, few);
    Split split = {&a, few, rank};
    if (router) {
        for_each(parts, threads, [](const void* p, int64_t item) {
            const Split& s = *(const Split*)p;
            const int64_t first = item * s.tokens, end = first + s.tokens, all = s.prepare->tokens;
            path->route(*s.prepare, first, end < all ? end : all);
        }, &split);
        int64_t place = 0;
        for (int64_t e = 0; e < experts; e++)
            for (int64_t t = 0; t < tokens; t++)
                if (a.out.choice[t] == e) a.out.order[place++] = t;
    } else
        for (int64_t t = 0; t < tokens; t++) a.out.order[t] = t, a.out.choice[t] = 0;
    for_each(parts, threads, [](const void* p, int64_t item) {
        const Split& s = *(const Split*)p;
        const int64_t first = item * s.tokens, end = first + s.tokens, all = s.prepare->tokens;
        path->quantize(*s.prepare, first, end < all ? end : all);
    }, &split);
    if (!rank) return;
    // Few tokens: the rows of the matrices are split instead.
    Split work = {&a, tokens, 8};
    if (tokens >= 16) work = {&a, 16, rank};
    for_each(ceil(tokens, work.tokens) * ceil(rank, work.rows), threads, [](const void* p, int64_t item) {
        const Split& s = *(const Split*)p;
        const int64_t all = s.prepare->tokens, rows = s.prepare->shared.rows + s.prepare->routed.rows, across = ceil(rows, s.rows);
        const int64_t first = item / across * s.tokens, row = item % across * s.rows;
        path->down(*s.prepare, first, first + s.tokens < all ? first + s.tokens : all, row, row + s.rows < rows ? row + s.rows : rows);
    }, &work);
}

__attribute__((visibility("default"))) void qe_linear(
    uint16_t* y, char* prepared, const uint8_t* blocks, const uint16_t* scales, const uint16_t* bias,
    const void* shared, int64_t shared_kind, const uint16_t* shared_scale, int64_t shared_rank,
    const void* routed, int64_t routed_kind, const uint16_t* routed_scale, int64_t routed_rank,
    int64_t tokens, int64_t width, int64_t group, int64_t weight_group, int64_t bits, int64_t parts, int64_t outs, int64_t threads) {
    Linear a = {y, {}, blocks, scales, bias, {shared, shared_scale, shared_kind, shared_rank}, {routed, routed_scale, routed_kind, routed_rank},
                tokens, width, group, weight_group, parts, bits == 16 ? 2 : 1, outs};
    lay_out(a.in, prepared, tokens, width, width / group, bits, shared_rank + routed_rank);
    // A thread that is woken costs microseconds: it gets at least some ten of them to do.
    const int64_t work = width * parts * outs * tokens, enough = work >> 19, panels = ceil(outs, PANEL);
    if (threads > enough) threads = enough > 0 ? enough : 1;
    struct Range { const Linear* linear; int64_t panels, each; } range = {&a, panels, 0};
    range.each = threads == 1 ? panels : ceil(ceil(panels, threads * 4), 4) * 4;
    for_each(ceil(panels, range.each), threads, [](const void* p, int64_t item) {
        const Range& r = *(const Range*)p;
        const int64_t first = item * r.each, end = first + r.each;
        path->linear(*r.linear, first, end < r.panels ? end : r.panels);
    }, &range);
}

}
