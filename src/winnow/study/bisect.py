"""Which commit made a number worse: `git bisect`, each commit judged from several seeds by the study's own rule.

The claim on a commit X is "X worse-than GOOD on the endpoint, smallest s", from runs of one arm of the study, paired
seed by seed with runs of the good revision, look by look:

    supported                          bad    (good, where it is shown to be worse by less than s)
    refuted                            good
    undecided after the last look      skip
    a run failed, or is invalid        skip
    the same values as good (or bad) at every seed of a look    that one, whatever the noise: nothing differs

Bad itself is judged first: without a regression there is nothing to look for. All commits that can be asked share the
rule's alpha, so that it bounds the probability of any wrong judgement on the way. Other commits that were judged lend
their noise, as the arms of a study do.

What was found of a commit is written down at once; the same question goes on where it ended. Needs no torch: runs are
made by `winnow.study.commit_runs`, or by whatever is given for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pydantic import Field, ValidationError

from winnow.config import Config, digest, input_errors
from winnow.errors import InputError, nearest
from winnow.records.files import FileLock, make_folder, read_json, write_atomic, write_json
from winnow.study.claims import Claim, parse_claim
from winnow.study.observations import Observations, Seed
from winnow.study.overlay import merge
from winnow.study.plan import design_of
from winnow.study.spec import Study
from winnow.study.verdict import DecisionRule, Verdict, judge_claims
from winnow.study.worktrees import Commit, Judgement, Repository

FOLDER: Final = "winnow-bisect"
"""Beside the study: one folder per question, and one for worktrees."""
VERSION: Final = 1


@dataclass(frozen=True)
class Ran:
    """What the runs of a commit gave."""

    values: Mapping[int, float | None]
    """The endpoint by seed; None: the run diverged."""
    failure: str | None = None
    """Why the commit cannot be judged: a run failed, or health found that it is not what was written."""


class Runner(Protocol):
    """Makes the runs of a commit, or finds them where they were made before."""

    def __call__(self, commit: Commit, seeds: Sequence[int]) -> Ran: ...


class Trial(Config):
    """What was found of one commit."""

    commit: str
    subject: str = ""
    values: dict[str, float | None] = Field(default_factory=dict)
    """The endpoint by seed; None: diverged."""
    judgement: Judgement | None = None
    """None: not judged yet."""
    reason: str = ""
    n: int = 0
    """Seeds that the judgement rests on."""
    effect: float | None = None
    """This commit less the good one, in units of the metric."""
    low: float | None = None
    high: float | None = None

    def same(self, other: Trial) -> bool:
        """Whether the two have the same value at every seed that both have."""
        common = self.values.keys() & other.values.keys()
        return bool(common) and all(self.values[seed] == other.values[seed] for seed in common)


class Memory(Config):
    """The file that a bisection goes on from."""

    version: int = VERSION
    question: dict[str, Any]
    """In words, for people."""
    good: Trial
    trials: tuple[Trial, ...] = ()
    """Commits in the order in which they were judged, the bad revision first."""


@dataclass(frozen=True)
class Question:
    """What a bisection asks; its digest names the folder of the answer."""

    study: Study
    arm: str
    smallest: float
    """Smallest regression of interest, in units of the endpoint's metric."""
    good: Commit
    bad: Commit
    commits: int
    """How many come after good, up to bad."""
    root: Path
    """Of the repository."""

    @property
    def rule(self) -> DecisionRule:
        """The study's rule for one commit: its alpha is shared by all that will be asked."""
        asked = 1 + self.commits.bit_length()  # bad itself, then log2 of the others
        return self.study.rule.replace({"alpha": self.study.rule.alpha / asked, "correction": "none"})

    def claim(self, commit: str) -> Claim:
        """What is claimed of a commit that is bad."""
        metric = self.study.endpoint.metric
        return parse_claim("regression", f"{commit} worse-than good on {metric} smallest {self.smallest!r}")

    def words(self) -> dict[str, Any]:
        """The question as data."""
        study = self.study
        return {
            "study": study.plan_name,
            "arm": self.arm,
            "claim": self.claim("COMMIT").text,
            "good": self.good.sha,
            "repository": str(self.root),
            "written": digest([dict(study.base), dict(study.arms[self.arm]), list(study.use)]),
            "rule": self.rule.dump(),
            "design": design_of(study),
        }

    @property
    def folder(self) -> Path:
        """Where runs and what was found are kept."""
        return self.study.folder / FOLDER / f"{self.study.plan_name}-{digest(self.words())[:8]}"


@dataclass(frozen=True)
class Result:
    """What a bisection found."""

    question: Question
    good: Trial
    trials: tuple[Trial, ...]
    """In the order in which they were judged, bad first."""
    suspects: tuple[Commit, ...] = field(default=())
    """Commits one of which is the first bad one, the latest first; one alone: that is it; none: bad is not bad."""

    @property
    def first_bad(self) -> Commit | None:
        """The first bad commit, if it was found."""
        return self.suspects[0] if len(self.suspects) == 1 else None

    @property
    def outcome(self) -> Literal["found", "skipped", "no-regression"]:
        """`skipped`: only commits that could not be judged are left."""
        return "no-regression" if not self.suspects else "found" if self.first_bad else "skipped"


def open_repository(study: Study, folder: Path | None = None) -> Repository:
    """The repository that a folder is in (default: the study's), with its worktrees beside the study."""
    return Repository(folder or study.folder, study.folder / FOLDER / "trees")


def ask(
    study: Study,
    repository: Repository,
    good: str,
    bad: str,
    *,
    arm: str | None = None,
    smallest: float | None = None,
) -> Question:
    """The question in full. Raises InputError where the arm, a revision or the smallest regression cannot be told."""
    if study.runs == "recorded":
        raise study.lines.error("the runs of this study come from winnow.record", ("runs",), "bisect one of your own")
    name = study.control if arm is None else arm
    if name not in study.arms:
        raise InputError(f"{name!r} is no arm of {study.id}", key="--arm", mend=nearest(name, study.arms))
    _check_start(study, name)
    metric = study.endpoint.metric
    if smallest is None:
        given = [claim.smallest for claim in study.claims if claim.metric == metric and claim.smallest is not None]
        if not given:
            mend = f"give the smallest regression that matters, in units of {metric}"
            raise InputError("no claim of the study says what is small", key="--smallest", mend=mend)
        smallest = min(given)
    if smallest <= 0:
        raise InputError(f"{smallest:g} is not above 0", key="--smallest")
    first, last = repository.commit(good, "--good"), repository.commit(bad, "--bad")
    commits = repository.between(first, last)
    return Question(study, name, smallest, first, last, commits, repository.root)


def _check_start(study: Study, arm: str) -> None:
    """Raises InputError for an arm whose runs start from other runs: a commit's own store has none of them."""
    start = merge(study.base, study.arms[arm]).get("init_from")
    if isinstance(start, dict) and "run" in start:
        own = "init_from" in study.arms[arm]
        raise study.lines.error(
            f"{arm} starts from runs of another study, and a commit is asked in a store of its own, without them",
            ("arms", arm, "init_from") if own else ("base", "init_from"),
            "name another arm with --arm, or start from a file with init_from.path",
        )


def bisect(
    question: Question,
    repository: Repository,
    run: Runner,
    say: Callable[[str], None] = lambda text: None,
    *,
    retry: bool = False,
) -> Result:
    """Judge good and bad, then walk. say: gets a line for people now and then; retry: judge skipped commits again.

    Raises InputError where the good revision itself cannot be run, or another bisection is under way beside the study.
    """
    make_folder(repository.trees.parent)
    lock = FileLock(repository.trees.with_name(".lock"))
    if not lock.try_acquire():
        raise InputError("another bisection is under way here", file=lock.path.parent, mend="wait for it")
    try:
        repository.clear()
        return _Walk(question, repository, run, say, retry).go()
    finally:
        lock.release()


class _Walk:
    def __init__(
        self, question: Question, repository: Repository, run: Runner, say: Callable[[str], None], retry: bool
    ) -> None:
        self.question, self.repository, self.run, self.say = question, repository, run, say
        self.file = question.folder / "found.json"
        self.memory = load_memory(question, self.file)
        if retry:
            kept = tuple(trial for trial in self.memory.trials if trial.judgement != "skip")
            self.memory = self.memory.replace({"trials": kept})

    def go(self) -> Result:
        question = self.question
        bad = self._judged(question.bad)
        if bad.judgement != "bad":
            return Result(question, self.memory.good, (bad,))
        with self.repository.bisection(question.good, question.bad) as history:
            asked = [bad]
            while (commit := history.next()) is not None:
                trial = self._judged(commit)
                assert trial.judgement is not None
                asked.append(trial)
                history.say(commit, trial.judgement)
            return Result(question, self.memory.good, tuple(asked), history.suspects())

    # One commit

    def _judged(self, commit: Commit) -> Trial:
        """What was found of a commit, now or before."""
        known = next((trial for trial in self.memory.trials if trial.commit == commit.sha), None)
        trial = known or Trial(commit=commit.sha, subject=commit.subject)
        if trial.judgement is None:
            trial = self._judge(commit, trial)
            self._keep(trial)
            numbers = "" if trial.effect is None else f", {trial.effect:+.3g} over {trial.n} seeds"
            self.say(f"{commit}: {trial.judgement}{numbers}")
        return trial

    def _judge(self, commit: Commit, trial: Trial) -> Trial:
        study = self.question.study
        verdict: Verdict | None = None
        for look in study.looks:
            seeds = study.seeds[:look]
            self._run_good(seeds)
            values, failure = self._values(commit, trial, seeds)
            trial = trial.replace({"values": values})
            if failure is not None:
                return trial.replace({"judgement": "skip", "reason": failure, "n": 0})
            found = self._same(trial)
            if found is not None:
                return found
            verdict = self._verdict(trial)
            if verdict.status != "undecided":
                break
        assert verdict is not None
        judgement: Judgement = "skip"
        if verdict.status == "supported":
            judgement = "good" if verdict.smaller_than_smallest else "bad"
        elif verdict.status == "refuted":
            judgement = "good"
        numbers = {"n": verdict.n, "effect": verdict.effect, "low": verdict.low, "high": verdict.high}
        return trial.replace({"judgement": judgement, "reason": verdict.reason, **numbers})

    def _run_good(self, seeds: Sequence[int]) -> None:
        good = self.memory.good
        values, failure = self._values(self.question.good, good, seeds)
        if failure is not None:
            mend = "choose a good revision that runs"
            raise InputError(f"{self.question.good} cannot be judged: {failure}", key="--good", mend=mend)
        if values != good.values:
            self._write(self.memory.replace({"good": good.replace({"values": values, "n": len(values)})}))

    def _values(self, commit: Commit, trial: Trial, seeds: Sequence[int]) -> tuple[dict[str, float | None], str | None]:
        missing = [seed for seed in seeds if str(seed) not in trial.values]
        if not missing:
            return trial.values, None
        self.say(f"{commit}: seed{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing))}")
        ran = self.run(commit, missing)
        found = {**trial.values, **{str(seed): ran.values[seed] for seed in missing if seed in ran.values}}
        absent = [seed for seed in missing if seed not in ran.values]
        failure = ran.failure or (f"seed {absent[0]} gave no {self.question.study.endpoint.metric}" if absent else None)
        return found, failure

    def _same(self, trial: Trial) -> Trial | None:
        """The judgement on a commit that gave exactly what good or bad gave."""
        bad = next((each for each in self.memory.trials if each.commit == self.question.bad.sha), None)
        for other, judgement in ((self.memory.good, "good"), (bad, "bad")):
            if other is not None and other.judgement != "skip" and trial.same(other):
                n = len(trial.values)
                reason = f"the same values as {judgement} at each of {n} seeds"
                numbers = {"effect": 0.0} if judgement == "good" else {
                    "effect": other.effect, "low": other.low, "high": other.high}  # fmt: skip
                return trial.replace({"judgement": judgement, "reason": reason, "n": n, **numbers})
        return None

    def _verdict(self, trial: Trial) -> Verdict:
        question, endpoint = self.question, self.question.study.endpoint
        good = self.memory.good
        values = {"good": _by_seed(good), trial.commit[:10]: _by_seed(trial)}
        for other in _distinct(self.memory.trials, [good, trial]):
            values[other.commit[:10]] = _by_seed(other)
        observations = Observations(values, endpoint.metric, endpoint.better, question.study.seeds, control="good")
        looks = question.study.looks
        return judge_claims([question.claim(trial.commit[:10])], observations, question.rule, looks)[0]

    # What is kept

    def _keep(self, trial: Trial) -> None:
        others = tuple(each for each in self.memory.trials if each.commit != trial.commit)
        self._write(self.memory.replace({"trials": (*others, trial)}))

    def _write(self, memory: Memory) -> None:
        self.memory = memory
        write_json(self.file, memory.dump())


def load_memory(question: Question, file: Path) -> Memory:
    """What was found before; makes the folder. Raises InputError if the file is damaged or of a newer version."""
    make_folder(file.parent)
    ignore = question.study.folder / FOLDER / ".gitignore"
    if not ignore.exists():
        write_atomic(ignore, "*\n")
    good = Trial(commit=question.good.sha, subject=question.good.subject, judgement="good")
    try:
        data = read_json(file)
    except FileNotFoundError:
        return Memory(question=question.words(), good=good)
    if isinstance(data.get("version"), int) and data["version"] > VERSION:
        raise InputError(f"is of version {data['version']}", file=file, mend="install a newer winnow-lab")
    try:
        return Memory.model_validate(data)
    except ValidationError as error:
        raise input_errors(error)[0].at(file=file) from None


def plain(result: Result) -> dict[str, Any]:
    """The result as JSON data."""
    first = result.first_bad
    return {
        **result.question.words(),
        "bad": result.question.bad.sha,
        "commits": result.question.commits,
        "outcome": result.outcome,
        "first_bad": None if first is None else {"commit": first.sha, "subject": first.subject},
        "suspects": [commit.sha for commit in result.suspects],
        "good_values": result.good.values,
        "trials": [trial.dump() for trial in result.trials],
        "folder": str(result.question.folder),
    }


def _by_seed(trial: Trial) -> dict[Seed, float | None]:
    return {int(seed): value for seed, value in trial.values.items()}


def _distinct(trials: Iterable[Trial], known: Sequence[Trial]) -> list[Trial]:
    """Judged commits, each with values of its own: the same numbers twice would count as twice the evidence."""
    found: list[Trial] = []
    for trial in trials:
        if trial.judgement in ("good", "bad") and not any(trial.same(other) for other in (*known, *found)):
            found.append(trial)
    return found
