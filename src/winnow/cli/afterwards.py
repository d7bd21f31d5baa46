"""`winnow run --then CMD`: a command that is run when there is nothing left to lose, to shut the machine down, say."""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys

from winnow.cli import output
from winnow.errors import InputError


def command_of(text: str | None) -> list[str] | None:
    """The words of a command, without a shell. Raises InputError for one that could not be run at the end."""
    if text is None:
        return None
    mend = "give a program and its arguments, quoted as one: --then 'sudo shutdown now'"
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"is no command ({error})", key="--then", mend=mend) from None
    if not words:
        raise InputError("is empty", key="--then", mend=mend)
    if shutil.which(words[0]) is None:
        raise InputError("there is no such program: " + words[0], key="--then", mend=mend)
    return words


def run_command(words: list[str], *, quiet: bool) -> int:
    """Run it and return its exit code, 128 and the signal's number where one has ended it; one that is not 0 is said.

    quiet: what it prints goes to stderr, since stdout is for JSON alone.
    """
    try:
        code = subprocess.run(words, check=False, stdout=sys.stderr if quiet else None).returncode
    except OSError as error:
        raise InputError(f"{words[0]} cannot be run: {error.strerror}", key="--then") from None
    if code:
        how = f"ended with {code}" if code > 0 else f"was killed by {_signal(-code)}"
        output.note(f"--then: {words[0]!r} {how}")
    return code if code >= 0 else 128 - code


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
