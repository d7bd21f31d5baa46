// The selection backwards, on a tile: from the gradient of F to those of the scores that made it.
//
// d vote_i = sum of dF over queries after i. Under protection F after turn n is votes up to the latest hit m less
// protections before it (selection.h: a hit is R <= S), so what n feels goes to the votes of turns up to m and,
// negated, to the protections of turns before m. Carried from one query block to the block before: what hits have
// settled, and what still waits for one.
#pragma once

#include "selection.h"

namespace winnow {
namespace WINNOW_ISA {

constexpr int kPanelStride = kBlock + W;  // of tiles: off the powers of two, whose rows would share cache sets

// Gradient of every vote of a tile from that of F; in a panel of keys.
struct VoteTile {
    int rows, row0;
    const int32_t* key;     // (kBlock)
    const int32_t* starts;  // (rows), or null
    const float *raw, *protector, *f, *hit;  // tiles, as in SelectionTile
    const float* felt;      // sum of dS over heads: -dF
    const float* grad_usage;  // (rows), or null
    float* later;           // (kBlock) carried, in and out: sum of dF over later queries, or what later hits settled
    float* waiting;         // (kBlock) carried under protection: what waits for a hit
    float* d_raw;           // tiles: dS of the selector, and of the protector (null: there is none), are added
    float* d_protector;
};

// kGroup vectors of columns up all rows. `every`: every pair is visible and may vote.
template <bool every, bool protect>
inline void votes_back(const Problem& p, const VoteTile& t, int column) {
    vf carried[kGroup], run[kGroup], waiting[kGroup];
    vi key[kGroup];
#pragma GCC unroll 4
    for (int c = 0; c < kGroup; ++c) {
        carried[c] = load(t.later + column + c * W);
        run[c] = vf{};
        if (protect) waiting[c] = load(t.waiting + column + c * W);
        if (!every) key[c] = load(t.key + column + c * W);
    }
    for (int i = t.rows - 1; i >= 0; --i) {
        const int64_t row = int64_t(i) * kPanelStride + column;
        const int start = !every && t.starts ? t.starts[i] : 0;
        const float of_usage = t.grad_usage ? t.grad_usage[i] : 0;
#pragma GCC unroll 4
        for (int c = 0; c < kGroup; ++c) {
            const int64_t at = row + c * W;
            const vf raw = load(t.raw + at);
            Sight seen{};
            if (!every) seen = sight(p, key[c], t.row0 + i, start);
            const vf of_shield = -(carried[c] + run[c]);
            if (protect) {
                const vi hit = load(t.hit + at) > vf{};
                run[c] += where(hit, waiting[c], vf{});
                waiting[c] = where(hit, vf{}, waiting[c]);
            }
            vf d_raw = (carried[c] + run[c]) * gate_slope(p, raw);
            if (!every) d_raw = where(seen.votes, d_raw, vf{});
            if (protect && p.protection != kConstant) {
                const vf protector = t.protector ? load(t.protector + at) : vf{};
                vf d_source = of_shield * protection_slope(p, raw, protector);
                if (!every) d_source = where(seen.visible, d_source, vf{});
                if (t.d_protector)
                    store(t.d_protector + at, load(t.d_protector + at) + d_source);
                else
                    d_raw += d_source;
            }
            store(t.d_raw + at, load(t.d_raw + at) + d_raw);
            vf df = -load(t.felt + at);
            if (t.grad_usage) df += where(load(t.f + at) < p.tau, splat(of_usage), vf{});
            if (p.relu_after) df = where(load(t.f + at) > vf{}, df, vf{});
            if (protect)
                waiting[c] += df;
            else
                run[c] += df;
        }
    }
#pragma GCC unroll 4
    for (int c = 0; c < kGroup; ++c) {
        store(t.later + column + c * W, carried[c] + run[c]);
        if (protect) store(t.waiting + column + c * W, waiting[c]);
    }
}

// All of a panel's columns.
inline void votes_back(const Problem& p, const VoteTile& t) {
    const bool protect = p.protection != kNone, every = all_votes(p, t.key, t.rows, t.row0, t.starts);
    for (int column = 0; column < kBlock; column += kGroup * W) {
        if (every && protect)
            votes_back<true, true>(p, t, column);
        else if (every)
            votes_back<true, false>(p, t, column);
        else if (protect)
            votes_back<false, true>(p, t, column);
        else
            votes_back<false, false>(p, t, column);
    }
}

}  // namespace WINNOW_ISA
}  // namespace winnow
