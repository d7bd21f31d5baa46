"""Errors as the user reads them: one line with the place and the mend; a traceback only where Winnow is at fault."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from winnow.cli import output
from winnow.errors import InputError

INPUT_WRONG = 2
OUR_FAULT = 70
STOPPED = 130

_INTACT = "what was recorded before stays as it was"
_MENDS = {
    errno.ENOSPC: f"free some disk space and give the same command again; {_INTACT}",
    errno.EDQUOT: f"free some of your quota and give the same command again; {_INTACT}",
    errno.EACCES: f"check who owns the file and its permissions; {_INTACT}",
    errno.EPERM: f"check who owns the file and its permissions; {_INTACT}",
    errno.EROFS: f"the file system is read-only: copy the study elsewhere; {_INTACT}",
    errno.EIO: f"the disk reports an error: copy your data off it first; {_INTACT}",
}


def explain(error: BaseException, arguments: Sequence[str], *, debug: bool) -> int:
    """Say on stderr what went wrong; returns the exit code. `arguments`: the command as given, without --debug."""
    if debug and not isinstance(error, SystemExit):
        with output.unheard(sys.stderr):
            traceback.print_exception(error)
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        output.note("stopped")
        return STOPPED
    if isinstance(error, BrokenPipeError):  # of something that prints by itself, as --help does
        output.silence(sys.stdout)
        return 0
    if isinstance(error, InputError):
        output.note(f"error: {_one_line(str(error))}")
        return INPUT_WRONG
    if isinstance(error, typer.TyperException):
        message = _one_line(error.format_message())
        if message:  # without one, the help has been shown
            output.note(f"error: {message.rstrip('.')}; see winnow{_command(arguments, message)} --help")
        return INPUT_WRONG
    if isinstance(error, OSError) and error.errno in _MENDS:
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        output.note(f"error: {where}{os.strerror(error.errno).lower()}; {_MENDS[error.errno]}")
        return INPUT_WRONG
    if not debug:
        with output.unheard(sys.stderr):
            traceback.print_exception(error)
    output.note("error: this is a fault in Winnow, not in your input; please report the lines above")
    return OUR_FAULT


def _command(arguments: Sequence[str], message: str) -> str:
    """The command whose help is of use, with a space before it."""
    command = next((word for word in arguments if not word.startswith("-")), "")
    return f" {command}" if command and "No such command" not in message else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())
