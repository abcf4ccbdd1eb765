// Two paths of the library beside one another, for processors that run in an emulator: `compare_paths LIBRARY PATH`.
// What the baseline prepares is prepared to the byte, and its products differ in float32's last bits alone.
#include <dlfcn.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <vector>

using Choose = const char* (*)(const char*);
using Bytes = int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t);
using Prepare = void (*)(char*, const uint16_t*, const float*, const float*, const float*, const void*, int64_t, const uint16_t*,
                         int64_t, const void*, int64_t, const uint16_t*, int64_t, const uint16_t*, int64_t, int64_t, int64_t, int64_t,
                         int64_t, int64_t);
using Linear = void (*)(uint16_t*, char*, const uint8_t*, const uint16_t*, const uint16_t*, const void*, int64_t, const uint16_t*,
                        int64_t, const void*, int64_t, const uint16_t*, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                        int64_t, int64_t);

static float uniform() { return rand() / (float)RAND_MAX * 2 - 1; }
static uint16_t narrow(float f) { uint32_t u; memcpy(&u, &f, 4); return (u + 0x8000) >> 16; }
static float wide(uint16_t h) { uint32_t u = (uint32_t)h << 16; float f; memcpy(&f, &u, 4); return f; }
static std::vector<uint16_t> drawn(int64_t n) { std::vector<uint16_t> v(n); for (auto& each : v) each = narrow(uniform()); return v; }

int main(int, char** arguments) {
    void* library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return puts(dlerror()), 2;
    auto choose = (Choose)dlsym(library, "qe_choose");
    auto bytes = (Bytes)dlsym(library, "qe_prepared_bytes");
    auto prepare = (Prepare)dlsym(library, "qe_prepare");
    auto linear = (Linear)dlsym(library, "qe_linear");
    if (!choose(arguments[2])) return printf("no path %s here\n", arguments[2]), 2;
    const int64_t tokens[] = {1, 2, 3, 7, 16, 29}, outs = 72, panels = 5, experts = 3, shared = 5, routed = 4;
    int64_t cases = 0;
    for (int64_t m : tokens) for (int64_t width : {64, 320}) for (int64_t bits : {6, 8, 16}) for (int64_t parts : {1, 2}) {
        const int64_t group = 64;
        auto x = drawn(m * width), router = drawn(experts * width), bias = drawn(outs), scales = drawn(panels * parts * width / group * 16);
        auto shared_down = drawn(shared * width), shared_up = drawn(panels * shared * 16), routed_scale = drawn(experts * panels * 16);
        std::vector<float> smooth(width);
        for (auto& each : smooth) each = uniform() + 1.5f;
        std::vector<int8_t> routed_down(experts * routed * width), routed_up(experts * panels * routed * 16);
        for (auto& each : routed_down) each = rand();
        for (auto& each : routed_up) each = rand();
        auto down_scale = drawn(experts * routed);
        std::vector<uint8_t> blocks(panels * parts * width * 8);
        for (auto& each : blocks) each = rand();
        std::vector<char> prepared[2];
        std::vector<uint16_t> y[2];
        const char* names[] = {"baseline", arguments[2]};
        for (int i = 0; i < 2; i++) {
            choose(names[i]);
            prepared[i].resize(bytes(m, width, group, bits, shared + routed));
            y[i].resize(m * outs);
            prepare(prepared[i].data(), x.data(), smooth.data(), nullptr, nullptr, shared_down.data(), 1, nullptr, shared, routed_down.data(),
                    2, down_scale.data(), routed, router.data(), experts, m, width, group, bits, 1);
            linear(y[i].data(), prepared[i].data(), blocks.data(), scales.data(), bias.data(), shared_up.data(), 1, nullptr, shared,
                   routed_up.data(), 2, routed_scale.data(), routed, m, width, group, group, bits, parts, outs, 1);
        }
        const int64_t codes = m * width * (bits == 16 ? 2 : 1);
        if (memcmp(prepared[0].data(), prepared[1].data(), codes)) return printf("codes differ: %ld tokens, %ld wide, A%ld\n", m, width, bits), 1;
        double error = 0, norm = 0;
        for (int64_t i = 0; i < m * outs; i++) {
            error += pow(wide(y[0][i]) - wide(y[1][i]), 2);
            norm += pow(wide(y[0][i]), 2);
        }
        if (!(sqrt(error / norm) < 1e-3)) return printf("products differ by %g: %ld tokens, %ld wide, A%ld\n", sqrt(error / norm), m, width, bits), 1;
        cases++;
    }
    printf("%s: %ld cases\n", arguments[2], cases);
}
