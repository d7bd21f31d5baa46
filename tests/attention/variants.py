"""The family of selective attention as tables: every part of the pipeline, and combinations that studies use."""

from __future__ import annotations

from typing import Any

from winnow.attention import AttentionConfig


def selective(**fields: Any) -> AttentionConfig:
    return AttentionConfig.model_validate({"kind": "selective", **fields})


def protect(kind: str, scale: float = 1.0, bias: float = 0.0, **source: Any) -> dict[str, Any]:
    return {"kind": "protect", "source": {"kind": kind, **source}, "scale": scale, "bias": bias}


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bos": {"protect_bos": False},
    "self": {"allow_self_masking": True},
    "bos_and_self": {"protect_bos": False, "allow_self_masking": True},
    "head_2": {"scores": {"kind": "head", "head": 2}},
    "selector": {"scores": {"kind": "selectors"}},
    "two_masks": {"scores": {"kind": "selectors", "n_heads": 2}},
    "three_masks": {"scores": {"kind": "selectors", "n_heads": 3}},
    "three_masks_spread": {"scores": {"kind": "selectors", "n_heads": 3}, "spread": [2, 0, 1, 2]},
    "mask_per_head": {"scores": {"kind": "selectors", "n_heads": 4}},
    "two_slices": {"scores": {"kind": "selectors", "n_slices": 2}},
    "two_by_two_slices": {"scores": {"kind": "selectors", "n_heads": 2, "n_slices": 2}},
    "linear": {"scores": {"kind": "linear_combination", "scale": 0.5}},
    "linear_bias": {"scores": {"kind": "linear_combination", "init": "random", "bias": True}},
    "latent": {"scores": {"kind": "latent", "n": 2}},
    "latent_bos_self": {"scores": {"kind": "latent"}, "protect_bos": False, "allow_self_masking": True},
    "leak": {"gate": {"leak": 0.3}},
    "relu_moved": {"gate": {"leak": 1.0, "relu_after": True}},
    "head_two": {"accumulate": protect("head")},
    "head_two_scaled": {"accumulate": protect("head", 0.5, -0.2), "allow_self_masking": True, "protect_bos": False},
    "protect_linear": {"accumulate": protect("linear_combination")},
    "protect_leaky": {"accumulate": protect("leaky", slope=0.5, offset=0.1)},
    "protect_constant": {"accumulate": protect("constant", value=0.2)},
    "protect_zero": {"accumulate": protect("zero")},
    "protect_zero_bias": {"accumulate": protect("zero", bias=0.3)},
    "masks_protected": {"scores": {"kind": "selectors", "n_heads": 2}, "accumulate": protect("head")},
    "latent_leaky": {"scores": {"kind": "latent", "n": 2}, "accumulate": protect("leaky")},
    "all_linear": {
        "scores": {"kind": "linear_combination", "bias": True},
        "accumulate": protect("linear_combination", 2.0, 0.1),
    },
    "sequential": {"accumulate": {"algorithm": "sequential"}},
    "tree_protected": {"accumulate": {**protect("head"), "algorithm": "tree", "dtype": "float64"}},
    "residual": {"residual_scores": True},
    "residual_linear": {"residual_scores": True, "scores": {"kind": "linear_combination", "bias": True}},
    "residual_masks": {"residual_scores": True, "scores": {"kind": "selectors", "n_heads": 2}},
    "residual_protected": {"residual_scores": True, "accumulate": protect("head")},
    "penalty": {"penalty": {}},
    "penalty_masks": {"penalty": {"form": "mean", "tau": 0.5}, "scores": {"kind": "selectors", "n_heads": 3}},
}
for _table in VARIANTS.values():
    if "accumulate" in _table:
        _table["accumulate"] = {"kind": "sum", **_table["accumulate"]}
