"""Winnow: attention research on small language models, with verdicts that can be trusted."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from winnow.errors import InputError
    from winnow.notebook.load import load_study
    from winnow.records.external import record
    from winnow.records.store import RunStore

__version__ = "0.1.0"
__all__ = ["InputError", "RunStore", "__version__", "load_study", "record"]

# Imported when first used: `import winnow` itself costs nothing, and a command pays only for what it needs.
_HOMES = {
    "InputError": "winnow.errors",
    "RunStore": "winnow.records.store",
    "load_study": "winnow.notebook.load",
    "record": "winnow.records.external",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'winnow' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
