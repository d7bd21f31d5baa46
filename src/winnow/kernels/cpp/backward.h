// The backward pass. A strip of keys at a time (strip.h); query blocks from the last one down, since a vote's gradient
// is the sum of those of F over all later queries; panel of keys by panel, all heads of a mask inside, with
//
//     P = exp(scores - F - lse)      dS = P (dO V^T - delta)      delta_i = sum_d out_id dO_id
//     dV += P^T dO                   dK += dS^T Q                 dQ += dS K
//     dF = -sum of dS over the mask's heads, + grad_usage where F < tau; 0 where relu_after cut it
//     dS of the selector, from dF: votes.h
//
// Keys are one strip's alone, so dK and dV need no sharing. Batch rows are shared among threads, or the key blocks of
// each row are, with a dQ per share, added up in order. Either way results repeat bit by bit for a number of threads.
#pragma once

#include "strip.h"
#include "votes.h"

namespace winnow {
namespace WINNOW_ISA {

// Blocks of keys in a strip, whose copies are to stay in the caches: more where keys can be dropped, since then every
// query block has less to do with them; fewer of a strip that stays whole, for the memory.
constexpr int kStripBlocks = 4, kWholeStripBlocks = 2;

// Where gradients of queries of one batch row are added: the result, or one share's part of it.
struct QueryGradients {
    float *dq, *dq_s, *dq_p;
};

class BackwardWorker {
   public:
    BackwardWorker(const Problem& p, const Backward& to, const float* delta, Arena& arena)
        : p_(p), to_(to), delta_(delta), capacity_(strip_blocks(p) * kBlock), lists_(p.compact ? p.M : 1),
          keys_(p, capacity_, arena), slots_(2 * p.K + 2 * p.M, 2 * p.M, capacity_, arena) {
        queries_ = arena.take<Operand*>(2 * p.H + 2 * p.M);
        q_ = arena.take<Operand>(p.H);
        grad_out_ = arena.take<Operand>(p.H);
        k_ = arena.take<Operand>(p.K);
        v_ = arena.take<Operand>(p.K);
        q_s_ = arena.take<Operand>(p.M);
        k_s_ = arena.take<Operand>(p.M);
        q_p_ = arena.take<Operand>(p.M);
        k_p_ = arena.take<Operand>(p.M);
        for (int h = 0; h < p.H; ++h) {
            place(q_, h, Operand(p.q, h, p.D, p.scale), kBlock, true, false, Sum::apart_if_need_be, arena);
            place(grad_out_, h, Operand(to.grad_out, h, p.D, 1), kBlock, true, false, Sum::none, arena);
        }
        for (int kv = 0; kv < p.K; ++kv) {
            place(k_, kv, Operand(p.k, kv, p.D, p.scale), capacity_, true, true, Sum::apart, arena);
            place(v_, kv, Operand(p.v, kv, p.D, 1), capacity_, false, true, Sum::apart, arena);
        }
        for (int m = 0; p.select < 0 && m < p.M; ++m) {
            place(q_s_, m, Operand(p.q_s, m, p.E, p.scale), kBlock, true, false, Sum::apart_if_need_be, arena);
            if (m < p.n_k_s) place(k_s_, m, Operand(p.k_s, m, p.E, p.scale), capacity_, true, true, Sum::apart, arena);
        }
        for (int m = 0; apart() && m < p.M; ++m) {
            if (m < p.n_q_p)
                place(q_p_, m, Operand(p.q_p, m, p.P, p.scale), kBlock, true, false, Sum::apart_if_need_be, arena);
            if (m < p.n_k_p) place(k_p_, m, Operand(p.k_p, m, p.P, p.scale), capacity_, true, true, Sum::apart, arena);
        }
        constexpr int tile = kBlock * kPanelStride;
        raw_ = arena.take<float>(tile);
        protector_ = arena.take<float>(tile);
        f_ = arena.take<float>(tile);
        hit_ = arena.take<float>(tile);
        felt_ = arena.take<float>(tile);
        x_ = arena.take<float>(tile);
        d_raw_ = arena.take<float>(tile);
        d_protector_ = arena.take<float>(tile);
        carry_ = arena.take<float>(capacity_);
        surplus_ = arena.take<float>(capacity_);
    }

    // Share `share` of `shares` of a batch row's key blocks: all of dk and dv of these, and their part of dq.
    void row(int b, int share, int shares, const QueryGradients& part) {
        std::memset(part.dq, 0, sizeof(float) * p_.T * p_.H * p_.D);
        if (part.dq_s) std::memset(part.dq_s, 0, sizeof(float) * p_.T * p_.M * p_.E);
        if (part.dq_p) std::memset(part.dq_p, 0, sizeof(float) * p_.T * p_.n_q_p * p_.P);
        put_out(b, part);
        int block[kStripBlocks], n = 0;
        for (int u = 0; u < n_blocks(p_); ++u) {
            // Back and forth, since earlier keys have more queries.
            const int turn = u % (2 * shares), owner = turn < shares ? turn : 2 * shares - 1 - turn;
            if (owner == share) block[n++] = u;
            if (n == strip_blocks(p_) || (n > 0 && u + 1 == n_blocks(p_))) {
                strip(b, block, n);
                n = 0;
            }
        }
    }

   private:
    static int strip_blocks(const Problem& p) { return static_cast<int>(at_most(kStripBlocks, n_blocks(p))); }

    // Where a gradient is summed.
    enum class Sum { none, apart, apart_if_need_be };

    static void place(Operand* operands, int at, Operand operand, int slots, bool rows, bool transposed, Sum gradient,
                      Arena& arena) {
        if (rows) operand.rows = arena.take<float>(int64_t(slots) * operand.padded);
        if (transposed) operand.transposed = arena.take<float>(int64_t(slots) * operand.width);
        if (gradient == Sum::apart || (gradient == Sum::apart_if_need_be && !operand.can_sum_in_place()))
            operand.gradient = arena.take<float>(int64_t(slots) * operand.padded);
        if (operands) operands[at] = operand;
    }

    // Protectors of their own.
    bool apart() const { return p_.protection == kScores && p_.protect < 0; }
    bool protected_by_scores() const { return p_.protection == kScores; }
    // A protecting head's gradient is complete with its mask, if that is the only one.
    bool joined(int h) const { return h == p_.select || (p_.M == 1 && protected_by_scores() && h == p_.protect); }
    int kv_of(int h) const { return h / (p_.H / p_.K); }
    bool in_list(int m, int list) const { return lists_ == 1 || m == list; }

    Operand& selector_q(int m) { return p_.select >= 0 ? q_[p_.select] : q_s_[m]; }
    Operand& selector_k(int m) { return p_.select >= 0 ? k_[kv_of(p_.select)] : k_s_[p_.n_k_s == 1 ? 0 : m]; }
    Operand& protector_q(int m) { return apart() ? q_p_[p_.n_q_p == 1 ? 0 : m] : q_[p_.protect]; }
    Operand& protector_k(int m) { return apart() ? k_p_[p_.n_k_p == 1 ? 0 : m] : k_[kv_of(p_.protect)]; }

    void put_out(int b, const QueryGradients& part) {
        const int64_t row = int64_t(b) * p_.T;
        for (int h = 0; h < p_.H; ++h) q_[h].put_out(part.dq, p_.H, h);
        for (int kv = 0; kv < p_.K; ++kv) {
            k_[kv].put_out(to_.dk + row * p_.K * p_.D, p_.K, kv);
            v_[kv].put_out(to_.dv + row * p_.K * p_.D, p_.K, kv);
        }
        for (int m = 0; p_.select < 0 && m < p_.M; ++m) {
            q_s_[m].put_out(part.dq_s, p_.M, m);
            if (m < p_.n_k_s) k_s_[m].put_out(to_.dk_s + row * p_.n_k_s * p_.E, p_.n_k_s, m);
        }
        for (int m = 0; apart() && m < p_.M; ++m) {
            if (m < p_.n_q_p) q_p_[m].put_out(part.dq_p, p_.n_q_p, m);
            if (m < p_.n_k_p) k_p_[m].put_out(to_.dk_p + row * p_.n_k_p * p_.P, p_.n_k_p, m);
        }
    }

    void clear_keys(int b, int u) const {
        const int64_t first = int64_t(b) * p_.T + u * kBlock, n = at_most(kBlock, p_.T - u * kBlock);
        const auto clear = [&](float* d, int width) {
            if (d) std::memset(d + first * width, 0, sizeof(float) * n * width);
        };
        clear(to_.dk, p_.K * p_.D);
        clear(to_.dv, p_.K * p_.D);
        clear(to_.dk_s, p_.n_k_s * p_.E);
        clear(to_.dk_p, p_.n_k_p * p_.P);
    }

    void strip(int b, const int* block, int n) {
        const int64_t row = int64_t(b) * n_blocks(p_) * p_.M;
        for (int list = 0; list < lists_; ++list) {
            choose(b, list);
            keys_.list(b, list, block, n, to_.carry + row * n_carried(p_) * p_.T, to_.theta + row);
            // With lists of their own, masks would add to one another's sums in an order that depends on the strips.
            if (lists_ == 1 && keys_.whole() && slots_.can_sum_in_place()) {
                if (n > kWholeStripBlocks) {
                    strip(b, block, kWholeStripBlocks);
                    return strip(b, block + kWholeStripBlocks, n - kWholeStripBlocks);
                }
                slots_.sum_in_place();
            }
            for (int i = 0; list == 0 && i < n; ++i) clear_keys(b, block[i]);
            const int* own = block + n - 1;
            for (int t = n_blocks(p_) - 1; t >= block[0]; --t) {
                const bool has_own = own >= block && *own == t;
                slots_.adopt(keys_.keys(t), keys_.total(t));
                if (has_own) --own;
                if (keys_.total(t) > 0) query_block(b, t, list, has_own);
                if (has_own) slots_.release(row0_, rows_);
            }
        }
    }

    // The operands that the heads and masks of a list use.
    void choose(int b, int list) {
        n_queries_ = 0;
        slots_.start(b, n_carried(p_) * p_.M);
        for (int h = 0; h < p_.H; ++h) {
            if (!in_list(p_.spread[h], list)) continue;
            add_query(&q_[h]);
            add_query(&grad_out_[h]);
            slots_.add(&k_[kv_of(h)]);
            slots_.add(&v_[kv_of(h)]);
        }
        for (int m = 0; m < p_.M; ++m) {
            if (!in_list(m, list)) continue;
            add_query(&selector_q(m));
            slots_.add(&selector_k(m));
            if (!protected_by_scores()) continue;
            add_query(&protector_q(m));
            slots_.add(&protector_k(m));
        }
    }
    void add_query(Operand* operand) {
        for (int i = 0; i < n_queries_; ++i)
            if (queries_[i] == operand) return;
        queries_[n_queries_++] = operand;
    }

    void query_block(int b, int t, int list, bool has_own) {
        b_ = b;
        t_ = t;
        row0_ = t * kBlock;
        rows_ = static_cast<int>(at_most(kBlock, p_.T - row0_));
        for (int i = 0; i < n_queries_; ++i) {
            const Operand& of = *queries_[i];
            pack_rows(rows_, of.width, of.padded, of.from + b * of.batch + row0_ * of.token, of.token, of.factor,
                      of.rows);
            if (of.gradient) std::memset(of.gradient, 0, sizeof(float) * rows_ * of.padded);
        }
        const int total = keys_.total(t), earlier = keys_.earlier(t);
        for (int m = 0; m < p_.M; ++m) {
            if (!in_list(m, list)) continue;
            gather(m, total);
            for (int slot = 0; slot < total; slot += kBlock) {
                const bool own = has_own && slot + kBlock == total;
                const int columns = static_cast<int>(own ? round_up(rows_, W) : at_most(kBlock, earlier - slot));
                panel(m, slot, columns, own);
            }
        }
        for (int i = 0; i < n_queries_; ++i)
            if (queries_[i]->gradient) queries_[i]->add_out(row0_, rows_, queries_[i]->gradient);
    }

    // What the forward pass carried to this block.
    void gather(int m, int total) {
        const int64_t block = (int64_t(b_) * n_blocks(p_) + t_) * p_.M + m;
        const float* state = to_.carry + block * n_carried(p_) * p_.T;
        const int32_t* key = keys_.keys(t_);
        for (int s = 0; s < total; ++s) {
            const bool earlier = key[s] >= 0 && key[s] < row0_;
            carry_[s] = earlier ? state[key[s]] : 0;
            if (n_carried(p_) > 1) surplus_[s] = earlier ? state[p_.T + key[s]] : 0;
        }
    }

    // One mask and its heads on one panel of keys. `own`: the keys are the block's own, and only the lower triangle of
    // the tiles counts.
    void panel(int m, int slot, int columns, bool own) {
        const bool protect = p_.protection != kNone, scored = protected_by_scores();
        scores(selector_q(m), selector_k(m), slot, columns, own, raw_);
        if (scored) scores(protector_q(m), protector_k(m), slot, columns, own, protector_);
        const int32_t* starts = p_.starts ? p_.starts + int64_t(b_) * p_.T + row0_ : nullptr;
        SelectionTile tile{};
        tile.rows = rows_;
        tile.columns = kBlock;
        tile.row0 = row0_;
        tile.key = keys_.keys(t_) + slot;
        tile.starts = starts;
        tile.raw = raw_;
        tile.protector = scored ? protector_ : nullptr;
        tile.ld_raw = tile.ld_protector = tile.ld_f = tile.ld_hit = kPanelStride;
        tile.carry = carry_ + slot;
        tile.surplus = protect ? surplus_ + slot : nullptr;
        tile.f = f_;
        tile.hit = protect ? hit_ : nullptr;
        select(p_, tile);

        std::memset(felt_, 0, sizeof(float) * rows_ * kPanelStride);
        for (int h = 0; h < p_.H; ++h) {
            if (p_.spread[h] != m || joined(h)) continue;
            head(h, slot, columns, own, d_raw_);
            products(q_[h], k_[kv_of(h)], slot, columns, own, d_raw_);
        }
        const bool selecting = p_.select >= 0, same = selecting && p_.protect == p_.select;
        const bool protecting = scored && p_.protect >= 0 && p_.M == 1 && !same;  // a head of its own, joined
        if (protecting)
            head(p_.protect, slot, columns, own, d_protector_);
        else if (scored)
            std::memset(d_protector_, 0, sizeof(float) * rows_ * kPanelStride);
        if (selecting)
            head(p_.select, slot, columns, own, d_raw_);
        else
            std::memset(d_raw_, 0, sizeof(float) * rows_ * kPanelStride);

        VoteTile votes{};
        votes.rows = rows_;
        votes.row0 = row0_;
        votes.key = tile.key;
        votes.starts = starts;
        votes.raw = raw_;
        votes.protector = tile.protector;
        votes.f = f_;
        votes.hit = tile.hit;
        votes.felt = felt_;
        votes.grad_usage = to_.grad_usage ? to_.grad_usage + (int64_t(b_) * p_.M + m) * p_.T + row0_ : nullptr;
        votes.later = slots_.later(m) + slot;
        votes.waiting = protect ? slots_.later(p_.M + m) + slot : nullptr;
        votes.d_raw = d_raw_;
        votes.d_protector = !scored ? nullptr : same ? d_raw_ : d_protector_;
        votes_back(p_, votes);
        products(selector_q(m), selector_k(m), slot, columns, own, d_raw_);
        if (scored && !same) products(protector_q(m), protector_k(m), slot, columns, own, d_protector_);
    }

    void scores(const Operand& q, const Operand& k, int slot, int columns, bool own, float* to) const {
        multiply(rows_, columns, q.width, q.rows, q.padded, k.transposed + int64_t(slot) * k.width, kBlock, to,
                 kPanelStride, false, own ? Trim::columns : Trim::none);
    }

    // P of a head, what it adds to dV and to the gradient of F, and dS.
    void head(int h, int slot, int columns, bool own, float* d_scores) {
        const Operand &k = k_[kv_of(h)], &v = v_[kv_of(h)], &grad_out = grad_out_[h];
        const float* lse = to_.lse + (int64_t(b_) * p_.H + h) * p_.T + row0_;
        const float* delta = delta_ + int64_t(h) * p_.T + row0_;
        const float* x = raw_;
        if (h != p_.select) {
            scores(q_[h], k, slot, columns, own, x_);
            x = x_;
        }
        for (int i = 0; i < rows_; ++i) {
            const int end = own ? trimmed_columns(i, rows_, columns) : columns;
            for (int64_t c = i * kPanelStride; c < i * kPanelStride + end; c += W)
                store(x_ + c, exp(load(x + c) - load(f_ + c) - lse[i]));
        }
        multiply_transposed(own ? rows_ : columns, v.padded, rows_, x_, kPanelStride, grad_out.rows, grad_out.padded,
                            slots_.sums(v, slot), slots_.sums_stride(v), true, own ? Trim::start : Trim::none);
        scores(grad_out, v, slot, columns, own, d_scores);
        for (int i = 0; i < rows_; ++i) {
            const int end = own ? trimmed_columns(i, rows_, columns) : columns;
            for (int64_t c = i * kPanelStride; c < i * kPanelStride + end; c += W) {
                const vf d = load(x_ + c) * (load(d_scores + c) - delta[i]);
                store(d_scores + c, d);
                store(felt_ + c, load(felt_ + c) + d);
            }
        }
    }

    // What dS adds to the gradients of queries and keys.
    void products(const Operand& q, const Operand& k, int slot, int columns, bool own, const float* d_scores) const {
        const int keys = own ? rows_ : columns;
        float* sums = q.gradient ? q.gradient : q.out + row0_ * q.out_token;
        multiply(rows_, k.padded, keys, d_scores, kPanelStride, k.rows + int64_t(slot) * k.padded, k.padded, sums,
                 q.gradient ? q.padded : q.out_token, true, own ? Trim::depth : Trim::none);
        multiply_transposed(keys, q.padded, rows_, d_scores, kPanelStride, q.rows, q.padded, slots_.sums(k, slot),
                            slots_.sums_stride(k), true, own ? Trim::start : Trim::none);
    }

    const Problem& p_;
    const Backward& to_;
    const float* delta_;  // (H, T), of the batch row at work
    int capacity_, lists_;
    StripKeys keys_;
    StripSlots slots_;
    Operand **queries_, *q_, *grad_out_, *k_, *v_, *q_s_, *k_s_, *q_p_, *k_p_;
    int n_queries_ = 0, b_ = 0, t_ = 0, row0_ = 0, rows_ = 0;
    // Tiles, (kBlock x kPanelStride): raw scores, F, hits, -dF; of one head, P and dS (of the
    // selector last); dS of the protector.
    float *raw_, *protector_, *f_, *hit_, *felt_, *x_, *d_raw_, *d_protector_;
    float *carry_, *surplus_;  // of every slot
};

// sum_d out_id dO_id of every head, (H, T), over one query block.
inline void delta_of_block(const Problem& p, const Backward& to, int b, int t, float* delta) {
    for (int64_t i = t * kBlock; i < at_most((t + 1) * kBlock, p.T); ++i) {
        const float* out = to.out + (int64_t(b) * p.T + i) * p.H * p.D;
        const float* grad_out = to.grad_out.data + b * to.grad_out.batch + i * to.grad_out.token;
        for (int h = 0; h < p.H; ++h, out += p.D, grad_out += to.grad_out.head) {
            vf sums{};
            int d = 0;
            for (; d + W <= p.D; d += W) sums += load(out + d) * load(grad_out + d);
            float total = sum(sums);
            for (; d < p.D; ++d) total += out[d] * grad_out[d];
            delta[int64_t(h) * p.T + i] = total;
        }
    }
}

// total[x] += part[x] + the same of later parts, in order.
inline void add_parts(float* total, const float* part, int64_t n, int parts, int64_t apart) {
#pragma omp for schedule(static)
    for (int64_t x = 0; x < n; ++x)
        for (int share = 0; share < parts; ++share) total[x] += part[share * apart + x];
}

// One batch row, its key blocks shared; `parts` holds what shares other than the first add to the gradients of queries.
inline void backward_shared(const Problem& p, const Backward& to, BackwardWorker& worker, int b, float* parts,
                            float* delta) {
#pragma omp for
    for (int t = 0; t < n_blocks(p); ++t) delta_of_block(p, to, b, t, delta);
    const int64_t n_q = int64_t(p.T) * p.H * p.D, n_s = to.dq_s ? int64_t(p.T) * p.M * p.E : 0;
    const int64_t n_p = to.dq_p ? int64_t(p.T) * p.n_q_p * p.P : 0, size = n_q + n_s + n_p;
    const auto in = [&](float* row) {
        return QueryGradients{row, n_s ? row + n_q : nullptr, n_p ? row + n_q + n_s : nullptr};
    };
    const QueryGradients first{to.dq + b * n_q, to.dq_s + b * n_s, to.dq_p + b * n_p};
#pragma omp for schedule(static, 1)
    for (int share = 0; share < p.threads; ++share)
        worker.row(b, share, p.threads, share == 0 ? first : in(parts + (share - 1) * size));
    const QueryGradients others = in(parts);
    add_parts(first.dq, others.dq, n_q, p.threads - 1, size);
    add_parts(first.dq_s, others.dq_s, n_s, p.threads - 1, size);
    add_parts(first.dq_p, others.dq_p, n_p, p.threads - 1, size);
}

// 0, or 1 where there was no memory.
inline int backward(const Problem& p, const Backward& to) {
    Arena size(nullptr);
    const BackwardWorker unplaced(p, to, nullptr, size);
    const bool by_row = p.B % p.threads == 0 || p.B >= 4 * p.threads;
    const int64_t of_queries = int64_t(p.T) * (p.H * p.D + (to.dq_s ? p.M * p.E : 0) + (to.dq_p ? p.n_q_p * p.P : 0));
    const int64_t of_parts = by_row ? 0 : (p.threads - 1) * of_queries, of_delta = int64_t(p.H) * p.T;
    float* memory = static_cast<float*>(std::malloc(sizeof(float) * (of_parts + (by_row ? p.threads : 1) * of_delta)));
    if (!memory) return 1;
    int failed = 0;
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
    {
        const FlushDenormals flush;
        void* room = std::aligned_alloc(64, round_up(size.used(), 64));
        if (!room) {
#pragma omp atomic write
            failed = 1;
        }
#pragma omp barrier
        if (!failed) {
            float *parts = memory, *delta = memory + of_parts + (by_row ? this_thread() * of_delta : 0);
            Arena arena(room);
            BackwardWorker worker(p, to, delta, arena);
            if (by_row) {
#pragma omp for schedule(dynamic, 1)
                for (int b = 0; b < p.B; ++b) {
                    const int64_t row = int64_t(b) * p.T;
                    for (int t = 0; t < n_blocks(p); ++t) delta_of_block(p, to, b, t, delta);
                    worker.row(b, 0, 1,
                               QueryGradients{to.dq + row * p.H * p.D, to.dq_s ? to.dq_s + row * p.M * p.E : nullptr,
                                              to.dq_p ? to.dq_p + row * p.n_q_p * p.P : nullptr});
                }
            } else {
                for (int b = 0; b < p.B; ++b) backward_shared(p, to, worker, b, parts, delta);
            }
        }
        std::free(room);
    }
    std::free(memory);
    return failed;
}

}  // namespace WINNOW_ISA
}  // namespace winnow
