"""Tasks: what models are trained and judged on. Importing this registers every kind."""

from __future__ import annotations

from winnow.tasks.base import Batch, Task, TaskConfig, Validation
from winnow.tasks.corpus import CorpusConfig
from winnow.tasks.tokenizer import TokenizerConfig

__all__ = ["Batch", "CorpusConfig", "Task", "TaskConfig", "TokenizerConfig", "Validation"]
