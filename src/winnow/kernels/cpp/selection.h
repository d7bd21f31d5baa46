// The selection on a tile of (query block x keys): raw scores -> votes -> what has piled up against every key, F.
//
// Keys stand in slots, kBlock to a panel, in ascending order; `key` names the token of every slot, so that keys that
// were dropped leave no gap. State is carried per key from one query block to the next; sums within a block start at 0
// and are added to what was carried, so errors grow with the block and the number of blocks, not with their product.
#pragma once

#include "problem.h"
#include "simd.h"

namespace winnow {
namespace WINNOW_ISA {

constexpr int kGroup = 4;  // vectors of columns that go down the rows together

struct SelectionTile {
    int rows, columns;          // columns: a multiple of kBlock
    int row0;                   // the first query's token
    const int32_t* key;         // (columns): token of each slot, -1: none. Ascending, empty slots at a panel's end
    const int32_t* starts;      // (rows): of the block's queries, or null
    const float* raw;           // (rows x columns): scores of the selector; only read where key <= query
    int64_t ld_raw;
    const float* protector;     // the same of the protector, or null
    int64_t ld_protector;
    const float* carry;         // (columns): carried sum, or damage
    const float* surplus;       // (columns): carried surplus; null without protection
    float* carry_after;         // (columns): the same after the block's last query, or null. May be the inputs
    float* surplus_after;
    float* f;                   // out, (rows x columns): F, and +inf where the key is not visible to the query
    int64_t ld_f;
    float* hit;                 // out, (rows x columns), or null: under protection 1 where R <= S, else 0
    int64_t ld_hit;
    float* usage;               // (rows x W), or null: sums of min(F, tau) over visible keys are added, lane by lane
};

// Which keys of a vector a query sees, and which it may vote against.
struct Sight {
    vi visible, votes;
};
WINNOW_INLINE Sight sight(const Problem& p, vi key, int query, int start) {
    Sight s;
    s.visible = (key >= splat(start)) & (key <= splat(query));
    s.votes = s.visible;
    if (p.protect_bos) s.votes &= key != splat(start);
    if (!p.allow_self_masking) s.votes &= key != splat(query);
    return s;
}
// Whether all of a panel's keys are visible to all of a block's queries and may be voted against by them.
inline bool all_votes(const Problem& p, const int32_t* key, int rows, int row0, const int32_t* starts) {
    const int start = starts ? starts[rows - 1] : 0;  // starts never fall
    return key[kBlock - 1] >= 0 && key[kBlock - 1] < row0 && (p.protect_bos ? key[0] > start : key[0] >= start);
}

// S before the future, the first token and the query itself are taken out. Here and below, what may be NaN stands
// second in max and min, which then return it: a NaN shows in the output as it does in every other backend.
WINNOW_INLINE vf gate(const Problem& p, vf raw) {
    return p.leak != 0 ? where(raw > vf{}, raw, rounded(raw * p.leak)) : max(vf{}, raw);
}
// dS / d raw.
WINNOW_INLINE vf gate_slope(const Problem& p, vf raw) { return where(raw > vf{}, splat(1.0f), splat(p.leak)); }

// What protection is made from, before its gain and bias; `raw` and `protector` as in SelectionTile.
WINNOW_INLINE vf protection_base(const Problem& p, vf raw, vf protector) {
    if (p.protection == kScores) return max(vf{}, protector);
    if (p.protection == kLeaky) return max(vf{}, p.offset - rounded(p.slope * raw));
    return splat(p.offset);
}
WINNOW_INLINE vf protection(const Problem& p, vf raw, vf protector) {
    const vf scaled = rounded(protection_base(p, raw, protector) * p.gain);
    return p.bias != 0 ? max(vf{}, scaled + p.bias) : scaled;
}
// dp / d protector for kScores, dp / d raw for kLeaky, 0 for kConstant.
WINNOW_INLINE vf protection_slope(const Problem& p, vf raw, vf protector) {
    if (p.protection == kConstant) return vf{};
    const vf base = protection_base(p, raw, protector);
    vf slope = where(base > vf{}, splat(p.protection == kScores ? p.gain : -p.slope * p.gain), vf{});
    if (p.bias != 0) slope = where(rounded(base * p.gain) + p.bias > vf{}, slope, vf{});
    return slope;
}

// kGroup vectors of columns down all rows. `every`: every pair is visible and may vote.
template <bool every, bool protect>
inline void select_group(const Problem& p, const SelectionTile& t, int column) {
    // Protection in its closed form, damage = max over turns m of (votes up to m - protections before m) - surplus at
    // the block's start, or 0: sums are of this block alone, and no error of one turn is carried to the next.
    vf carried[kGroup], run[kGroup], surplus[kGroup], most[kGroup];
    vi key[kGroup];
#pragma GCC unroll 4
    for (int c = 0; c < kGroup; ++c) {
        carried[c] = load(t.carry + column + c * W);
        run[c] = vf{};
        if (protect) most[c] = surplus[c] = load(t.surplus + column + c * W);
        if (!every) key[c] = load(t.key + column + c * W);
    }
    for (int i = 0; i < t.rows; ++i) {
        const float* raw_row = t.raw + i * t.ld_raw + column;
        const float* protector_row = t.protector ? t.protector + i * t.ld_protector + column : nullptr;
        float* f_row = t.f + i * t.ld_f + column;
        const int start = !every && t.starts ? t.starts[i] : 0;
        vf used = vf{};
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; ++c) {
            vf f = carried[c] + (protect ? most[c] - surplus[c] : run[c]);
            if (p.relu_after) f = max(vf{}, f);
            const vf raw = load(raw_row + c * W);
            vf s = gate(p, raw);
            vi visible{};
            if (!every) {
                const Sight seen = sight(p, key[c], t.row0 + i, start);
                visible = seen.visible;
                s = where(seen.votes, s, vf{});
            }
            store(f_row + c * W, every ? f : where(visible, f, splat(kInfinity)));
            if (t.usage) {
                const vf counted = min(splat(p.tau), f);
                used += every ? counted : where(visible, counted, vf{});
            }
            if (protect) {
                const vf saved = protection(p, raw, protector_row ? load(protector_row + c * W) : vf{});
                const vf net = run[c] + s;
                if (t.hit) store(t.hit + i * t.ld_hit + column + c * W, where(net >= most[c], splat(1.0f), vf{}));
                most[c] = max(most[c], net);
                run[c] = net - (every ? saved : where(visible, saved, vf{}));
            } else {
                run[c] += s;
            }
        }
        if (t.usage) store(t.usage + i * W, load(t.usage + i * W) + used);
    }
    if (!t.carry_after) return;
#pragma GCC unroll 4
    for (int c = 0; c < kGroup; ++c) {
        store(t.carry_after + column + c * W, carried[c] + (protect ? most[c] - surplus[c] : run[c]));
        if (protect) store(t.surplus_after + column + c * W, most[c] - run[c]);
    }
}

// F of a tile, and the state after it.
inline void select(const Problem& p, const SelectionTile& t) {
    const bool protect = p.protection != kNone;
    for (int panel = 0; panel < t.columns; panel += kBlock) {
        const bool every = all_votes(p, t.key + panel, t.rows, t.row0, t.starts);
        for (int column = panel; column < panel + kBlock; column += kGroup * W) {
            if (every && protect)
                select_group<true, true>(p, t, column);
            else if (every)
                select_group<true, false>(p, t, column);
            else if (protect)
                select_group<false, true>(p, t, column);
            else
                select_group<false, false>(p, t, column);
        }
    }
}

}  // namespace WINNOW_ISA
}  // namespace winnow
