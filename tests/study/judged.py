"""Made-up values and short ways to judge them, for tests of verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest

from winnow.study import boundaries
from winnow.study.boundaries import bounds
from winnow.study.claims import parse_claim
from winnow.study.noise import Prior
from winnow.study.observations import Better, Observations
from winnow.study.verdict import DecisionRule, Verdict, judge_claims

LOOKS = (3, 5, 8)
LEDGER = Prior(variance=1.0, degrees=12.0, arms=20)


@pytest.fixture(scope="module", autouse=True)
def small_tables(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Unusual designs by few draws, and nothing written to the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(boundaries, "DRAWS", 20_000)
        yield
    bounds.cache_clear()


def arms(seed: int = 0, n: int = 8, rho: float = 0.8, **means: float) -> dict[str, list[float]]:
    """Values by arm: `control` and three plain arms around 0, others around their mean; sd 1, correlation rho."""
    generator = np.random.default_rng(seed)
    names = {"control": 0.0, "x": 0.0, "y": 0.0, "z": 0.0, **means}
    common = generator.normal(size=n) * rho**0.5
    return {
        name: (mean + common + (1 - rho) ** 0.5 * generator.normal(size=n)).tolist() for name, mean in names.items()
    }


def observed(values: Mapping[str, list[float | None] | list[float]], better: Better = "lower") -> Observations:
    return Observations({arm: dict(enumerate(row)) for arm, row in values.items()}, "m", better, control="control")


def judge(text: str, values: Observations, rule: DecisionRule | None = None, **options: object) -> Verdict:
    return judge_claims([parse_claim("h", text)], values, rule, LOOKS, **options)[0]  # type: ignore[arg-type]
