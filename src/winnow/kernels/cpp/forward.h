// The forward pass. Query blocks in turn; within a block the heads of a mask share its F, tile of keys by tile, with an
// online softmax, so that what a tile needs stays in the second cache.
//
// With enough batch rows, each is one thread's, block after block, and carries are a by-product. Otherwise carries come
// first, panel of keys by panel (the selector's scores alone, 1/H of all), and then blocks are free of each other. Both
// ways every number is formed by the same operations in the same order, so results do not depend on the threads.
#pragma once

#include "keys.h"
#include "selection.h"

namespace winnow {
namespace WINNOW_ISA {

constexpr int kTile = 256;              // keys in a tile
constexpr int kTileStride = kTile + W;  // off the powers of two, whose rows would share cache sets

inline int64_t carry_index(const Problem& p, int64_t b, int64_t t, int64_t m) {
    return ((b * n_blocks(p) + t) * p.M + m) * n_carried(p) * p.T;
}

class ForwardWorker {
   public:
    ForwardWorker(const Problem& p, const Forward& to, const Plan& plan, Arena& arena)
        : p_(p), to_(to), plan_(plan), keys_(p, plan, arena), width_(static_cast<int>(round_up(p.D, W))) {
        q_ = arena.take<float>(static_cast<int64_t>(p.H) * kBlock * p.D);
        selector_ = arena.take<float>(kBlock * p.E);
        protector_ = arena.take<float>(kBlock * p.P);
        selector_panel_ = arena.take<float>(kBlock * p.E);
        protector_panel_ = arena.take<float>(kBlock * p.P);
        raw_ = arena.take<float>(kBlock * kTileStride);
        raw_protector_ = arena.take<float>(kBlock * kTileStride);
        f_ = arena.take<float>(kBlock * kTileStride);
        x_ = arena.take<float>(kBlock * kTileStride);
        row_max_ = arena.take<float>(kBlock * W);
        usage_ = arena.take<float>(kBlock * W);
        out_ = arena.take<float>(static_cast<int64_t>(p.H) * kBlock * width_);
        most_ = arena.take<float>(p.H * kBlock);
        total_ = arena.take<float>(p.H * kBlock);
        carry_ = arena.take<float>(keys_.capacity());
        surplus_ = arena.take<float>(keys_.capacity());
    }

    // All blocks of a batch row, carries included.
    void row(int b) {
        for (int t = 0; t < n_blocks(p_); ++t) block(b, t, t + 1 < n_blocks(p_));
    }

    // One query block. `carry_on`: the carries of the next block are written, from this one's.
    void block(int b, int t, bool carry_on) {
        if (keys_.row() != b) keys_.start(b);
        keys_.advance(t, to_.carry + carry_index(p_, b, 0, 0), to_.theta + int64_t(b) * n_blocks(p_) * p_.M);
        go_to(b, t);
        const float* q = p_.q.data + b * p_.q.batch + row0_ * p_.q.token;
        for (int h = 0; h < p_.H; ++h)
            pack_rows(rows_, p_.D, p_.D, q + h * p_.q.head, p_.q.token, p_.scale, q_ + int64_t(h) * kBlock * p_.D);
        std::memset(out_, 0, sizeof(float) * p_.H * kBlock * width_);
        for (int i = 0; i < p_.H * kBlock; ++i) {
            most_[i] = kLowest;  // finite: a row may see no key of a tile
            total_[i] = 0;
        }
        for (int m = 0; m < p_.M; ++m) mask(m, carry_on);
        for (int h = 0; h < p_.H; ++h) finish(h);
    }

    // The state of one panel of keys before every block.
    void carries(int b, int m, int panel) {
        const int first = panel * kBlock, columns = static_cast<int>(at_most(kBlock, p_.T - first));
        int32_t key[kBlock];
        for (int s = 0; s < kBlock; ++s) {
            key[s] = s < columns ? first + s : -1;
            carry_[s] = surplus_[s] = 0;
        }
        pack_keys(plan_.selector[m], b, key, selector_panel_);
        if (plan_.protector[m] >= 0) pack_keys(plan_.protector[m], b, key, protector_panel_);
        for (int t = panel; t < n_blocks(p_); ++t) {
            if (t > panel) {
                float* state = to_.carry + carry_index(p_, b, t, m) + first;
                std::memcpy(state, carry_, sizeof(float) * columns);
                if (n_carried(p_) > 1) std::memcpy(state + p_.T, surplus_, sizeof(float) * columns);
            }
            if (t + 1 == n_blocks(p_)) break;
            go_to(b, t);
            pack_queries(m);
            scores(m, selector_panel_, protector_panel_, 0, t == panel);
            SelectionTile tile = selection(key, kBlock, 0);
            tile.usage = nullptr;
            select(p_, tile);
        }
    }

   private:
    void go_to(int b, int t) {
        b_ = b;
        t_ = t;
        row0_ = t * kBlock;
        rows_ = static_cast<int>(at_most(kBlock, p_.T - row0_));
        starts_ = p_.starts ? p_.starts + int64_t(b) * p_.T + row0_ : nullptr;
    }

    void pack_keys(int packing, int b, const int32_t* key, float* panel) const {
        const Packing& of = plan_.packing[packing];
        const float* from = of.from + b * of.batch;
        pack_panel(of.width, [&](int s) { return key[s] < 0 ? nullptr : from + key[s] * of.token; }, panel);
    }

    void pack_queries(int m) {
        const auto pack = [&](const View& from, int head, int width, float* to) {
            const float* data = from.data + b_ * from.batch + row0_ * from.token + head * from.head;
            pack_rows(rows_, width, width, data, from.token, p_.scale, to);
        };
        pack(p_.q_s, m, p_.E, selector_);
        if (p_.protection == kScores) pack(p_.q_p, m, p_.P, protector_);
    }

    // Raw scores of selector and protector against a panel, to a column of the tile.
    void scores(int m, const float* selector_panel, const float* protector_panel, int column, bool own) {
        const Trim trim = own ? Trim::columns : Trim::none;
        multiply(rows_, kBlock, p_.E, selector_, p_.E, selector_panel, kBlock, raw_ + column, kTileStride, false, trim);
        if (plan_.protector[m] >= 0)
            multiply(rows_, kBlock, p_.P, protector_, p_.P, protector_panel, kBlock, raw_protector_ + column,
                     kTileStride, false, trim);
    }

    SelectionTile selection(const int32_t* key, int columns, int64_t slot) {
        SelectionTile tile{};
        tile.rows = rows_;
        tile.columns = columns;
        tile.row0 = row0_;
        tile.key = key + slot;
        tile.starts = starts_;
        tile.raw = raw_;
        tile.protector = p_.protection == kScores ? raw_protector_ : nullptr;
        tile.ld_raw = tile.ld_protector = tile.ld_f = kTileStride;
        tile.carry = tile.carry_after = carry_ + slot;
        tile.surplus = tile.surplus_after = surplus_ + slot;
        tile.f = f_;
        tile.usage = to_.usage ? usage_ : nullptr;
        return tile;
    }

    void mask(int m, bool carry_on) {
        const int list = plan_.list_of(m), slots = keys_.slots(list);
        const int32_t* key = keys_.keys(list);
        const float* state = to_.carry + carry_index(p_, b_, t_, m);
        gather(state, key, slots, carry_);
        if (n_carried(p_) > 1) gather(state + p_.T, key, slots, surplus_);
        std::memset(usage_, 0, sizeof(float) * kBlock * W);
        pack_queries(m);
        int slot = 0;
        while (starts_ && slot + kBlock < slots && key[slot + kBlock] <= starts_[0]) slot += kBlock;  // seen by no row
        for (int columns; slot < slots; slot += columns) {
            columns = static_cast<int>(at_most(kTile, slots - slot));
            const bool own = slot + columns == slots;
            for (int c = 0; c < columns; c += kBlock)
                scores(m, keys_.at(plan_.selector[m], slot + c),
                       plan_.protector[m] < 0 ? nullptr : keys_.at(plan_.protector[m], slot + c), c,
                       own && c + kBlock == columns);
            select(p_, selection(key, columns, slot));
            for (int h = 0; h < p_.H; ++h)
                if (p_.spread[h] == m) head(h, list, slot, columns, own);
        }
        if (to_.usage) write_usage(m, key, slots, keys_.whole(list));
        if (!carry_on) return;
        float* next = to_.carry + carry_index(p_, b_, t_ + 1, m);
        for (int c = 0; c < n_carried(p_); ++c) std::memcpy(next + c * p_.T, state + c * p_.T, sizeof(float) * row0_);
        scatter(carry_, key, slots, next);
        if (n_carried(p_) > 1) scatter(surplus_, key, slots, next + p_.T);
    }

    void gather(const float* state, const int32_t* key, int slots, float* to) const {
        for (int s = 0; s < slots; ++s) to[s] = key[s] < 0 || key[s] >= row0_ ? 0 : state[key[s]];
    }
    static void scatter(const float* from, const int32_t* key, int slots, float* state) {
        for (int s = 0; s < slots; ++s)
            if (key[s] >= 0) state[key[s]] = from[s];
    }

    // One head on a tile: its scores less F, their exponentials, and what they take of the values. `own`: the tile ends
    // with the block's own keys.
    void head(int h, int list, int64_t slot, int columns, bool own) {
        const int kv = h / (p_.H / p_.K), whole = own ? columns - kBlock : columns;
        const float* q = q_ + int64_t(h) * kBlock * p_.D;
        const int k = plan_.k[list * p_.K + kv];
        for (int i = 0; i < rows_ * W; i += W) store(row_max_ + i, splat(-kInfinity));
        if (h == p_.select) {
            for (int i = 0; i < rows_; ++i) {
                const int end = whole + (own ? trimmed_columns(i, rows_, kBlock) : 0);
                vf most = splat(-kInfinity);
                for (int c = 0; c < end; c += W) {
                    const vf x = load(raw_ + i * kTileStride + c) - load(f_ + i * kTileStride + c);
                    store(x_ + i * kTileStride + c, x);
                    most = max(most, x);
                }
                store(row_max_ + i * W, most);
            }
        } else {
            for (int c = 0; c < columns; c += kBlock)
                product<false>(rows_, kBlock, p_.D, q, p_.D, keys_.at(k, slot + c), kBlock,
                               c < whole ? Trim::none : Trim::columns,
                               SubtractAndMax{x_ + c, kTileStride, f_ + c, kTileStride, row_max_});
        }
        float* out = out_ + int64_t(h) * kBlock * width_;
        for (int i = 0; i < rows_; ++i) {
            const int end = whole + (own ? trimmed_columns(i, rows_, kBlock) : 0);
            exponentials(x_ + i * kTileStride, end, highest(load(row_max_ + i * W)), out + i * width_,
                         most_[h * kBlock + i], total_[h * kBlock + i]);
        }
        const float* v = keys_.at(plan_.v[list * p_.K + kv], slot);
        multiply(rows_, width_, whole, x_, kTileStride, v, width_, out, width_, true);
        if (own)
            multiply(rows_, width_, kBlock, x_ + whole, kTileStride, v + int64_t(whole) * width_, width_, out, width_,
                     true, Trim::depth);
    }

    // x = exp(x - most), where `most` and what was summed so far follow the largest score seen.
    WINNOW_INLINE void exponentials(float* x, int columns, float highest_here, float* out, float& most, float& total) {
        if (highest_here > most) {
            const float shrink = exp(splat(most - highest_here))[0];
            total *= shrink;
            for (int d = 0; d < width_; d += W) store(out + d, load(out + d) * shrink);
            most = highest_here;
        }
        vf sums{};
        for (int c = 0; c < columns; c += W) {
            const vf weight = exp(load(x + c) - most);
            store(x + c, weight);
            sums += weight;
        }
        total += sum(sums);
    }

    void finish(int h) const {
        float* lse = to_.lse + (int64_t(b_) * p_.H + h) * p_.T + row0_;
        for (int i = 0; i < rows_; ++i) {
            const float total = total_[h * kBlock + i], share = 1.0f / total;
            const float* from = out_ + (int64_t(h) * kBlock + i) * width_;
            float* to = to_.out + ((int64_t(b_) * p_.T + row0_ + i) * p_.H + h) * p_.D;
            pack_rows(1, p_.D, p_.D, from, 0, share, to);
            lse[i] = most_[h * kBlock + i] + __builtin_logf(total);
        }
    }

    void write_usage(int m, const int32_t* key, int slots, bool whole) const {
        float* usage = to_.usage + (int64_t(b_) * p_.M + m) * p_.T + row0_;
        int start = -1, listed = 0;
        for (int i = 0; i < rows_; ++i) {
            usage[i] = sum(load(usage_ + i * W));
            if (whole) continue;
            // Dropped keys are all beyond theta, so beyond tau.
            if (const int of_row = starts_ ? starts_[i] : 0; of_row != start) {
                start = of_row;
                listed = 0;
                for (int s = 0; s < slots; ++s) listed += key[s] >= start && key[s] < row0_;
            }
            const int earlier = static_cast<int>(at_least(row0_ - start, 0));
            usage[i] += p_.tau * static_cast<float>(earlier - listed);
        }
    }

    const Problem& p_;
    const Forward& to_;
    const Plan& plan_;
    Keys keys_;
    int width_;  // of a row of values, padded
    int b_ = 0, t_ = 0, row0_ = 0, rows_ = 0;
    const int32_t* starts_ = nullptr;  // of the block's rows
    float *q_, *selector_, *protector_, *selector_panel_, *protector_panel_;
    float *raw_, *raw_protector_, *f_, *x_;  // tiles, (kBlock x kTileStride)
    float *row_max_, *usage_;                // (kBlock x W)
    float *out_, *most_, *total_;            // of every head: sum of exp(x - most) v, most, sum of exp(x - most)
    float *carry_, *surplus_;                // of every slot of the mask at work
};

// What theta of a batch row comes from, in parts that threads can share; then finish_theta.
inline void gaps_of_block(const Problem& p, const Forward& to, int b, int t, const float* widest) {
    float* theta = to.theta + (int64_t(b) * n_blocks(p) + t) * p.M;
    for (int m = 0; m < p.M; ++m) theta[m] = p.compact ? widest_gap(p, b, t, m, widest) : kInfinity;
}

// Batch rows shared among threads. No thread waits for another before the end.
inline void forward_rows(const Problem& p, const Forward& to, ForwardWorker& worker, float* widest) {
#pragma omp for schedule(dynamic, 1)
    for (int b = 0; b < p.B; ++b) {
        for (int kv = 0; p.compact && kv < p.K; ++kv) widest[b * p.K + kv] = widest_key(p, b, kv);
        for (int t = 0; t < n_blocks(p); ++t) gaps_of_block(p, to, b, t, widest + b * p.K);
        if (p.compact) finish_theta(p, to.theta + int64_t(b) * n_blocks(p) * p.M);
        worker.row(b);
    }
}

// Blocks of every batch row shared among threads, once all carries are there.
inline void forward_blocks(const Problem& p, const Forward& to, ForwardWorker& worker, float* widest) {
    const int blocks = n_blocks(p);
    if (p.compact) {
#pragma omp for collapse(2)
        for (int b = 0; b < p.B; ++b)
            for (int kv = 0; kv < p.K; ++kv) widest[b * p.K + kv] = widest_key(p, b, kv);
    }
#pragma omp for collapse(2)
    for (int b = 0; b < p.B; ++b)
        for (int t = 0; t < blocks; ++t) gaps_of_block(p, to, b, t, widest + b * p.K);
#pragma omp for nowait
    for (int b = 0; b < p.B; ++b)
        if (p.compact) finish_theta(p, to.theta + int64_t(b) * blocks * p.M);
#pragma omp for collapse(3) schedule(dynamic, 1)
    for (int b = 0; b < p.B; ++b)
        for (int m = 0; m < p.M; ++m)
            for (int panel = 0; panel < blocks; ++panel) worker.carries(b, m, panel);
#pragma omp for collapse(2) schedule(static, 1)
    for (int b = 0; b < p.B; ++b)
        for (int t = 0; t < blocks; ++t) worker.block(b, t, false);
}

// 0, or 1 where there was no memory.
inline int forward(const Problem& p, const Forward& to) {
    Arena plan_size(nullptr);
    const Plan unplaced(p, plan_size);
    void* plan_memory = std::malloc(plan_size.used());
    float* widest = static_cast<float*>(std::malloc(sizeof(float) * p.B * p.K));
    if (!plan_memory || !widest) {
        std::free(plan_memory);
        std::free(widest);
        return 1;
    }
    Arena plan_arena(plan_memory);
    const Plan plan(p, plan_arena);
    Arena size(nullptr);
    const ForwardWorker unplaced_worker(p, to, plan, size);
    char* memory = static_cast<char*>(std::aligned_alloc(64, size.used() * p.threads));
    if (memory) {
#pragma omp parallel num_threads(p.threads) if (p.threads > 1)
        {
            const FlushDenormals flush;
            Arena arena(memory + size.used() * this_thread());
            ForwardWorker worker(p, to, plan, arena);
            if (p.B % p.threads == 0 || p.B >= 4 * p.threads)
                forward_rows(p, to, worker, widest);
            else
                forward_blocks(p, to, worker, widest);
        }
    }
    std::free(memory);
    std::free(widest);
    std::free(plan_memory);
    return memory ? 0 : 1;
}

}  // namespace WINNOW_ISA
}  // namespace winnow
