// The library's entry points. Compiled once for every instruction set, each time with WINNOW_ISA naming it; the
// portable instance, which runs anywhere, is also given WINNOW_CHOOSES and holds what chooses among them.
#include "backward.h"
#include "decode.h"
#include "forward.h"

#define WINNOW_JOIN(name, isa) name##_##isa
#define WINNOW_NAMED(name, isa) WINNOW_JOIN(name, isa)

extern "C" int WINNOW_NAMED(winnow_forward, WINNOW_ISA)(const winnow::Problem* p, const winnow::Forward* to) {
    return winnow::WINNOW_ISA::forward(*p, *to);
}
extern "C" int WINNOW_NAMED(winnow_backward, WINNOW_ISA)(const winnow::Problem* p, const winnow::Backward* to) {
    return winnow::WINNOW_ISA::backward(*p, *to);
}
extern "C" int WINNOW_NAMED(winnow_decode, WINNOW_ISA)(const winnow::Decode* d, int part) {
    if (part == 0) winnow::WINNOW_ISA::write(*d);
    if (part == 1) winnow::WINNOW_ISA::look(*d);
    return 0;
}

#if defined(WINNOW_CHOOSES)

extern "C" {
#if defined(__x86_64__)
int winnow_forward_avx512(const winnow::Problem*, const winnow::Forward*);
int winnow_forward_avx2(const winnow::Problem*, const winnow::Forward*);
int winnow_backward_avx512(const winnow::Problem*, const winnow::Backward*);
int winnow_backward_avx2(const winnow::Problem*, const winnow::Backward*);
int winnow_decode_avx512(const winnow::Decode*, int);
int winnow_decode_avx2(const winnow::Decode*, int);
#endif

// The widest instance this processor can run: 2 AVX-512, 1 AVX2, 0 portable.
int winnow_widest() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        return 2;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return 1;
#endif
    return 0;
}

// 0, or 1 where memory ran out. `instance`: as above, and no wider than that.
int winnow_forward(int instance, const winnow::Problem* p, const winnow::Forward* to) {
#if defined(__x86_64__)
    if (instance == 2) return winnow_forward_avx512(p, to);
    if (instance == 1) return winnow_forward_avx2(p, to);
#else
    (void)instance;
#endif
    return winnow_forward_portable(p, to);
}
int winnow_backward(int instance, const winnow::Problem* p, const winnow::Backward* to) {
#if defined(__x86_64__)
    if (instance == 2) return winnow_backward_avx512(p, to);
    if (instance == 1) return winnow_backward_avx2(p, to);
#else
    (void)instance;
#endif
    return winnow_backward_portable(p, to);
}
// `part`: 0 writes the new key, 1 looks at what is held and votes.
int winnow_decode(int instance, const winnow::Decode* d, int part) {
#if defined(__x86_64__)
    if (instance == 2) return winnow_decode_avx512(d, part);
    if (instance == 1) return winnow_decode_avx2(d, part);
#else
    (void)instance;
#endif
    return winnow_decode_portable(d, part);
}

int winnow_problem_size() { return sizeof(winnow::Problem); }
int winnow_forward_size() { return sizeof(winnow::Forward); }
int winnow_decode_size() { return sizeof(winnow::Decode); }
int winnow_backward_size() { return sizeof(winnow::Backward); }
}

#endif
