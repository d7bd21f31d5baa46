// Matrix products on small row-major matrices that lie in the first two caches, and the packing of their operands.
//
//     C (M x N) = or += A (M x K) B (K x N)         A may be given transposed (stored K x M): dV = P^T dO
//
// N is a multiple of W: callers pad the columns of B and C. M and K are free, so are lda, ldb, ldc.
#pragma once

#include "problem.h"
#include "simd.h"

namespace winnow {
namespace WINNOW_ISA {

// Parts of a square block on the diagonal (row i, column j <= i) that need no work. They are left out by whole
// register tiles, so a little of the upper triangle is computed: it must hold zeros in A, and is not to be read in C.
enum class Trim {
    none,
    columns,  // C is lower triangular: its row i is needed for columns <= i (logits, dP)
    depth,    // A is lower triangular: its row i is 0 for k > i (P V, dS K)
    start     // A is upper triangular, being the transpose of a lower one: row i is 0 for k < i (P^T dO, dS^T Q)
};

// Depth taken in one go: so much of B stays in the first cache while the rows of A pass by.
constexpr int kDepth = 128;

// Columns of row i that `Trim::columns` computes, out of n; vectors beyond were not written.
WINNOW_INLINE int trimmed_columns(int i, int rows, int n) {
    const int last = static_cast<int>(at_most((i / kTileRows + 1) * kTileRows, rows));
    return static_cast<int>(at_most(n, round_up(last, W)));
}

// What becomes of a register tile: written, or added to what an earlier call (or an earlier part of K) left.
struct Write {
    float* c;
    int64_t ldc;
    bool add;

    template <int R, int C>
    WINNOW_INLINE void operator()(int i0, int j0, bool first, bool, vf (&tile)[R][C]) const {
        if (first && !add) {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int j = 0; j < C; ++j) store(c + (i0 + r) * ldc + j0 + j * W, tile[r][j]);
        } else {
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
                for (int j = 0; j < C; ++j) {
                    float* at = c + (i0 + r) * ldc + j0 + j * W;
                    store(at, load(at) + tile[r][j]);
                }
        }
    }
};

// c = A B - f, and the largest of every row so far, lane by lane: row_max (M x W).
struct SubtractAndMax {
    float* c;
    int64_t ldc;
    const float* f;
    int64_t ldf;
    float* row_max;

    template <int R, int C>
    WINNOW_INLINE void operator()(int i0, int j0, bool first, bool last, vf (&tile)[R][C]) const {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            float* at = c + (i0 + r) * ldc + j0;
            if (!first)
#pragma GCC unroll 8
                for (int j = 0; j < C; ++j) tile[r][j] += load(at + j * W);
            if (last) {
                vf most = load(row_max + (i0 + r) * W);
#pragma GCC unroll 8
                for (int j = 0; j < C; ++j) {
                    tile[r][j] -= load(f + (i0 + r) * ldf + j0 + j * W);
                    most = max(most, tile[r][j]);
                }
                store(row_max + (i0 + r) * W, most);
            }
#pragma GCC unroll 8
            for (int j = 0; j < C; ++j) store(at + j * W, tile[r][j]);
        }
    }
};

template <bool transposed, int R, int C, class Put>
inline void register_tile(int from, int to, const float* a, int64_t lda, const float* b, int64_t ldb, int i0, int j0,
                          bool first, bool last, const Put& put) {
    vf tile[R][C] = {};
    a += transposed ? from * lda : from;
    b += from * ldb;
    for (int k = from; k < to; ++k) {
        vf column[C];
#pragma GCC unroll 8
        for (int j = 0; j < C; ++j) column[j] = load(b + j * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const vf x = splat(transposed ? a[r] : a[r * lda]);
#pragma GCC unroll 8
            for (int j = 0; j < C; ++j) tile[r][j] += x * column[j];
        }
        a += transposed ? lda : 1;
        b += ldb;
    }
    put(i0, j0, first, last, tile);
}

template <bool transposed, int R, class Put>
WINNOW_INLINE void tile_of_rows(int vectors, int from, int to, const float* a, int64_t lda, const float* b, int64_t ldb,
                                int i0, int j0, bool first, bool last, const Put& put) {
    switch (vectors) {
        case 1: return register_tile<transposed, R, 1>(from, to, a, lda, b, ldb, i0, j0, first, last, put);
        case 2: return register_tile<transposed, R, 2>(from, to, a, lda, b, ldb, i0, j0, first, last, put);
        case 3: return register_tile<transposed, R, at_most(3, kTileVectors)>(from, to, a, lda, b, ldb, i0, j0, first,
                                                                              last, put);
        default: return register_tile<transposed, R, kTileVectors>(from, to, a, lda, b, ldb, i0, j0, first, last, put);
    }
}

template <bool transposed, class Put>
void product(int M, int N, int K, const float* a, int64_t lda, const float* b, int64_t ldb, Trim trim, const Put& put) {
    for (int k0 = 0; k0 < K; k0 += kDepth) {
        const bool first = k0 == 0, last = k0 + kDepth >= K;
        for (int j0 = 0; j0 < N; j0 += kTileVectors * W) {
            for (int i0 = 0; i0 < M; i0 += kTileRows) {
                const int rows = static_cast<int>(at_most(kTileRows, M - i0));
                const int end = trim == Trim::columns ? static_cast<int>(at_most(N, round_up(i0 + rows, W))) : N;
                const int vectors = static_cast<int>(at_most(kTileVectors, (end - j0) / W));
                if (end <= j0) continue;
                const int from = trim == Trim::start && i0 > k0 ? i0 : k0;
                int to = static_cast<int>(at_most(k0 + kDepth, K));
                if (trim == Trim::depth) to = static_cast<int>(at_most(to, i0 + rows));
                if (to <= from && !first && !last) continue;
                const float* rows_of_a = a + (transposed ? i0 : i0 * lda);
#define WINNOW_ROWS(R)                                                                                            \
    case R:                                                                                                   \
        tile_of_rows<transposed, at_most(R, kTileRows)>(vectors, from, to, rows_of_a, lda, b + j0, ldb, i0, j0,   \
                                                        first, last, put);                                    \
        break;
                switch (rows) {
                    WINNOW_ROWS(1)
                    WINNOW_ROWS(2)
                    WINNOW_ROWS(3)
                    WINNOW_ROWS(4)
                    WINNOW_ROWS(5)
                    WINNOW_ROWS(6)
                }
#undef WINNOW_ROWS
            }
        }
    }
}

// C = A B, or C += A B.
inline void multiply(int M, int N, int K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                     int64_t ldc, bool add, Trim trim = Trim::none) {
    product<false>(M, N, K, a, lda, b, ldb, trim, Write{c, ldc, add});
}

// C = A^T B, or C += A^T B; A is stored K x M with row stride lda.
inline void multiply_transposed(int M, int N, int K, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                                int64_t ldc, bool add, Trim trim = Trim::none) {
    product<true>(M, N, K, a, lda, b, ldb, trim, Write{c, ldc, add});
}

// Rows of a tensor, times `factor`, as `rows` contiguous rows of `padded` >= `width` columns, the rest 0.
inline void pack_rows(int rows, int width, int padded, const float* from, int64_t stride, float factor, float* to) {
    for (int i = 0; i < rows; ++i, from += stride, to += padded) {
        int d = 0;
        for (; d + W <= width; d += W) store(to + d, load(from + d) * factor);
        for (; d < width; ++d) to[d] = from[d] * factor;
        for (; d < padded; ++d) to[d] = 0;
    }
}

static const float kZeros[4] = {0, 0, 0, 0};

// A panel of kBlock keys transposed, panel[d * kBlock + s]: the B of every product with K^T. `row(s)` is the data of
// the panel's key s, or null for a column of zeros.
template <class Row>
inline void pack_panel(int width, const Row& row, float* panel) {
    for (int s = 0; s < kBlock; s += 4) {
        const float* from[4];
        int64_t step[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) {
            const float* data = row(s + i);
            from[i] = data ? data : kZeros;
            step[i] = data ? 1 : 0;
        }
        float* to = panel + s;
        int d = 0;
        for (; d + 4 <= width; d += 4, to += 4 * kBlock) {
            f4 x[4];
#pragma GCC unroll 4
            for (int i = 0; i < 4; ++i) x[i] = *reinterpret_cast<const unaligned_f4*>(from[i] + d * step[i]);
            const f4 a = __builtin_shufflevector(x[0], x[1], 0, 4, 1, 5);
            const f4 b = __builtin_shufflevector(x[2], x[3], 0, 4, 1, 5);
            const f4 c = __builtin_shufflevector(x[0], x[1], 2, 6, 3, 7);
            const f4 e = __builtin_shufflevector(x[2], x[3], 2, 6, 3, 7);
            *reinterpret_cast<unaligned_f4*>(to) = __builtin_shufflevector(a, b, 0, 1, 4, 5);
            *reinterpret_cast<unaligned_f4*>(to + kBlock) = __builtin_shufflevector(a, b, 2, 3, 6, 7);
            *reinterpret_cast<unaligned_f4*>(to + 2 * kBlock) = __builtin_shufflevector(c, e, 0, 1, 4, 5);
            *reinterpret_cast<unaligned_f4*>(to + 3 * kBlock) = __builtin_shufflevector(c, e, 2, 3, 6, 7);
        }
        for (; d < width; ++d, to += kBlock)
            for (int i = 0; i < 4; ++i) to[i] = from[i][d * step[i]];
    }
}

}  // namespace WINNOW_ISA
}  // namespace winnow
