"""Models. Importing a model's file registers its `kind`."""

from winnow.models.base import Model, ModelConfig, Output
from winnow.models.conv import Conv, ConvConfig
from winnow.models.gpt import GPT, GPTConfig
from winnow.models.lstm import LSTM, LSTMConfig
from winnow.models.presets import PRESETS

__all__ = [
    "GPT",
    "LSTM",
    "PRESETS",
    "Conv",
    "ConvConfig",
    "GPTConfig",
    "LSTMConfig",
    "Model",
    "ModelConfig",
    "Output",
]
