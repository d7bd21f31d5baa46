"""The code version: one digest over the sources that a run's numbers depend on.

Python files count by their syntax tree without docstrings, so comments, layout and documentation change nothing;
other sources (C++, CUDA) count by their bytes. The tree is written out here rather than by `ast.dump`, whose text
differs between Python versions.

Not here: which changes matter. A component's `revision` says so; the digest only shows that something changed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NUMERIC_PARTS = ("config.py", "parameters.py", "attention", "kernels", "models", "tasks", "train")
"""Files and folders of the package that can change a number."""
_SUFFIXES = frozenset({".py", ".cpp", ".cc", ".cu", ".cuh", ".h", ".hpp"})
_SKIPPED_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


@functools.cache
def code_version(package: Path | None = None) -> str:
    """Digest (16 hexadecimal digits) of the sources under `package` (None = Winnow itself), read once per process."""
    root = Path(__file__).parent.parent if package is None else package
    total = hashlib.sha256()
    for path in _source_files(root):
        data = path.read_bytes()
        if path.suffix == ".py":
            data = tree_text(data).encode()
        name = path.relative_to(root).as_posix()
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()[:16]


def _source_files(root: Path) -> Iterator[Path]:
    for part in NUMERIC_PARTS:
        path = root / part
        if path.is_dir():
            yield from sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
        elif path.exists():
            yield path


def tree_text(source: bytes) -> str:
    """A text of the syntax tree that is the same for every Python version, layout and documentation."""
    parts: list[str] = []
    _write(ast.parse(source), parts)
    return "".join(parts)


@functools.cache
def _fields(kind: type[ast.AST]) -> tuple[str, ...]:
    return tuple(sorted(field for field in kind._fields if field not in _SKIPPED_FIELDS))


def _write(node: Any, parts: list[str]) -> None:
    if isinstance(node, ast.AST):
        kind = type(node)
        parts.append(f"({kind.__name__}")
        for field in _fields(kind):
            value = getattr(node, field, None)
            # Empty lists and None are left out: newer Pythons add fields that older trees lack.
            if value is None or value == []:
                # A constant None is a value like any other.
                if kind is ast.Constant:
                    parts.append(" None")
                continue
            parts.append(f" {field}=")
            _write(value, parts)
        parts.append(")")
    elif isinstance(node, list):
        parts.append("[")
        for item in node:  # pyright: ignore[reportUnknownVariableType]
            if not _is_bare_string(item):
                _write(item, parts)
                parts.append(",")
        parts.append("]")
    else:
        parts.append(repr(node))


def _is_bare_string(node: Any) -> bool:
    """A statement that is only a string: a docstring, wherever it stands."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
