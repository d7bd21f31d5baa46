"""Models. Importing a model's file registers its `kind`."""

from winnow.models.base import Model, ModelConfig, Output
from winnow.models.gpt import GPT, GPTConfig
from winnow.models.presets import PRESETS

__all__ = ["GPT", "PRESETS", "GPTConfig", "Model", "ModelConfig", "Output"]
