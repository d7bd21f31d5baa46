"""What a trained model makes of one text: who masked which token, where every head looks, what comes next.

Recomputed in fp64 from an uncompiled copy of the model: of each attention layer the scores, the masks F with their
causes, and weights = softmax(scores - F). The heads' outputs made of these weights are compared with what the layer
really put out, so that no picture shows another function than the model's.

    F[i, j]      what query i feels of the votes of the queries before it, nats: key j's odds are divided by e^F
    votes        S[t, j]: what query t casts against key j; later queries feel it
    damage       under protection, what of S[t, j] got through: F[t + 1, j] - F[t, j]
    protection   p[t, j]: what query t adds to key j's shield
    shield       R[i, j]: what is left of it when query i looks, sum over t < i of p - (S - damage)
"""

from __future__ import annotations

import copy
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.analysis.trained import Trained
from winnow.attention import Attention, Inside, Mixed, MixerState
from winnow.config import Config
from winnow.errors import InputError
from winnow.kernels.reference import per_head
from winnow.tasks.base import Ids
from winnow.tasks.tokenizer import Tokenizer, document

TOP = 10
"""Next tokens that are shown of each position."""
AGREEMENT = 1e-9
"""Part of a layer's largest output by which the recomputed one may differ, in fp64."""
START = "⟨doc⟩"
"""How an end of document, which stands before every document, is shown."""

Matrix = npt.NDArray[np.float32]
"""(n, T, T) by query and key; 0 where the key comes after the query."""


@dataclass(frozen=True)
class Layer:
    """One attention layer; see the module's names."""

    index: int
    spread: tuple[int, ...]
    """The mask that each head reads; empty where there are no masks."""
    weights: Matrix
    """(H, T, T), rows sum to 1."""
    masks: Matrix | None = None
    votes: Matrix | None = None
    damage: Matrix | None = None
    protection: Matrix | None = None
    shield: Matrix | None = None

    @property
    def matrices(self) -> dict[str, Matrix]:
        """Those that there are, by name."""
        names = ("weights", "masks", "votes", "damage", "protection", "shield")
        return {name: found for name in names if (found := getattr(self, name)) is not None}


@dataclass(frozen=True)
class View:
    """A run and a text."""

    name: str
    """study/arm/seed."""
    digest: str
    about: str
    """The run in a line: its attention's settings, sizes, steps."""
    tokens: tuple[str, ...]
    """Each token as it is shown (see `shown`)."""
    layers: tuple[Layer, ...]
    following: tuple[tuple[tuple[str, float], ...], ...]
    """Of each position the `TOP` likeliest next tokens with their probabilities, falling."""
    truth: tuple[float, ...]
    """Probability of the token that really came next; of all positions but the last."""

    @property
    def selects(self) -> bool:
        """Whether any layer has masks."""
        return any(layer.masks is not None for layer in self.layers)


def tokens_of(trained: Trained, text: str) -> Ids:
    """(n,) ids of a text, an end of document before it. Raises InputError where it is empty or cannot be encoded."""
    if not text:
        raise InputError("the text is empty", mend="give some words")
    data = document(text)
    return _tokenizer(trained).encode([data])


def _tokenizer(trained: Trained) -> Tokenizer:
    found = trained.task.tokenizer
    if found is None:
        what = f"run {trained.record.digest} was not trained on text"
        raise InputError(what, mend="give a run of a `corpus` task")
    return found


def look(trained: Trained, ids: Ids, layers: Sequence[int] | None = None) -> View:
    """What the run makes of the tokens, read as one document. layers: only these, by index; None: all.

    Raises InputError where a mechanism does not say how it weighs, or weighs otherwise than it says.
    """
    model = copy.deepcopy(trained.model).double().eval()
    mixers = [module for module in model.modules() if isinstance(module, Attention)]
    wanted = range(len(mixers)) if layers is None else layers
    for layer in wanted:
        if not 0 <= layer < len(mixers):
            mend = f"permitted: 0 to {len(mixers) - 1}"
            raise InputError(f"run {trained.record.digest} has no layer {layer}", key="--layers", mend=mend)
    found: dict[int, Layer] = {}
    for index in wanted:
        mixers[index].register_forward_hook(_Look(index, found))
    tokens = torch.from_numpy(np.asarray(ids, dtype=np.int64))[None]
    with torch.no_grad():
        probabilities = model.logits(tokens)[0].softmax(-1)
    tokenizer = _tokenizer(trained)
    best = probabilities.topk(min(TOP, probabilities.shape[-1]))
    following = [
        tuple(zip([shown(tokenizer, token) for token in row], chances, strict=True))
        for row, chances in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    truth = probabilities[:-1].gather(1, tokens[0, 1:, None])[:, 0]
    record = trained.record
    return View(
        name=f"{record.label.study}/{record.label.arm}/{record.seed}",
        digest=record.digest,
        about=_about(trained),
        tokens=tuple(shown(tokenizer, int(token)) for token in ids),
        layers=tuple(found[index] for index in sorted(found)),
        following=tuple(following),
        truth=tuple(truth.tolist()),
    )


def _about(trained: Trained) -> str:
    """What attention it is, with the options that are not the usual ones, and how long it was trained."""
    steps = f"{trained.record.steps_done:,} steps"
    attention = getattr(trained.config.grown, "attention", None)
    return f"{_settings(attention)}, {steps}" if isinstance(attention, Config) else steps


def _settings(config: Config) -> str:
    parts = [str(getattr(config, "kind", ""))]
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if name != "kind" and value != field.default:
            parts.append(f"{name} {_settings(value) if isinstance(value, Config) else value}")
    return ", ".join(part for part in parts if part)


class _Look:
    """A forward hook that opens one attention layer."""

    def __init__(self, index: int, found: dict[int, Layer]) -> None:
        self.index, self.found = index, found

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Mixed) -> None:
        mixer, (x, state) = cast(Attention, module), cast("tuple[Tensor, MixerState]", inputs)
        q, k, v = mixer.project(x, state)
        inside = mixer.inside(q, k, state)
        if inside is None:
            raise InputError(f"{type(mixer).__name__} does not say how it weighs keys: it has no `inside`")
        weights = weights_of(inside)
        heads = (weights @ per_head(v, weights.shape[1]).transpose(1, 2)).transpose(1, 2)
        difference = (mixer.out(heads.flatten(2)) - output.y).abs().max()
        if not difference <= AGREEMENT * output.y.abs().max().clamp(min=1e-300):
            raise InputError(f"layer {self.index}: {type(mixer).__name__} weighs otherwise than its `inside` says")
        self.found[self.index] = layer_of(self.index, inside, weights)


def weights_of(inside: Inside) -> Float[Tensor, "B H T T"]:
    """Attention weights; 0 in the future."""
    scores = inside.scores
    if inside.masks is not None:
        scores = scores - inside.masks[:, list(inside.spread)]
    future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    return scores.masked_fill(future, float("-inf")).softmax(-1)


def layer_of(index: int, inside: Inside, weights: Float[Tensor, "1 H T T"]) -> Layer:
    """The layer's matrices, with what follows from them under protection."""
    F, S, p = (None if t is None else t[0].tril() for t in (inside.masks, inside.votes, inside.protection))
    damage = shield = None
    if F is not None and S is not None and p is not None:
        # What the last query does nobody feels any more: its row stays 0.
        damage = torch.cat((F[:, 1:] - F[:, :-1], torch.zeros_like(F[:, :1])), 1).tril()
        left = (p - (S - damage)).cumsum(1)
        shield = torch.cat((torch.zeros_like(F[:, :1]), left[:, :-1]), 1).clamp(min=0).tril()
    matrices = [None if t is None else t.float().numpy() for t in (weights[0], F, S, damage, p, shield)]
    first, *others = matrices
    assert first is not None
    return Layer(index, inside.spread, first, *others)


def shown(tokenizer: Tokenizer, token: int) -> str:
    """A token as text that anybody can see and nothing can act on.

    A line end is ⏎ and a line feed. Control and format characters, and those that Unicode has not assigned, are
    pictures or escapes; so are bytes that are only a part of a character.
    """
    piece = tokenizer.decode(np.array([token]))
    if piece is None:
        return f"⟨{token}⟩"
    if piece == b"\0":
        return START
    return "".join(map(_visible, piece.decode(errors="backslashreplace"))) or "⟨nothing⟩"


def _visible(character: str) -> str:
    code = ord(character)
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "⇥"
    if code < 32:
        return chr(0x2400 + code)
    if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
        return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"
    return character
