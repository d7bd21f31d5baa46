"""The command line in this process: what it printed and how it ended."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.cli.tiny import Ended

from winnow.cli import main


@pytest.fixture
def winnow(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Give a command: `winnow("show", run, "--store", store)`."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run
