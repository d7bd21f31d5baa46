"""How large imported runs are: as they were published, or small enough for a laptop.

What is said in heads, masks and slices stays as it is at any size; layers, width, context, tokens and steps shrink.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

SMALLEST_CONTEXT = 8
"""Tokens; a shorter context has no pairs to select from."""


@dataclass(frozen=True)
class Scale:
    """Factors from a published run to the one that is imported."""

    name: str
    about: str
    n_layers: int | None = None
    """The most layers. None: as many as there are."""
    width: Fraction = Fraction(1)
    """Of d_model and d_head."""
    context: Fraction = Fraction(1)
    tokens: Fraction = Fraction(1)
    """Of tokens per update."""
    evaluation: Fraction = Fraction(1)
    """Of the tokens of an evaluation."""
    steps: Fraction = Fraction(1)
    """Of updates, of warm-up, and of the steps at which checkpoints are taken."""
    lr: float = 1.0
    plain: bool = False
    """Full precision, no graph compiler, one pass per update."""

    def applied(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The settings at this size, and products like "$value * $n_layers" worked out."""
        found = deepcopy(dict(settings))
        model, task, train = (cast("dict[str, Any]", found.setdefault(key, {})) for key in ("model", "task", "train"))
        evaluation = cast("dict[str, Any]", found.setdefault("evaluation", {}))
        if self.n_layers is not None and "n_layers" in model:
            model["n_layers"] = min(model["n_layers"], self.n_layers)
        model.update(_times({k: v for k, v in model.items() if k in ("d_head",)}, self.width))
        task.update(_times({k: v for k, v in task.items() if k == "context"}, self.context, SMALLEST_CONTEXT))
        train.update(_times({k: v for k, v in train.items() if k in ("steps", "warmup")}, self.steps))
        train.update(_times({k: v for k, v in train.items() if k == "tokens_per_update"}, self.tokens))
        evaluation.update(_times({k: v for k, v in evaluation.items() if k == "tokens"}, self.evaluation))
        evaluation.update(_times({k: v for k, v in evaluation.items() if k == "every"}, self.steps))
        if self.plain:
            for key, plain in (("precision", "fp32"), ("compile", False)):
                if key in train:
                    train[key] = plain
            train.pop("micro_batch", None)
            context = int(task.get("context", 1))
            if "tokens_per_update" in train:  # a whole number of sequences
                train["tokens_per_update"] = max(1, round(train["tokens_per_update"] / context)) * context
        if "lr" in train:
            train["lr"] = _rounded(train["lr"] * self.lr)
        found = cast("dict[str, Any]", _worked_out(found, model))
        d_model = found["model"].get("d_model")
        if d_model is not None:
            found["model"].update(_times({"d_model": d_model}, self.width))
        return found

    def step(self, step: int) -> int:
        """A step of a published run as one of the imported run."""
        return max(1, round(step * self.steps))


AS_PUBLISHED = Scale("as-published", "the size, the tokens and the steps of the source")
MINI = Scale(
    "mini",
    "4 layers, a quarter of the width and of the context, 400 steps of 4,096 tokens where the source has 2,500 of "
    "524,288, five times the learning rate; full precision, no graph compiler, one pass an update, so that arms which "
    "differ in these alone are one",
    n_layers=4,
    width=Fraction(1, 4),
    context=Fraction(1, 4),
    tokens=Fraction(1, 128),
    evaluation=Fraction(1, 8),
    steps=Fraction(4, 25),
    lr=5.0,
    plain=True,
)
SCALES = {scale.name: scale for scale in (AS_PUBLISHED, MINI)}


def _times(values: Mapping[str, Any], factor: Fraction, least: int = 1) -> dict[str, Any]:
    """Whole numbers times a factor, never less than `least` (0 stays 0)."""
    return {key: value and max(least, round(value * factor)) for key, value in values.items()}


def _worked_out(value: Any, model: Mapping[str, Any]) -> Any:
    if isinstance(value, Mapping):
        return {key: _worked_out(item, model) for key, item in cast(Mapping[str, Any], value).items()}
    if not isinstance(value, str) or "$" not in value:
        return value
    product: int | float = 1
    for part in value.split("*"):
        name = part.strip()
        number = model[name[1:]] if name.startswith("$") else float(name) if "." in name or "e" in name else int(name)
        product *= number
    return _rounded(product)


def _rounded(number: float) -> float:
    """Without the dust of binary fractions: 0.1 * 12 is 1.2."""
    return number if isinstance(number, int) else float(f"{number:.12g}")
