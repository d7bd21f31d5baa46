"""Memory that was allocated and never written is NaN in every test of kernels: what reads it, shows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    def poison(plain: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: object, **kwargs: object) -> Tensor:
            x = plain(*args, **kwargs)
            return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(1 << 30)

        return allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
