"""From observations to evidence, look by look: which seeds count, which runs lend their noise, what blocks a look.

Look k of a claim reads the first n_k common seeds of its arms in declared order (unpaired: the first n_k of each),
whatever else has been run. Diverged runs are outcomes, not gaps: while the arms of a pair differ in how many of their
runs diverged, their means are not compared.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from winnow.study.claims import Claim
from winnow.study.distributions import fisher_exact
from winnow.study.evidence import Evidence
from winnow.study.intervals import Contrast, Schedule, exact_contrast, paired_contrast, unpaired_contrast
from winnow.study.noise import Prior, moments
from winnow.study.observations import Observations, Seed
from winnow.study.ordering import kendall_draws

Pair = tuple[str, str]


@dataclass(frozen=True)
class Stage:
    """One point at which a claim is read. seeds: per arm; None: all there are (one look at everything)."""

    index: int
    seeds: int | None
    declared: tuple[int, ...]
    last: int
    open_ended: bool = False


@dataclass(frozen=True)
class Divergences:
    """How many runs of a pair's arms diverged among those that a stage reads."""

    a: int
    of_a: int
    b: int
    of_b: int

    @property
    def differ(self) -> bool:
        return self.a != self.b

    @property
    def p(self) -> float:
        """Two-sided p of Fisher's exact test."""
        return fisher_exact(self.a, self.of_a, self.b, self.of_b)


class Sequencer:
    """Reads one metric's observations for many claims; noise that several claims borrow is computed once.

    looks: declared seeds per look; None: one look at everything; empty: open-ended. pairs: the study's pairs, which
    lend their noise to each other. excluded: arms whose runs are invalid and lend nothing. twins: pairs of arms that
    are the same by construction.
    """

    def __init__(
        self,
        observations: Observations,
        looks: tuple[int, ...] | None,
        *,
        paired: bool,
        prior: Prior | None = None,
        pairs: Iterable[Pair] = (),
        excluded: Collection[str] = (),
        twins: Collection[Pair] = (),
    ) -> None:
        self.twins = frozenset(twins)
        self.observations = observations
        self.looks = looks
        self.paired = paired
        self.prior = prior
        self.excluded = frozenset(excluded)
        kept = (pair for pair in pairs if not self.excluded.intersection(pair) and pair[0] != pair[1])
        self.pairs = tuple(dict.fromkeys((min(pair), max(pair)) for pair in kept))
        self._windows: dict[tuple[tuple[str, ...], int | None], dict[str, dict[Seed, float | None]]] = {}
        self._due: dict[int, dict[str, int]] = {}
        self._noise: dict[tuple[Pair, int | None], tuple[tuple[float, ...], float] | None] = {}

    def seeds(self, claim: Claim) -> int:
        """How many seeds every arm of the claim has (common ones when paired)."""
        if self.paired:
            return len(self.observations.common(claim.all_arms))
        return min(len(self.observations.of(arm)) for arm in claim.all_arms)

    def stages(self, claim: Claim) -> list[Stage]:
        """The stages that the claim's runs have reached."""
        have = self.seeds(claim)
        if self.looks is None:
            return [Stage(0, None, (have,), have)] if have else []
        looks = self.looks
        found = [Stage(k, n, looks[: k + 1], looks[-1]) for k, n in enumerate(looks) if n <= have]
        # Seeds beyond the last declared look, or a study that declared none: the e-process, after every seed.
        first = looks[-1] + 1 if looks else 2
        for n in range(first, have + 1):
            found.append(Stage(len(looks) + n - first, n, (n,), n, open_ended=True))
        return found

    def reach(self, stage: int, arms: Collection[str]) -> None:
        """Note, in order of the stages, which arms get more seeds at a stage: those of claims that are still open.

        Other arms then lend the noise of the seeds that they had before, however many were run for other reasons, so
        that a verdict is a function of the data in their declared order and not of when somebody looked.
        """
        if self.looks is None:
            return
        beyond = self.looks[-1] + 1 if self.looks else 2
        count = self.looks[stage] if stage < len(self.looks) else beyond + stage - len(self.looks)
        before = max((known for known in self._due if known < count), default=None)
        self._due[count] = {
            arm: count if before is None or arm in arms else self._due[before][arm]
            for arm in self.observations.outcomes
        }

    def _lent(self, arms: Iterable[str], count: int | None) -> int | None:
        """How many seeds these arms lend at a stage of `count` seeds."""
        due = None if count is None else self._due.get(count)
        return count if due is None else min(due[arm] for arm in arms)

    def evidence(self, claim: Claim) -> Mapping[int, Evidence]:
        """What the claim's numbers say at every stage that was reached, worked out when it is read."""
        return _Stages(self, claim)

    def at(self, claim: Claim, stage: Stage) -> Evidence:
        """What the claim's numbers say at one stage."""
        if claim.kind == "proxy":
            return self._proxy(claim, stage)
        blocked = None
        for a, b in claim.pairs:
            count = self.divergences(claim, (a, b), stage.seeds)
            if count.differ and blocked is None:
                blocked = (
                    f"{count.a} of {count.of_a} runs of {a} diverged and {count.b} of {count.of_b} of {b} "
                    f"(Fisher exact p = {count.p:.2g}): means are not compared while divergences differ"
                )
        return Evidence(claim, tuple(self.contrast(claim, pair, stage) for pair in claim.pairs), blocked)

    def contrast(self, claim: Claim, pair: Pair, stage: Stage) -> Contrast:
        """The difference of one of the claim's pairs at one stage."""
        counts = [stage.seeds] if stage.open_ended or stage.seeds is None else list(stage.declared)
        used = [self.values(claim, pair, count) for count in counts]
        a, b = used[-1]
        if pair in self.twins and len(a) >= 2 and a == b:
            return exact_contrast(len(a))
        schedule = Schedule(tuple((len(x), len(y)) for x, y in used), stage.declared, stage.last, stage.open_ended)
        if self.paired:
            differences = [x - y for x, y in zip(a, b, strict=True)]
            others = [
                self._other_pairs(pair, [x - y for x, y in zip(*each, strict=True)], count)
                for each, count in zip(used, counts, strict=True)
            ]
            return paired_contrast(differences, others, schedule)
        ledger = self.prior is not None and self.prior.weight > 0
        others = [] if ledger else [self._other_arms(pair, count) for count in counts]
        return unpaired_contrast(a, b, self.prior, others, schedule)

    def values(self, claim: Claim, pair: Pair, count: int | None) -> tuple[list[float], list[float]]:
        """Values of A and of B that count: no divergences, and when paired no partner of one. Lower is better."""
        window = self.window(claim, count)
        a, b = window[pair[0]], window[pair[1]]
        if self.paired:
            both = [(x, b[seed]) for seed, x in a.items()]
            kept = [(x, y) for x, y in both if x is not None and y is not None]
            return [x for x, _ in kept], [y for _, y in kept]
        return [x for x in a.values() if x is not None], [y for y in b.values() if y is not None]

    def window(self, claim: Claim, count: int | None) -> dict[str, dict[Seed, float | None]]:
        """Outcomes that a stage reads, by arm and seed."""
        key = (claim.all_arms, count)
        if key not in self._windows:
            if self.paired:
                seeds = self.observations.common(claim.all_arms)[:count]
                outcomes = self.observations.outcomes
                self._windows[key] = {arm: {seed: outcomes[arm][seed] for seed in seeds} for arm in claim.all_arms}
            else:
                self._windows[key] = {arm: self.observations.of(arm, count) for arm in claim.all_arms}
        return self._windows[key]

    def divergences(self, claim: Claim, pair: Pair, count: int | None) -> Divergences:
        """Diverged runs of a pair among those that a stage reads."""
        window = self.window(claim, count)
        a, b = window[pair[0]].values(), window[pair[1]].values()
        return Divergences(sum(x is None for x in a), len(a), sum(y is None for y in b), len(b))

    def identical(self, claim: Claim) -> Pair | None:
        """A pair of the claim whose runs ended bit-identical on two or more common seeds, on all of them, although they
        are no twins."""
        outcomes = self.observations.outcomes
        for a, b in claim.pairs:
            if (a, b) in self.twins:
                continue
            seeds = self.observations.common((a, b))
            if len(seeds) >= 2 and all(
                outcomes[a][seed] is not None and outcomes[a][seed] == outcomes[b][seed] for seed in seeds
            ):
                return a, b
        return None

    def _proxy(self, claim: Claim, stage: Stage) -> Evidence:
        if stage.open_ended:
            return Evidence(claim, (), "a proxy claim is read at declared looks only")
        window = self.window(claim, stage.seeds)
        lost = [sum(value is None for value in window[arm].values()) for arm in claim.all_arms]
        if len(set(lost)) > 1:
            return Evidence(claim, (), "arms differ in how many of their runs diverged")
        kept = self._undiverged(window)
        taus = kendall_draws([kept[arm] for arm in claim.arms], [kept[arm] for arm in claim.targets], self.paired)
        before, now = (0, *stage.declared)[-2:]
        return Evidence(claim, (), None, taus, (now**2 - before**2) / stage.last**2)

    def kept(self, claim: Claim, stage: Stage) -> dict[str, list[float]]:
        """Values that count at a stage, by arm; when paired, seeds at which any arm diverged are left out."""
        return self._undiverged(self.window(claim, stage.seeds))

    def _undiverged(self, window: dict[str, dict[Seed, float | None]]) -> dict[str, list[float]]:
        lost = {seed for arm in window.values() for seed, value in arm.items() if value is None} if self.paired else ()
        return {
            arm: [value for seed, value in values.items() if value is not None and seed not in lost]
            for arm, values in window.items()
        }

    def _other_pairs(self, pair: Pair, differences: list[float], count: int | None) -> list[tuple[float, int]]:
        """(variance, degrees of freedom) of the study's other pairs at the seeds that they have by then (`reach`).

        An arm that is bit-identical to another would lend a pair's own noise to itself: copies count once.
        """
        seen = _Seen([_unsigned(differences)])
        found: list[tuple[float, int]] = []
        for other in self.pairs:
            noise = self._pair_noise(other, self._lent(other, count)) if set(other) != set(pair) else None
            if noise is not None and seen.add(noise[0]):
                found.append((noise[1], len(noise[0]) - 1))
        return found

    def _pair_noise(self, pair: Pair, count: int | None) -> tuple[tuple[float, ...], float] | None:
        key = (pair, count)
        if key not in self._noise:
            outcomes = self.observations.outcomes
            both = ((outcomes[pair[0]][s], outcomes[pair[1]][s]) for s in self.observations.common(pair)[:count])
            differences = [x - y for x, y in both if x is not None and y is not None]
            variance = moments(differences)[1] if len(differences) > 1 else 0.0
            self._noise[key] = (_unsigned(differences), variance) if variance > 0 else None
        return self._noise[key]

    def _other_arms(self, pair: Pair, count: int | None) -> tuple[tuple[float, int], ...]:
        """(variance, degrees of freedom) of the study's other arms; bit-identical ones count once."""
        seen = _Seen(self._arm_values(arm, count) for arm in pair)
        values = {
            arm: self._arm_values(arm, self._lent([arm], count))
            for arm in self.observations.outcomes
            if arm not in self.excluded
        }
        found: list[tuple[float, int]] = []
        for arm, kept in values.items():
            if arm in pair or len(kept) < 2 or not seen.add(kept):
                continue
            variance = moments(kept)[1]
            if variance > 0:
                found.append((variance, len(kept) - 1))
        return tuple(found)

    def _arm_values(self, arm: str, count: int | None) -> tuple[float, ...]:
        return tuple(value for value in self.observations.of(arm, count).values() if value is not None)


class _Stages(Mapping[int, Evidence]):
    """Most claims are decided early: later stages are never computed."""

    def __init__(self, sequencer: Sequencer, claim: Claim) -> None:
        self.sequencer, self.claim = sequencer, claim
        self.reached = {stage.index: stage for stage in sequencer.stages(claim)}
        self.known: dict[int, Evidence] = {}

    def __getitem__(self, index: int) -> Evidence:
        if index not in self.known:
            self.known[index] = self.sequencer.at(self.claim, self.reached[index])
        return self.known[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self.reached)

    def __len__(self) -> int:
        return len(self.reached)


class _Seen:
    """Values of several runs each, by the first of them: those of hundreds of arms are looked up, not gone through."""

    def __init__(self, known: Iterable[tuple[float, ...]]) -> None:
        self._by_first: dict[float, list[tuple[float, ...]]] = {}
        for values in known:
            self.add(values)

    def add(self, values: tuple[float, ...]) -> bool:
        """Take them in, unless they are somebody else's numbers as far as both go; whether they were not."""
        if not values:
            return False
        alike = self._by_first.setdefault(values[0], [])
        if any(all(x == y for x, y in zip(values, other, strict=False)) for other in alike):
            return False
        alike.append(values)
        return True


def _unsigned(differences: list[float]) -> tuple[float, ...]:
    """A pair's differences whichever arm comes first."""
    flip = next((value < 0 for value in differences if value), False)
    return tuple(-value if flip else value for value in differences)
