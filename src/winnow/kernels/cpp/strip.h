// What the backward pass works on at a time: a strip, some blocks of keys of a batch row, against all query blocks from
// the last one down. Its keys stand in slots as in keys.h, here in runs of W: those that a query block can drop are
// taken out, and come back, with their gradient, at the earlier blocks where they lived.
#pragma once

#include "keys.h"

namespace winnow {
namespace WINNOW_ISA {

// One head of a tensor: the copies that products read, of a block's queries or of a strip's slots, and the gradient
// that is summed for them. Copies that no product reads are null.
struct Operand {
    const float* from = nullptr;  // token 0 of batch row 0
    int64_t batch = 0, token = 0;
    int width = 0, padded = 0;    // columns; of a row of a copy, a multiple of W
    float factor = 1;             // of `rows`
    float* rows = nullptr;        // (slots x padded)
    float* transposed = nullptr;  // panels, (width x kBlock) each
    float* gradient = nullptr;    // (slots x padded); null, or left alone: it is summed where it goes
    float* out = nullptr;         // where the gradient of token 0 of the batch row at work is added
    int64_t out_token = 0;

    Operand() = default;
    Operand(const View& view, int head, int columns, float times)
        : from(view.data + head * view.head), batch(view.batch), token(view.token), width(columns),
          padded(static_cast<int>(round_up(columns, W))), factor(times) {}

    void put_out(float* row, int heads, int head) {
        out = row + int64_t(head) * width;
        out_token = int64_t(heads) * width;
    }

    // Products write whole vectors, so they can add to rows of the result only where these are whole vectors too.
    bool can_sum_in_place() const { return width == padded; }

    // Adds `n` rows of the gradient to those of the tokens from `first` on.
    void add_out(int first, int n, const float* sums) const {
        for (int i = 0; i < n; ++i, sums += padded) {
            float* to = out + (first + i) * out_token;
            int d = 0;
            for (; d + W <= width; d += W) store(to + d, load(to + d) + load(sums + d));
            for (; d < width; ++d) to[d] += sums[d];
        }
    }
};

// The keys of a strip as every query block sees them, by mask list (keys.h); formed upwards, read downwards.
class StripKeys {
   public:
    StripKeys(const Problem& p, int capacity, Arena& arena) : p_(p), capacity_(capacity) {
        key_ = arena.take<int32_t>(int64_t(n_blocks(p)) * capacity);
        earlier_ = arena.take<int>(n_blocks(p));
        total_ = arena.take<int>(n_blocks(p));
    }

    // `block`: the strip's n blocks of keys, ascending. `carry`, `theta`: of the batch row, as in Forward.
    void list(int b, int mask, const int* block, int n, const float* carry, const float* theta) {
        int used = 0;
        whole_ = true;
        const int* own = block;
        for (int t = block[0]; t < n_blocks(p_); ++t) {
            int32_t* key = key_ + int64_t(t) * capacity_;
            if (t > block[0]) std::memcpy(key, key - capacity_, sizeof(int32_t) * used);
            const float* f = carry + (int64_t(t) * p_.M + mask) * n_carried(p_) * p_.T;
            const int before = used;
            used = drop(key, used, p_.starts ? p_.starts[int64_t(b) * p_.T + t * kBlock] : 0, f,
                        theta[t * p_.M + mask]);
            whole_ = whole_ && used == before;
            earlier_[t] = used;
            const bool has_own = own < block + n && *own == t;
            const int whole = static_cast<int>(round_up(used, kBlock));
            for (; used < whole; ++used) key[used] = -1;
            if (has_own) {
                for (int s = 0; s < kBlock; ++s) key[used++] = t * kBlock + s < p_.T ? t * kBlock + s : -1;
                ++own;
            }
            total_[t] = used;
            if (!has_own) used = earlier_[t];
        }
    }

    const int32_t* keys(int t) const { return key_ + int64_t(t) * capacity_; }
    int earlier(int t) const { return earlier_[t]; }  // slots of keys before the block's own, a multiple of W
    int total(int t) const { return total_[t]; }      // all slots, a multiple of kBlock; own keys are the last panel
    bool whole() const { return whole_; }             // every list has all keys so far: a panel is a block of tokens

   private:
    int drop(int32_t* key, int used, int start, const float* f, float theta) const {
        int live = 0;
        for (int s = 0; s < used; ++s) live += lives(key[s], start, f, theta);
        const int after = static_cast<int>(round_up(live, W));
        if (live > 0 && after + at_least(W, used / 8) > used) return used;
        int n = 0;
        for (int s = 0; s < used; ++s)
            if (lives(key[s], start, f, theta)) key[n++] = key[s];
        while (n < after) key[n++] = -1;
        return after;
    }

    const Problem& p_;
    int capacity_;
    int32_t* key_;
    int *earlier_, *total_;
    bool whole_ = true;
};

// Which operands of keys a strip holds, and their slots. Gradients, and what `later` carries for every key, move along
// when keys come back.
class StripSlots {
   public:
    StripSlots(int most_operands, int most_carried, int capacity, Arena& arena) : capacity_(capacity) {
        operand_ = arena.take<Operand*>(most_operands);
        later_ = arena.take<float>(int64_t(most_carried) * capacity);
    }

    void start(int b, int carried) {
        b_ = b;
        in_place_ = false;
        operands_ = held_ = 0;
        carried_ = carried;
    }
    void add(Operand* operand) {
        for (int i = 0; i < operands_; ++i)
            if (operand_[i] == operand) return;
        operand_[operands_++] = operand;
    }

    bool can_sum_in_place() const {
        for (int i = 0; i < operands_; ++i)
            if (!operand_[i]->can_sum_in_place()) return false;
        return true;
    }
    // Gradients are summed in the results, which are zero so far: panels are blocks of tokens and stay where they are.
    void sum_in_place() { in_place_ = true; }

    // Where the gradients of a panel's keys are summed, and from row to row.
    float* sums(const Operand& of, int slot) const {
        return in_place_ ? of.out + key_[slot] * of.out_token : of.gradient + int64_t(slot) * of.padded;
    }
    int64_t sums_stride(const Operand& of) const { return in_place_ ? of.out_token : of.padded; }

    // To the slots of another list: that of the query block before.
    void adopt(const int32_t* key, int total) {
        int same = 0;
        while (same < at_most(held_, total) && key[same] == key_[same]) ++same;
        for (int s = total - 1, old = held_ - 1; s >= same; --s) {
            if (key[s] >= 0)
                while (old >= same && (key_[old] < 0 || key_[old] > key[s])) --old;
            const bool known = key[s] >= 0 && old >= same && key_[old] == key[s];  // then old <= s
            move(known ? old : -1, s);
        }
        key_ = key;
        held_ = total;
        for (int slot = same / kBlock * kBlock; same < total && slot < total; slot += kBlock)
            for (int i = 0; i < operands_; ++i) pack(*operand_[i], slot);
    }

    // The last panel is done with: its keys' gradients, complete, go out.
    void release(int first, int rows) {
        held_ -= kBlock;
        for (int i = 0; i < operands_ && !in_place_; ++i)
            operand_[i]->add_out(first, rows, operand_[i]->gradient + int64_t(held_) * operand_[i]->padded);
    }

    float* later(int which) { return later_ + int64_t(which) * capacity_; }

   private:
    void move(int from, int to) {
        for (int i = 0; i < operands_ && !in_place_; ++i) {
            const int n = operand_[i]->padded;
            float* sums = operand_[i]->gradient;
            if (from < 0)
                std::memset(sums + int64_t(to) * n, 0, sizeof(float) * n);
            else if (from != to)
                std::memcpy(sums + int64_t(to) * n, sums + int64_t(from) * n, sizeof(float) * n);
        }
        for (int c = 0; c < carried_; ++c) later(c)[to] = from < 0 ? 0 : later(c)[from];
    }

    void pack(const Operand& operand, int slot) const {
        const float* from = operand.from + b_ * operand.batch;
        const auto row = [&](int s) { return key_[slot + s] < 0 ? nullptr : from + key_[slot + s] * operand.token; };
        if (operand.transposed) pack_panel(operand.width, row, operand.transposed + int64_t(slot) * operand.width);
        if (!operand.rows) return;
        float* to = operand.rows + int64_t(slot) * operand.padded;
        for (int s = 0; s < kBlock; ++s, to += operand.padded) {
            if (const float* data = row(s))
                pack_rows(1, operand.width, operand.padded, data, 0, operand.factor, to);
            else
                std::memset(to, 0, sizeof(float) * operand.padded);
        }
    }

    int capacity_, b_ = 0, operands_ = 0, carried_ = 0;
    int held_ = 0;                  // slots in use
    bool in_place_ = false;
    const int32_t* key_ = nullptr;  // their keys
    Operand** operand_;
    float* later_;
};

}  // namespace WINNOW_ISA
}  // namespace winnow
