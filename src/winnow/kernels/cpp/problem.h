// What a call of the selective attention kernels is given and what it writes. Plain C: read by ctypes as well
// (kernels/selective_cpu.py mirrors these structures field by field).
//
// All tensors are fp32. Strides count elements; the last axis is contiguous. A stride of 0 along the heads shares one
// head among all masks.
#pragma once

#include <cstdint>

namespace winnow {

constexpr int kBlock = 64;  // queries in a block, keys in a panel: carries are saved once per block

struct View {
    const float* data;  // (B, T, heads, width)
    int64_t batch, token, head;
};

struct MutableView {
    float* data;
    int64_t batch, token, head;
};

enum Protection : int32_t { kNone = 0, kScores = 1, kLeaky = 2, kConstant = 3 };

struct Problem {
    View q, k, v;        // (B, T, H, D), (B, T, K, D) twice
    View q_s, k_s;       // (B, T, M, E) and (B, T, M or 1, E): selectors. For a head index: that head's q and k
    View q_p, k_p;       // (B, T, M or 1, P): protectors, for Protection "scores"; a head index: that head's
    const int32_t* starts;  // (B, T) contiguous: first token of each token's document; null: 0
    const int32_t* spread;  // (H): the mask of every head
    int32_t B, T, H, K, D, M;
    int32_t E, P;        // widths of the selectors and the protectors (P is 0 without them)
    int32_t n_k_s;       // distinct heads of k_s: M or 1
    int32_t n_q_p;       // distinct heads of q_p: M or 1
    int32_t n_k_p;       // distinct heads of k_p: M or 1
    int32_t select;      // the head whose scores are the selector's, or -1 for separate selectors
    int32_t protect;     // the head whose scores are the protector's, or -1
    int32_t protect_bos, allow_self_masking, relu_after;
    int32_t protection;  // Protection
    int32_t compact;     // drop keys that F puts beyond `theta` for good
    int32_t has_tau;
    int32_t threads;
    float scale, leak;
    float slope, offset, gain, bias;  // protection_slope, _offset, _scale, _bias
    float tau;
};

// Blocks of queries in T tokens.
static inline int n_blocks(const Problem& p) { return (p.T + kBlock - 1) / kBlock; }
// Numbers carried per key: the sum of S, or under protection the damage D and the surplus R.
static inline int n_carried(const Problem& p) { return p.protection == kNone ? 1 : 2; }

struct Forward {
    float* out;    // (B, T, H, D) contiguous
    float* usage;  // (B, M, T) or null
    float* lse;    // (B, H, T)
    float* carry;  // (B, n_blocks, M, n_carried, T): state of every key before the block's first query. Entry 0: the
                   // sum of S over earlier queries, or the damage; entry 1: the surplus R, own protection included.
                   // Not written, nor read, for keys of this block and later ones, against which nothing is held:
                   // half of the pages stay untouched. A dropped key keeps the value it had when it was last
                   // followed, which is beyond `theta`.
    float* theta;  // (B, n_blocks, M): in block t, key j < t * kBlock is dropped where carry entry 0 > theta (keys
                   // that are first of their document stay, if protected); +inf without compaction
};

struct Backward {
    const float* out;       // (B, T, H, D) contiguous, as the forward pass wrote them
    const float* lse;       // (B, H, T)
    const float* carry;
    const float* theta;
    View grad_out;          // (B, T, H, D)
    const float* grad_usage;  // (B, M, T) contiguous, or null
    float* dq;              // (B, T, H, D) contiguous; so are the rest, shaped as their inputs
    float* dk;
    float* dv;
    float* dq_s;            // null where `select` is a head: then the gradient is part of dq and dk
    float* dk_s;
    float* dq_p;            // null without separate protectors
    float* dk_p;
};

}  // namespace winnow
