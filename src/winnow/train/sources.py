"""Mechanisms from files outside the package (`use` in a study): only the bytes that were named are run.

Importing such a file registers its `kind`, as importing one of Winnow's own does. Its SHA-256 is part of the identity
of every run that uses it. Running it is the user's decision (`--trust`), which the caller has.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from winnow.errors import InputError
from winnow.records.files import storage_error

_loaded: dict[str, str] = {}


def load_sources(paths: Sequence[Path], digests: Mapping[str, str] | None = None) -> None:
    """Run each file, once per process and content.

    digests: SHA-256 of each file by its name, as the study was resolved; None = whatever the files hold now.
    Raises InputError where a file cannot be read or is not the one that was named.
    """
    if digests is not None and (missing := sorted(set(digests) - {path.name for path in paths})):
        raise InputError(f"{missing[0]!r} is named but not given", key="use", mend="give every `use` file")
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise storage_error(error, path, "cannot be read") from error
        found = hashlib.sha256(data).hexdigest()
        if digests is not None and digests.get(path.name) != found:
            raise InputError(
                f"has SHA-256 {found[:12]}, the study was resolved with {digests.get(path.name, 'none')[:12]}",
                file=path,
                mend="give the command again: the file has changed since",
            )
        if _loaded.get(path.name) != found:
            _run(path, data)
            _loaded[path.name] = found


def _run(path: Path, data: bytes) -> None:
    # The bytes that were checked are the bytes that run: the file is not read a second time.
    module = ModuleType(f"winnow_use_{path.stem.replace('-', '_').replace('.', '_')}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(data, str(path), "exec"), module.__dict__)
