"""Attention mechanisms. Importing a mechanism's file registers its `kind`."""

from winnow.attention.base import Attention, AttentionConfig, Definition, Inside, Mixed, MixerState, Shape, mixer_state
from winnow.attention.cache import KVCache, LayerCache
from winnow.attention.convolutional import ConvolutionalConfig
from winnow.attention.prune import PolicyConfig
from winnow.attention.selective_config import SelectiveConfig
from winnow.attention.softmax import SoftmaxConfig

__all__ = [
    "Attention",
    "AttentionConfig",
    "ConvolutionalConfig",
    "Definition",
    "Inside",
    "KVCache",
    "LayerCache",
    "Mixed",
    "MixerState",
    "PolicyConfig",
    "SelectiveConfig",
    "Shape",
    "SoftmaxConfig",
    "mixer_state",
]
