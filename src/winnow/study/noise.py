"""The noise ledger: how much runs of one kind differ from seed to seed, learned from all studies so far.

The sample variances of many arms give a prior for the variance of the next one: s0² with the weight of d0 runs'
degrees of freedom (limma's fitFDist, Smyth 2004, section 6.2). Noise is only shared between runs that have the same
metric, validation set, model size, token budget, hardware class and determinism: the ledger's key.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from winnow.config import Config
from winnow.study.distributions import digamma, trigamma

HEAVIEST_PRIOR = 12.0
"""d0 is cut here: arms differ in noise by more than a fit to a few of them shows."""
FEWEST_ARMS = 6
FEWEST_SEEDS = 3


class NoiseKey(Config):
    """Runs that share this share their noise."""

    metric: str
    validation: str
    """Digest of the validation set."""
    parameters: int
    """Model size: trainable parameters, rounded by `near` so that arms of one size share a key."""
    tokens: int
    """Token budget of a run, rounded likewise."""
    hardware: str
    """Hardware class."""
    deterministic: bool
    """Whether a run repeated with its seed gives the same bits."""

    @staticmethod
    def near(count: int) -> int:
        """A size to the nearest half octave: 100,000 and 104,000 parameters are one size."""
        return 0 if count <= 0 else round(2 ** (round(2 * math.log2(count)) / 2))


class ArmNoise(Config):
    """Sample variance of one arm."""

    key: NoiseKey
    arm: str
    """Identity of the arm: digest of its configuration without the seed."""
    seeds: int
    mean: float
    variance: float
    """Unbiased, squared metric units."""


class Prior(Config):
    """What the ledger says of an arm's variance before its own runs."""

    variance: float
    """s0², squared metric units."""
    degrees: float
    """d0: the weight, in degrees of freedom; 0 = no prior."""
    arms: int
    """How many arms it rests on."""

    @property
    def weight(self) -> int:
        """d0 as used: whole degrees, rounded down, since multipliers are tabulated for those."""
        return math.floor(self.degrees)

    @property
    def sd(self) -> float:
        """s0, metric units."""
        return math.sqrt(self.variance)


class NoiseLedger(Config):
    """All arms whose noise is known. Derived from the run records, never the other way round."""

    arms: tuple[ArmNoise, ...] = ()

    def prior(self, key: NoiseKey, exclude: Collection[str] = ()) -> Prior | None:
        """The prior for runs of this key from arms other than `exclude` (those being judged); None: too little known.

        At least 6 arms with 3 seeds are needed. Arms with no variance at all, and arms that repeat another's numbers
        under a second name, say nothing about noise and are left out.
        """
        seen: dict[tuple[int, float, float], ArmNoise] = {}
        for arm in self.arms:
            if arm.key == key and arm.arm not in exclude and arm.seeds >= FEWEST_SEEDS and arm.variance > 0:
                seen.setdefault((arm.seeds, arm.mean, arm.variance), arm)
        if len(seen) < FEWEST_ARMS:
            return None
        variance, degrees = fit_prior([(arm.variance, arm.seeds - 1) for arm in seen.values()])
        return Prior(variance=variance, degrees=min(degrees, HEAVIEST_PRIOR), arms=len(seen))


def arm_noise(key: NoiseKey, arm: str, values: Mapping[int | str, float | None]) -> ArmNoise | None:
    """An arm's line in the ledger; None with fewer than 2 runs that did not diverge."""
    found = [value for value in values.values() if value is not None and math.isfinite(value)]
    if len(found) < 2:
        return None
    mean, variance = moments(found)
    return ArmNoise(key=key, arm=arm, seeds=len(found), mean=mean, variance=variance)


def moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and unbiased variance (divisor n - 1); needs two values."""
    if values.count(values[0]) == len(values):
        return values[0], 0.0  # exactly: a rounding of the mean is not noise
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def fit_prior(arms: Iterable[tuple[float, int]]) -> tuple[float, float]:
    """(s0², d0) from (sample variance, degrees of freedom) per arm; d0 is infinite if the arms agree.

    e_a = ln s_a² - psi(nu_a/2) + ln(nu_a/2);  psi'(d0/2) = var(e) - mean psi'(nu_a/2);
    ln s0² = mean(e) + psi(d0/2) - ln(d0/2).
    """
    known = [(variance, degrees) for variance, degrees in arms if variance > 0 and degrees > 0]
    assert len(known) >= 2
    logs = [math.log(variance) - digamma(nu / 2) + math.log(nu / 2) for variance, nu in known]
    mean, spread = moments(logs)
    excess = spread - math.fsum(trigamma(nu / 2) for _, nu in known) / len(known)
    if excess <= 0:
        return math.exp(mean), math.inf
    half = inverse_trigamma(excess)
    return math.exp(mean + digamma(half) - math.log(half)), 2 * half


def inverse_trigamma(value: float) -> float:
    """The x with psi'(x) = value: psi' falls from infinity to 0, so its logarithm is searched."""
    from scipy.optimize import root_scalar

    found = root_scalar(lambda log: trigamma(math.exp(log)) - value, bracket=(-60.0, 60.0), xtol=1e-12)
    return math.exp(found.root)
