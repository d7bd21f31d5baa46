// Vectors of the width this instance is compiled for, on the vector extensions of GCC and Clang.
//
// WINNOW_ISA names the namespace of the instance (avx512, avx2, portable) and sets nothing else: the widths follow
// from the target flags. Nothing here may be shared between instances, or the linker could hand code for a newer
// processor to an older one: no library templates, everything in the namespace of the instance.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace winnow {
namespace WINNOW_ISA {

#if defined(__AVX512F__)
constexpr int W = 16;             // lanes of a vector
constexpr int kTileRows = 6;      // rows and vectors of a register tile of the matrix products
constexpr int kTileVectors = 4;
#elif defined(__AVX2__)
constexpr int W = 8;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;
#else
constexpr int W = 4;
constexpr int kTileRows = 4;
constexpr int kTileVectors = 2;
#endif

typedef float vf __attribute__((vector_size(W * 4)));
typedef int32_t vi __attribute__((vector_size(W * 4)));
typedef float unaligned_vf __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t unaligned_vi __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef float f4 __attribute__((vector_size(16)));
typedef float unaligned_f4 __attribute__((vector_size(16), aligned(4), may_alias));

constexpr float kInfinity = __builtin_inff();
constexpr float kLowest = -3.40282347e38f;  // of all finite numbers

#define WINNOW_INLINE inline __attribute__((always_inline))

WINNOW_INLINE vf load(const float* p) { return *reinterpret_cast<const unaligned_vf*>(p); }
WINNOW_INLINE vi load(const int32_t* p) { return *reinterpret_cast<const unaligned_vi*>(p); }
WINNOW_INLINE void store(float* p, vf x) { *reinterpret_cast<unaligned_vf*>(p) = x; }
WINNOW_INLINE vf splat(float x) { return x - vf{}; }
WINNOW_INLINE vi splat(int32_t x) { return x - vi{}; }

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
constexpr int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
constexpr int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }

// The second argument where either is NaN, as the processors' instructions have it.
WINNOW_INLINE vf max(vf a, vf b) {
#if defined(__AVX512F__)
    return vf(_mm512_max_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
    return vf(_mm256_max_ps(__m256(a), __m256(b)));
#else
    return a > b ? a : b;
#endif
}
WINNOW_INLINE vf min(vf a, vf b) {
#if defined(__AVX512F__)
    return vf(_mm512_min_ps(__m512(a), __m512(b)));
#elif defined(__AVX2__)
    return vf(_mm256_min_ps(__m256(a), __m256(b)));
#else
    return a < b ? a : b;
#endif
}

// Lanes of x where `keep` is set, elsewhere those of y. Masks are all ones or all zeros.
WINNOW_INLINE vf where(vi keep, vf x, vf y) { return keep ? x : y; }

WINNOW_INLINE f4 higher(f4 a, f4 b) { return a > b ? a : b; }

WINNOW_INLINE float sum(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps(__m512(x));
#else
    f4 parts[W / 4];
    std::memcpy(parts, &x, sizeof parts);
    f4 total = parts[0];
    for (int i = 1; i < W / 4; ++i) total += parts[i];
    total += __builtin_shufflevector(total, total, 2, 3, 0, 1);
    return total[0] + total[1];
#endif
}
WINNOW_INLINE float highest(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(__m512(x));
#else
    f4 parts[W / 4];
    std::memcpy(parts, &x, sizeof parts);
    f4 most = parts[0];
    for (int i = 1; i < W / 4; ++i) most = higher(most, parts[i]);
    most = higher(most, __builtin_shufflevector(most, most, 2, 3, 0, 1));
    return most[0] > most[1] ? most[0] : most[1];
#endif
}

// x, kept from being fused with what it is added to: where two paths must give the same bits.
WINNOW_INLINE vf rounded(vf x) {
#if defined(__x86_64__)
    asm("" : "+v"(x));
#elif defined(__aarch64__)
    asm("" : "+w"(x));
#endif
    return x;
}

// e^x for x <= 88, within an ulp; exactly 0 below -87.3, where the result would be denormal, and at -inf; NaN at NaN.
// x = n ln 2 + r with |r| <= ln 2 / 2; the polynomial for e^r is a minimax fit of (e^r - 1 - r) / r^2 weighted by
// r^2 / e^r, relative error 0.05 ulp before rounding.
WINNOW_INLINE vf exp(vf x) {
    constexpr float lowest = -87.3f, to_integer = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const vi nothing = x < lowest;
    x = max(splat(lowest), x);
    const vf shifted = x * 1.44269504f + to_integer;
    const vf n = shifted - to_integer;
    vf r = x - n * 0.693145752f;  // ln 2 in two parts: the first has zeros at its end, so the product is exact
    r = r - n * 1.42860677e-6f;
    vf tail = 0.00138144335f * r + 0.00836879667f;
    tail = tail * r + 0.0416683964f;
    tail = tail * r + 0.166665196f;
    tail = tail * r + 0.49999994f;
    const vf mantissa = (tail * r) * r + r + 1.0f;
    vi bits, whole;
    std::memcpy(&bits, &mantissa, sizeof bits);
    std::memcpy(&whole, &shifted, sizeof whole);
    bits += whole << 23;  // the integer stands in the lowest bits of `shifted`
    vf result;
    std::memcpy(&result, &bits, sizeof result);
    return where(nothing, vf{}, result);
}

// Denormals read and written as zero while it lives, in its thread (their arithmetic is many times slower).
class FlushDenormals {
#if defined(__x86_64__)
   public:
    FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(before_); }

   private:
    unsigned before_;
#elif defined(__aarch64__)
   public:
    FlushDenormals() {
        asm volatile("mrs %0, fpcr" : "=r"(before_));
        asm volatile("msr fpcr, %0" : : "r"(before_ | (1ull << 24)));
    }
    ~FlushDenormals() { asm volatile("msr fpcr, %0" : : "r"(before_)); }

   private:
    uint64_t before_;
#else
   public:
    FlushDenormals() {}
#endif
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;
};

}  // namespace WINNOW_ISA
}  // namespace winnow
