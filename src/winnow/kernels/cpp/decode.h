// One step of decoding with a cache of fixed size: making room for a key, attention to the keys that are held, and the
// newest query's votes. What it must come to is said in attention/cache.py, whose PyTorch operations do the same.
#pragma once


#include "problem.h"
#include "simd.h"

namespace winnow {

// Read by ctypes as well (kernels/decode_cpu.py mirrors it field by field). All contiguous but q, new_k and new_v, whose
// rows of the batch lie `*_batch` numbers apart. `room` is for scores: (B, H, S rounded up to 16).
struct Decode {
    const float *q, *new_k, *new_v;  // (B, heads, D), (B, KS, D), (B, K, D)
    float* out;                      // (B, H, D)
    float *k, *v, *votes;            // (B, KS, S, D), (B, K, S, D), (B, M, S): +inf where a slot is empty
    int32_t *position, *newest;      // (B, S), -1 where empty; one number
    int64_t* slot;                   // (B): where the newest key lies
    const int32_t *spread, *query_of, *key_of;  // (H) mask of each head; (M) heads of q and k that vote
    float* room;
    int64_t q_batch, new_k_batch, new_v_batch;
    int32_t B, H, K, KS, D, S, M;
    int32_t evicts, bos_last, protect_bos, allow_self_masking, relu_after, threads;
    float scale, leak;
};

namespace WINNOW_ISA {

static inline float felt(const Decode& d, float f) { return d.relu_after && f < 0 ? 0.0f : f; }

// The slot of the highest F, the mean over heads; of equals that of the oldest key.
static inline int64_t freed(const Decode& d, int b) {
    const int32_t* position = d.position + int64_t(b) * d.S;
    const float* votes = d.votes + int64_t(b) * d.M * d.S;
    int64_t found = -1;
    float highest = 0;
    for (int s = 0; s < d.S; ++s) {
        float f = 0;
        if (d.M == 1) {
            f = felt(d, votes[s]);
        } else {
            for (int h = 0; h < d.H; ++h) f += felt(d, votes[int64_t(d.spread[h]) * d.S + s]);
            f /= float(d.H);
        }
        if (d.bos_last && position[s] == 0) f = kLowest;
        if (position[s] == *d.newest) f = -kInfinity;
        if (found < 0 || f > highest || (f == highest && position[s] < position[found])) {
            found = s;
            highest = f;
        }
    }
    return found;
}

static inline void write(const Decode& d) {
    for (int b = 0; b < d.B; ++b) {
        const int64_t s = d.evicts ? freed(d, b) : int64_t(*d.newest) + 1;
        d.slot[b] = s;
        for (int h = 0; h < d.KS; ++h)
            std::memcpy(d.k + ((int64_t(b) * d.KS + h) * d.S + s) * d.D, d.new_k + b * d.new_k_batch + int64_t(h) * d.D,
                        d.D * sizeof(float));
        for (int h = 0; h < d.K; ++h)
            std::memcpy(d.v + ((int64_t(b) * d.K + h) * d.S + s) * d.D, d.new_v + b * d.new_v_batch + int64_t(h) * d.D,
                        d.D * sizeof(float));
        d.position[int64_t(b) * d.S + s] = *d.newest + 1;
        for (int m = 0; m < d.M; ++m) d.votes[(int64_t(b) * d.M + m) * d.S + s] = 0;
    }
    ++*d.newest;
}

static inline float dot(const float* a, const float* b, int D) {
    vf total{};
    for (int i = 0; i < D; i += W) total += load(a + i) * load(b + i);
    return sum(total);
}

// One query head: `room` holds S scores, rounded up with -inf.
static inline void attend(const Decode& d, int b, int h, float* room) {
    const int kv = h / (d.H / d.K), padded = int(round_up(d.S, 16));
    const float* q = d.q + b * d.q_batch + int64_t(h) * d.D;
    const float* k = d.k + (int64_t(b) * d.KS + kv) * d.S * d.D;
    const float* v = d.v + (int64_t(b) * d.K + kv) * d.S * d.D;
    const float* votes = d.votes + (int64_t(b) * d.M + d.spread[h]) * d.S;
    for (int s = 0; s < d.S; ++s) room[s] = dot(q, k + int64_t(s) * d.D, d.D) * d.scale - felt(d, votes[s]);
    for (int s = d.S; s < padded; ++s) room[s] = -kInfinity;
    vf most = load(room);
    for (int s = W; s < padded; s += W) most = max(most, load(room + s));
    const vf top = splat(highest(most));
    vf total{};
    for (int s = 0; s < padded; s += W) {
        const vf weight = exp(load(room + s) - top);
        store(room + s, weight);
        total += weight;
    }
    const float share = 1.0f / sum(total);
    float* out = d.out + (int64_t(b) * d.H + h) * d.D;
    for (int i = 0; i < d.D; i += W) store(out + i, vf{});
    for (int s = 0; s < d.S; ++s) {
        if (room[s] == 0) continue;  // voted out so far that nothing is left of it
        const vf weight = splat(room[s] * share);
        for (int i = 0; i < d.D; i += W) store(out + i, load(out + i) + weight * load(v + int64_t(s) * d.D + i));
    }
}

static inline void vote(const Decode& d, int b) {
    const int32_t* position = d.position + int64_t(b) * d.S;
    for (int m = 0; m < d.M; ++m) {
        const float* q = d.q + b * d.q_batch + int64_t(d.query_of[m]) * d.D;
        const float* k = d.k + (int64_t(b) * d.KS + d.key_of[m]) * d.S * d.D;
        float* votes = d.votes + (int64_t(b) * d.M + m) * d.S;
        for (int s = 0; s < d.S; ++s) {
            if (position[s] < 0 || (d.protect_bos && position[s] == 0)) continue;
            if (!d.allow_self_masking && position[s] == *d.newest) continue;
            const float raw = dot(q, k + int64_t(s) * d.D, d.D) * d.scale;
            votes[s] += raw > 0 ? raw : d.leak * raw;
        }
    }
}

static inline void look(const Decode& d) {
    const int64_t padded = round_up(d.S, 16);
#pragma omp parallel for num_threads(d.threads) if (d.threads > 1)
    for (int bh = 0; bh < d.B * d.H; ++bh) {
        FlushDenormals flush;
        attend(d, bh / d.H, bh % d.H, d.room + int64_t(bh) * padded);
    }
    FlushDenormals flush;
    for (int b = 0; b < d.B; ++b) vote(d, b);
}

}  // namespace WINNOW_ISA
}  // namespace winnow
