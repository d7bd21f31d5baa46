"""The options of selective attention; what they do: `winnow.attention.selective`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, final

from pydantic import NonNegativeInt, field_validator, model_validator

from winnow.attention.base import AttentionConfig, Shape
from winnow.attention.selection import (
    AccumulateConfig,
    GateConfig,
    PenaltyConfig,
    ProtectConfig,
    ProtectorConfig,
    SumConfig,
    ZeroProtector,
    follow_spread,
    spread_over,
)
from winnow.attention.selective_presets import expand
from winnow.attention.selectors import HeadScores, ScoresConfig
from winnow.errors import InputError
from winnow.kernels.rule import grouped

if TYPE_CHECKING:
    from winnow.attention.selective import SelectiveAttention


@final
class SelectiveConfig(AttentionConfig):
    """Attention that forgets what later tokens have voted out.

    A table may name `preset`, one or several option values of the program behind the first published notebooks
    (`winnow.attention.selective_presets`): it is expanded before validation and leaves no trace.
    """

    kind: Literal["selective"] = "selective"
    protect_bos: bool = True
    """Nobody can vote against the first token of a document. False: it is like any other."""
    allow_self_masking: bool = False
    """A token's vote against itself counts (from the next query on). False: off."""
    selection: bool = True
    """Subtract the mask. False: off, the layer is standard attention."""
    scores: ScoresConfig = HeadScores()
    """Where the masks' scores come from."""
    gate: GateConfig = GateConfig()
    """What a score becomes before it is summed."""
    accumulate: AccumulateConfig = SumConfig()
    """How votes add up over queries."""
    spread: Literal["grouped"] | tuple[NonNegativeInt, ...] = "grouped"
    """The mask of each head. grouped: equal groups of consecutive heads, left-over heads from mask 0 on."""
    residual_scores: bool = False
    """Scores also get those of the layer below, mixed over heads by a learned matrix. False: off."""
    penalty: PenaltyConfig | None = None
    """A loss on the memory that the layer holds on to. None: off."""

    legacy: ClassVar[Mapping[str, Any]] = {
        "scores": HeadScores(),
        "gate": GateConfig(),
        "accumulate": SumConfig(),
        "spread": "grouped",
        "residual_scores": False,
        "penalty": None,
    }

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, value: Any) -> Any:
        return expand(cast("dict[str, Any]", value)) if isinstance(value, dict) else value

    @field_validator("spread", mode="before")
    @classmethod
    def _names_masks(cls, value: Any) -> Any:
        if value == "grouped" or (isinstance(value, tuple | list) and all(map(_is_mask, cast("list[Any]", value)))):
            return value
        raise InputError(f"{value!r} is not permitted", mend='use "grouped", or for each head a mask, counted from 0')

    @model_validator(mode="after")
    def _agree(self) -> SelectiveConfig:
        if not self.selection:
            if self.penalty is not None:
                raise InputError("without selection nothing is forgotten", key="penalty", mend="drop it")
            if self.residual_scores:
                raise InputError(
                    "without selection the layer is standard attention", key="residual_scores", mend="drop it"
                )
        if isinstance(self.accumulate, ProtectConfig):
            if isinstance(self.accumulate.source, ZeroProtector) and self.accumulate.scale != 1:
                raise InputError("a protection of 0 has no scale", key="accumulate.scale", mend="drop it")
            if self.gate.leak:
                raise InputError(
                    "protection needs votes of 0 or more, and a leaky gate lets negative ones through",
                    key="gate.leak",
                    mend="set it to 0, or accumulate to the plain sum",
                )
            if self.gate.relu_after:
                raise InputError(
                    "damage under protection is never negative", key="gate.relu_after", mend="set it to false"
                )
        return self

    @property
    def casts_votes(self) -> bool:
        return self.selection

    @property
    def needs_all_keys(self) -> bool:
        return self.selection and self.residual_scores

    def fits(self, shape: Shape) -> None:
        """See `AttentionConfig.fits`."""
        if not self.selection:
            return
        parts: list[tuple[str, ScoresConfig | ProtectorConfig]] = [("scores", self.scores)]
        if isinstance(self.accumulate, ProtectConfig):
            parts.append(("accumulate.source", self.accumulate.source))
        for key, part in parts:
            try:
                part.fits(shape)
            except InputError as error:
                raise InputError(error.message, key=f"{key}.{error.key}", mend=error.mend) from error
        spread_over(self.spread, self.scores.masks(shape.n_heads), shape.n_heads)
        if self.residual_scores and shape.n_layers == 1:
            raise InputError("a lone layer has none below", key="residual_scores", mend="drop it")

    def follow(self, places: Sequence[int | None], n_heads: int) -> SelectiveConfig:
        """See `AttentionConfig.follow`. Heads named by their number are places, and keep their number."""
        if not self.selection:
            return self
        before, after = self.scores.masks(n_heads), self.scores.masks(len(places))
        spread = follow_spread(spread_over(self.spread, before, n_heads), places, before, after)
        return self.replace({"spread": "grouped" if spread == grouped(after, len(places)) else spread})

    def build(self, shape: Shape) -> SelectiveAttention:
        from winnow.attention.selective import SelectiveAttention

        self.fits(shape)
        return SelectiveAttention(self, shape)


def _is_mask(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
