"""The one kind of error that is the user's to mend: a place, a message, a mend."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path


class InputError(ValueError):
    """Something given to Winnow is wrong: a study, a file, an option, a store.

    The command line prints it as one line, `file:line: key: message; mend`, and exits with 2. Nothing that was
    recorded is lost by it.
    """

    def __init__(
        self,
        message: str,
        *,
        file: str | Path | None = None,
        line: int | None = None,
        key: str | None = None,
        mend: str | None = None,
    ) -> None:
        self.message = message
        self.file = None if file is None else str(file)
        self.line = line
        self.key = key
        self.mend = mend
        super().__init__(str(self))

    def __str__(self) -> str:
        place = self.file or ""
        if self.line is not None:
            place = f"{place}:{self.line}" if place else f"line {self.line}"
        parts = [part for part in (place, self.key, self.message) if part]
        text = ": ".join(parts)
        return f"{text}; {self.mend}" if self.mend else text

    def at(self, *, file: str | Path | None = None, line: int | None = None, key: str | None = None) -> InputError:
        """The same error with the parts of its place that were not yet known."""
        return type(self)(
            self.message,
            file=self.file or file,
            line=self.line if self.line is not None else line,
            key=self.key or key,
            mend=self.mend,
        )

    def prefixed(self, key: str) -> InputError:
        """The same error with its key inside `key`."""
        inner = f"{key}.{self.key}" if self.key else key
        return type(self)(self.message, file=self.file, line=self.line, key=inner, mend=self.mend)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A mend for a misspelt name: the nearest valid one and all that are permitted."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}permitted: {', '.join(names) or 'none'}"
