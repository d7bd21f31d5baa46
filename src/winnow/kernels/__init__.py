"""Operations written for speed, each tested against an fp64 oracle."""

from winnow.kernels.rule import Rule
from winnow.kernels.selective import Usage, selection_usage, selective_attention

__all__ = ["Rule", "Usage", "selection_usage", "selective_attention"]
