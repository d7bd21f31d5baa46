"""Tasks: what models are trained and judged on. Importing this registers every kind."""

from __future__ import annotations

from winnow.tasks.base import Batch, Score, Task, TaskConfig, Validation
from winnow.tasks.bytepair import BPEConfig, FileConfig, ManifestConfig
from winnow.tasks.corpus import CorpusConfig
from winnow.tasks.programs import ProgramsConfig
from winnow.tasks.selective_copying import SelectiveCopyingConfig
from winnow.tasks.tokenizer import BytesConfig, IdsConfig, TokenizerConfig

__all__ = [
    "BPEConfig",
    "Batch",
    "BytesConfig",
    "CorpusConfig",
    "FileConfig",
    "IdsConfig",
    "ManifestConfig",
    "ProgramsConfig",
    "Score",
    "SelectiveCopyingConfig",
    "Task",
    "TaskConfig",
    "TokenizerConfig",
    "Validation",
]
