"""The corpus as a task that may be seen whole: its targets count as no later tokens. No part of the package."""

from typing import ClassVar, Literal

from winnow.tasks import CorpusConfig


class ShownConfig(CorpusConfig):
    """See the module's docstring."""

    kind: Literal["shown"] = "shown"  # pyright: ignore[reportIncompatibleVariableOverride]
    next_token: ClassVar[bool] = False
