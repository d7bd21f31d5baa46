// The keys that a query block works with: which ones are left (live-key compaction), and their K^T and V, packed.
//
// A list holds the tokens of its keys in ascending order, in slots, kBlock to a panel; a query block appends its own
// keys as the last panel. Without compaction one list serves all masks. With it every mask has its own, and keys whose
// F lies beyond `theta` are taken out as soon as that saves a panel and an eighth of the list. What is taken out and
// when follows from carries and theta alone, so it does not depend on how blocks are shared among threads.
#pragma once

#include <cstdlib>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "gemm.h"

namespace winnow {
namespace WINNOW_ISA {

#if defined(_OPENMP)
inline int this_thread() { return omp_get_thread_num(); }
#else
inline int this_thread() { return 0; }
#endif

// Hands out pieces of one allocation, each aligned to a cache line. The first pass, without memory, only measures.
class Arena {
   public:
    explicit Arena(void* memory) : memory_(static_cast<char*>(memory)) {}
    template <class Item>
    Item* take(int64_t n) {
        Item* piece = memory_ ? reinterpret_cast<Item*>(memory_ + used_) : nullptr;
        used_ += round_up(n * static_cast<int64_t>(sizeof(Item)), 64);
        return piece;
    }
    int64_t used() const { return used_; }

   private:
    char* memory_;
    int64_t used_ = 0;
};

// Keys or values of one head, copied for the keys of one list.
struct Packing {
    const float* from;
    int64_t batch, token;
    int width;        // columns taken
    int padded;       // columns of a row of values, a multiple of W; of transposed keys, rows: the width
    bool transposed;  // K^T in panels, or rows of V
    int list;
};

// Which packings a call needs, and where they are found.
struct Plan {
    int lists;       // 1, or one per mask
    int n = 0;       // packings
    Packing* packing;
    int* k;          // (lists x K): the packing of a head's keys, of its values; -1: not needed
    int* v;
    int* selector;   // (M)
    int* protector;  // (M)

    Plan(const Problem& p, Arena& arena) : lists(p.compact ? p.M : 1) {
        packing = arena.take<Packing>(2 * lists * p.K + 2 * p.M);
        k = arena.take<int>(lists * p.K);
        v = arena.take<int>(lists * p.K);
        selector = arena.take<int>(p.M);
        protector = arena.take<int>(p.M);
        if (!packing) return;
        for (int i = 0; i < lists * p.K; ++i) k[i] = v[i] = -1;
        for (int m = 0; m < p.M; ++m) selector[m] = protector[m] = -1;
        for (int h = 0; h < p.H; ++h) {
            const int kv = h / (p.H / p.K), at = list_of(p.spread[h]) * p.K + kv;
            k_of(p, list_of(p.spread[h]), kv);
            if (v[at] < 0) v[at] = add(p.v, kv, p.D, static_cast<int>(round_up(p.D, W)), false, list_of(p.spread[h]));
        }
        for (int m = 0; m < p.M; ++m) {
            selector[m] = separate(p, m, p.select, p.k_s, p.E, p.n_k_s, selector);
            if (p.protection == kScores) protector[m] = separate(p, m, p.protect, p.k_p, p.P, p.n_k_p, protector);
        }
    }

    int list_of(int mask) const { return lists > 1 ? mask : 0; }

   private:
    int add(const View& view, int head, int width, int padded, bool transposed, int list) {
        packing[n] = Packing{view.data + head * view.head, view.batch, view.token, width, padded, transposed, list};
        return n++;
    }
    int k_of(const Problem& p, int list, int kv) {
        int& at = k[list * p.K + kv];
        if (at < 0) at = add(p.k, kv, p.D, p.D, true, list);
        return at;
    }
    // Keys of a selector or protector: a head's, shared with an earlier mask of the list, or their own.
    int separate(const Problem& p, int m, int head, const View& keys, int width, int distinct, const int* earlier) {
        if (head >= 0) return k_of(p, list_of(m), head / (p.H / p.K));
        if (m > 0 && distinct == 1 && lists == 1) return earlier[0];
        return add(keys, m, width, width, true, list_of(m));
    }
};

// Whether a key is still followed. Empty slots (-1) are not; a key whose F is NaN is, so that it shows.
inline bool lives(int32_t key, int start, const float* f, float theta) { return key >= start && !(f[key] > theta); }

// One thread's keys of one batch row, as of one query block; it moves forward over blocks.
class Keys {
   public:
    Keys(const Problem& p, const Plan& plan, Arena& arena) : p_(p), plan_(plan) {
        capacity_ = static_cast<int64_t>(n_blocks(p)) * kBlock;
        slots_ = arena.take<int>(plan.lists);
        packed_ = arena.take<int>(plan.lists);
        whole_ = arena.take<bool>(plan.lists);
        key_ = arena.take<int32_t>(plan.lists * capacity_);
        data_ = arena.take<float*>(2 * plan.lists * p.K + 2 * p.M);
        for (int i = 0; i < plan.n; ++i) {
            float* piece = arena.take<float>(capacity_ * plan.packing[i].padded);
            if (data_) data_[i] = piece;
        }
    }

    void start(int b) {
        b_ = b;
        block_ = -1;
        for (int list = 0; list < plan_.lists; ++list) {
            slots_[list] = packed_[list] = 0;
            whole_[list] = true;
        }
    }
    int row() const { return b_; }

    // Up to block t. `carry` and `theta` are those of the batch row, as in Forward.
    void advance(int t, const float* carry, const float* theta) {
        for (int u = block_ + 1; u <= t; ++u) {
            const float* state = carry + static_cast<int64_t>(u) * p_.M * n_carried(p_) * p_.T;
            for (int list = 0; list < plan_.lists; ++list) {
                if (p_.compact && u > 0)
                    drop(list, u, state + static_cast<int64_t>(list) * n_carried(p_) * p_.T, theta[u * p_.M + list]);
                int32_t* key = list_start(list) + slots_[list];
                for (int s = 0; s < kBlock; ++s) key[s] = u * kBlock + s < p_.T ? u * kBlock + s : -1;
                slots_[list] += kBlock;
            }
        }
        block_ = t;
        for (int i = 0; i < plan_.n; ++i) pack(plan_.packing[i], data_[i]);
        for (int list = 0; list < plan_.lists; ++list) packed_[list] = slots_[list];
    }

    int slots(int list) const { return slots_[list]; }  // a multiple of kBlock; the last panel is the block's own
    const int32_t* keys(int list) const { return key_ + list * capacity_; }
    bool whole(int list) const { return whole_[list]; }  // slot s holds token s
    int64_t capacity() const { return capacity_; }

    // Panels of K^T, (width x kBlock) each, or rows of V, from a slot on.
    const float* at(int packing, int64_t slot) const { return data_[packing] + slot * plan_.packing[packing].padded; }

   private:
    int32_t* list_start(int list) { return key_ + list * capacity_; }

    void drop(int list, int u, const float* f, float theta) {
        int32_t* key = list_start(list);
        const int before = slots_[list];
        const int start = p_.starts ? p_.starts[static_cast<int64_t>(b_) * p_.T + u * kBlock] : 0;
        int live = 0;
        for (int s = 0; s < before; ++s) live += lives(key[s], start, f, theta);
        const int after = static_cast<int>(round_up(live, kBlock));
        if (after + at_least(kBlock, before / 8) > before) return;
        int n = 0, same = before;
        for (int s = 0; s < before; ++s) {
            if (!lives(key[s], start, f, theta)) {
                same = static_cast<int>(at_most(same, s));
                continue;
            }
            key[n++] = key[s];
        }
        while (n < after) key[n++] = -1;
        slots_[list] = after;
        packed_[list] = static_cast<int>(at_most(packed_[list], same / kBlock * kBlock));
        whole_[list] = false;
    }

    void pack(const Packing& packing, float* to) const {
        const int32_t* key = keys(packing.list);
        const float* from = packing.from + b_ * packing.batch;
        for (int64_t slot = packed_[packing.list]; slot < slots_[packing.list]; slot += kBlock) {
            const auto row = [&](int s) { return key[slot + s] < 0 ? nullptr : from + key[slot + s] * packing.token; };
            float* panel = to + slot * packing.padded;
            if (packing.transposed) {
                pack_panel(packing.width, row, panel);
                continue;
            }
            for (int s = 0; s < kBlock; ++s, panel += packing.padded) {
                if (const float* data = row(s))
                    pack_rows(1, packing.width, packing.padded, data, 0, 1.0f, panel);
                else
                    std::memset(panel, 0, packing.padded * sizeof(float));
            }
        }
    }

    const Problem& p_;
    const Plan& plan_;
    int64_t capacity_;
    int b_ = -1, block_ = -1;
    int* slots_;
    int* packed_;  // slots whose packings are up to date
    bool* whole_;
    int32_t* key_;
    float** data_;
};

// theta. A weight is at most exp(s_ij - s_ii - F_ij), as F_ii is 0, and s_ij at most scale |q_i| max|k|: beyond
// scale |q_i| max|k| - s_ii + ln T + 24 ln 2, all weights of a row together that are left out are below 2^-24.

// The larger one; infinity where x is NaN, of which nothing can be proved: then no key is dropped.
WINNOW_INLINE float wider(float most, float x) { return x <= most ? most : x == x ? x : kInfinity; }

// max over a head's keys of |k|.
inline float widest_key(const Problem& p, int b, int kv) {
    float most = 0;
    for (int j = 0; j < p.T; ++j) {
        const float* k = p.k.data + b * p.k.batch + j * p.k.token + kv * p.k.head;
        vf squares{};
        int d = 0;
        for (; d + W <= p.D; d += W) squares += load(k + d) * load(k + d);
        float total = sum(squares);
        for (; d < p.D; ++d) total += k[d] * k[d];
        most = wider(most, total);
    }
    return __builtin_sqrtf(most);
}

// max over a block's queries and a mask's heads of scale |q| max|k| - s_ii; `widest`: max|k| of every kv head.
inline float widest_gap(const Problem& p, int b, int t, int mask, const float* widest) {
    float most = 0;
    const int end = static_cast<int>(at_most(p.T, (t + 1) * kBlock));
    for (int h = 0; h < p.H; ++h) {
        if (p.spread[h] != mask) continue;
        const int kv = h / (p.H / p.K);
        for (int i = t * kBlock; i < end; ++i) {
            const float* q = p.q.data + b * p.q.batch + i * p.q.token + h * p.q.head;
            const float* k = p.k.data + b * p.k.batch + i * p.k.token + kv * p.k.head;
            vf squares{}, dots{};
            int d = 0;
            for (; d + W <= p.D; d += W) {
                squares += load(q + d) * load(q + d);
                dots += load(q + d) * load(k + d);
            }
            float square = sum(squares), dot = sum(dots);
            for (; d < p.D; ++d) {
                square += q[d] * q[d];
                dot += q[d] * k[d];
            }
            const float gap = __builtin_fabsf(p.scale) * __builtin_sqrtf(square) * widest[kv] - p.scale * dot;
            most = wider(most, gap);
        }
    }
    return most;
}

// From the gaps of a batch row's blocks, (n_blocks x M), theta, in place: of a block and all later ones.
inline void finish_theta(const Problem& p, float* theta) {
    const float slack = __builtin_logf(static_cast<float>(p.T)) + 24 * 0.693147181f;
    for (int m = 0; m < p.M; ++m) {
        float most = 0;
        for (int t = n_blocks(p) - 1; t >= 0; --t) {
            float& at = theta[t * p.M + m];
            if (at > most) most = at;
            at = most + slack;
            if (p.has_tau && at < p.tau) at = p.tau;
        }
    }
}

}  // namespace WINNOW_ISA
}  // namespace winnow
