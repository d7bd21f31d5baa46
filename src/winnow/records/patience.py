"""What a remote may answer, and how often it is asked again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from winnow.errors import InputError

T = TypeVar("T")


class RemoteError(InputError):
    """The remote did not do what was asked; the same may succeed a moment later."""


class RefusedError(RemoteError):
    """The remote will not do it, however often it is asked."""


class AbsentError(RemoteError):
    """There is no such file at the remote."""


def sleep(seconds: float) -> bool:
    """Wait; True would mean that the waiting was called off."""
    time.sleep(seconds)
    return False


@dataclass(frozen=True)
class Patience:
    """How often an action on a remote is tried, and how long to wait in between."""

    attempts: int = 6
    first: float = 0.5
    """Seconds before the second attempt, at most; doubled with each further one."""
    most: float = 30.0
    """Seconds between two attempts, at most."""
    wait: Callable[[float], bool] = sleep
    """Waits so many seconds; True when there is no point in going on."""

    def delay(self, attempt: int) -> float:
        """Seconds after failed attempt number `attempt` (from 1): drawn evenly from 0 to a bound that doubles, so that
        many who were turned away at once do not come back at once."""
        return random.uniform(0.0, min(self.most, self.first * 2.0 ** (attempt - 1)))

    def keep_trying(self, action: Callable[[], T]) -> T:
        """The outcome of `action`, tried again while the remote only fails to answer. Raises the last RemoteError."""
        for attempt in range(1, self.attempts + 1):
            try:
                return action()
            except (RefusedError, AbsentError):
                raise
            except RemoteError:
                if attempt == self.attempts or self.wait(self.delay(attempt)):
                    raise
        raise AssertionError("unreachable")
