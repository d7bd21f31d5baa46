"""What can be known to be wrong with a study before anything is trained. Needs no torch.

A finding of severity `invalid` makes every claim that it touches invalid, and `refuse` stops the study before it costs
anything, unless the author wrote `expect = "invalid"`. The others are said and change nothing.

    rule                  severity   what it means
    equal-arms            invalid    two arms are the same experiment (equal digests)
    fact-unchanged        invalid    a fact that must change along an axis of the grid does not (`dead_axes`)
    evaluation-overridden invalid    an arm changes what the study measures on
    not-comparable        invalid    arms of a claim are measured on different text, or in tokens of different kinds
    name-collision        invalid    names that differ in case only, or a study id that another file uses
    warmup-outlasts-run   warning    the learning rate never reaches its peak
    no-control            warning    the control is no arm
    one-seed              warning    nothing can be decided
    no-smallest           warning    a claim that can never be refuted
    idle-filter           warning    a grid's filter that drops nothing
    axis-without-trace    notice     an axis of the grid changes nothing that is known of the models (`dead_axes`)
    no-claims             notice     nothing will be decided
    several-settings      notice     arms of a claim differ in more than one setting
    unequal-parameters    notice     arms of a claim differ in size by more than 1 %
    lone-pair             notice     no other pair to learn the noise of differences from
    unused-seeds          notice     seeds beyond the last look
    repeated-data         notice     the training text is read more than once
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from winnow.errors import InputError, nearest
from winnow.records.run import Finding
from winnow.study.dead_axes import planned_dead_axes
from winnow.study.plan import Plan, differing
from winnow.study.spec import Claim, Study

Severity = Literal["notice", "warning", "invalid"]


@dataclass(frozen=True)
class AuditFinding:
    """A finding and the claims that it makes invalid."""

    finding: Finding
    claims: tuple[str, ...] = ()
    refused: bool = False
    """Whether it stops the study even where an invalid claim is expected."""


def audit(study: Study, plan: Plan, stored: Plan | None = None) -> tuple[AuditFinding, ...]:
    """Every finding on a study, most severe first, otherwise in the order of the rules above.

    plan: the arms as resolved now; stored: what the store's plan of this id says, if it has one.
    """
    found = [
        *_equal_arms(study, plan),
        *_grid(study, plan),
        *_evaluation(study),
        *_not_comparable(study, plan),
        *_collisions(study, stored),
        *_warmup(study, plan),
        *_control(study),
        *_seeds(study),
        *_claims(study, plan),
        *_repeated(study, plan),
    ]
    order = ("invalid", "warning", "notice")
    return tuple(sorted(found, key=lambda item: order.index(item.finding.severity)))


def refuse(study: Study, found: tuple[AuditFinding, ...]) -> None:
    """Raise InputError for the first finding that would make a claim invalid which is not expected to be."""
    expected = {claim.id for claim in study.claims if claim.expect == "invalid"}
    for item in found:
        if item.refused or not expected.issuperset(item.claims):
            finding = item.finding
            raise InputError(f"{finding.rule}: {finding.message}", file=finding.where, mend=finding.mend)


def _found(
    study: Study,
    rule: str,
    severity: Severity,
    message: str,
    path: tuple[str, ...],
    mend: str | None = None,
    claims: tuple[str, ...] = (),
    *,
    refused: bool = False,
) -> AuditFinding:
    where = study.lines.where(path)
    return AuditFinding(Finding(rule=rule, severity=severity, message=message, where=where, mend=mend), claims, refused)


def _naming(study: Study, *arms: str) -> tuple[str, ...]:
    """Claims that compare all of these arms."""
    return tuple(claim.id for claim in study.claims if set(arms) <= set(claim.all_arms))


def _equal_arms(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    alike: dict[str, list[str]] = {}
    for name in study.arms:
        if name in plan.arms:
            alike.setdefault(plan.run(name, study.seeds[0]), []).append(name)
    for arms in alike.values():
        unclaimed = 0
        for one, other in combinations(arms, 2):
            claims = _naming(study, one, other)
            if claims or len(arms) == 2:
                severity = "invalid" if claims else "warning"
                yield _found(study, *_equal(severity, [one, other]), claims)
            else:
                unclaimed += 1
        if unclaimed:
            yield _found(study, *_equal("warning", arms))


def _equal(severity: Severity, arms: Sequence[str]) -> tuple[str, Severity, str, tuple[str, ...], str]:
    *most, last = arms
    message = f"arms {', '.join(most)} and {last} are the same experiment: their settings resolve to the same run"
    return "equal-arms", severity, message, ("arms", last), f"change a setting of {last}, or drop it"


def _grid(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    if study.grid is not None and study.grid.filter is not None and not study.grid.dropped:
        message = f"the filter {study.grid.filter!r} drops none of the grid's combinations"
        yield _found(study, "idle-filter", "warning", message, ("grid", "filter"), "correct it, or leave it out")
    for finding, claims in planned_dead_axes(study, plan):
        yield AuditFinding(finding, claims, refused=finding.severity == "invalid")


def _evaluation(study: Study) -> Iterator[AuditFinding]:
    if study.runs == "recorded":
        return
    for name, settings in study.arms.items():
        task: Mapping[str, Any] = settings.get("task", {})
        owned = [("evaluation", key) for key in settings.get("evaluation", {})]
        owned += [("task", key) for key in task if key == "context" or key.startswith("validation")]
        for path in owned:
            message = f"arm {name} changes {'.'.join(path)}, which belongs to the study: all arms are measured alike"
            mend = f"set base.{'.'.join(path)} instead"
            yield _found(study, "evaluation-overridden", "invalid", message, ("arms", name, *path), mend, refused=True)


def _not_comparable(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    for claim in study.claims:
        arms = [name for name in claim.all_arms if name in plan.arms]
        text = {str(plan.arms[name].facts.get("val_digest")) for name in arms}
        tokenizers = {str(plan.arms[name].identity.get("task", {}).get("tokenizer")) for name in arms}
        path = ("claims", claim.id)
        if len(tokenizers) > 1 and claim.metric != "val/bpb":
            message = f"claim {claim.id} compares {claim.metric} over different tokenizers, whose tokens differ in size"
            mend = "compare val/bpb, bits per byte of the same text"
            yield _found(study, "not-comparable", "invalid", message, path, mend, (claim.id,))
        elif len(text) > 1:
            message = f"the arms of claim {claim.id} are measured on different validation text"
            mend = "give the arms one corpus, and evaluation.bytes where their tokenizers differ"
            yield _found(study, "not-comparable", "invalid", message, path, mend, (claim.id,))


def _collisions(study: Study, stored: Plan | None) -> Iterator[AuditFinding]:
    for kind, names in (("arms", list(study.arms)), ("claims", [claim.id for claim in study.claims])):
        seen: dict[str, str] = {}
        for other in names:
            one = seen.setdefault(other.casefold(), other)
            if one != other:
                message = f"{kind[:-1]} names {one!r} and {other!r} differ in case only"
                yield _found(study, "name-collision", "invalid", message, (kind, other), "rename one", refused=True)
    if stored is None or stored.file is None or study.file is None:
        return
    other_file = Path(stored.file)
    if other_file != study.file.resolve() and other_file.exists():
        message = f"the id {study.id!r} is the study's in {other_file}, whose plan stands in this store"
        mend = "give this study an id of its own"
        yield _found(study, "name-collision", "invalid", message, ("id",), mend, refused=True)


def _warmup(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    for name in study.arms:
        train = plan.arms[name].config.get("train", {}) if name in plan.arms else {}
        warmup, steps = train.get("warmup"), train.get("steps")
        if isinstance(warmup, int) and isinstance(steps, int) and warmup >= steps:
            message = f"arm {name} warms up for {warmup} of its {steps} steps: the learning rate never leaves warm-up"
            path = ("arms", name, "train", "warmup")
            if study.lines.depth(path) < 3:
                path = ("base", "train", "warmup")
            yield _found(study, "warmup-outlasts-run", "warning", message, path, "lower train.warmup or train more")


def _control(study: Study) -> Iterator[AuditFinding]:
    if study.control not in study.arms:
        message = f"the control {study.control!r} is no arm"
        mend = f"name one of the arms as control; {nearest(study.control, study.arms)}"
        yield _found(study, "no-control", "warning", message, ("control",), mend)


def _seeds(study: Study) -> Iterator[AuditFinding]:
    if study.looks[-1] == 1:
        message = "one seed cannot tell an effect from chance: every claim will stay undecided"
        yield _found(study, "one-seed", "warning", message, ("seeds",), "give at least 3 seeds")
    spare = study.seeds[study.looks[-1] :]
    if spare:
        message = f"seeds {', '.join(map(str, spare))} stand beyond the last look ({study.looks[-1]}) and will not run"
        yield _found(study, "unused-seeds", "notice", message, ("looks",), "add a look, or drop them")


UNEQUAL_SIZE = 0.01
"""Arms whose parameter counts differ by more than this share are said to be of different size."""


def _claims(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    if not study.claims:
        mend = 'write one, say claims.h1 = "a better-than b on val/ce smallest 0.01"'
        yield _found(study, "no-claims", "notice", "the study claims nothing, so nothing will be decided", (), mend)
    for claim in study.claims:
        path = ("claims", claim.id)
        if _never_refuted(claim):
            message = f"claim {claim.id} has no smallest effect of interest: no small difference can refute it"
            yield _found(study, "no-smallest", "warning", message, path, "add `smallest s`, in units of the metric")
        for one, other in claim.pairs:
            if one not in plan.arms or other not in plan.arms:
                continue
            settings = different_settings(plan.arms[one].identity, plan.arms[other].identity)
            if len(settings) > 1:
                message = f"{one} and {other} differ in {len(settings)} settings: {', '.join(settings)}"
                mend = "a difference cannot be put down to one of them"
                yield _found(study, "several-settings", "notice", message, path, mend)
            sizes = [int(plan.arms[arm].facts.get("parameters", 0)) for arm in (one, other)]
            if max(sizes) > (1 + UNEQUAL_SIZE) * min(sizes):
                message = f"{one} has {sizes[0]:,} parameters, {other} {sizes[1]:,}"
                mend = "part of a difference may be due to size alone"
                yield _found(study, "unequal-parameters", "notice", message, path, mend)
    pairs = {frozenset(pair) for claim in study.claims for pair in claim.pairs}
    if len(pairs) == 1 and len(study.arms) == 2 and study.looks[-1] > 1:
        message = "with one pair of arms the noise of differences is learnt from it alone: 3 seeds rarely decide"
        yield _found(study, "lone-pair", "notice", message, ("arms",), "a further arm would help")


def _never_refuted(claim: Claim) -> bool:
    return claim.kind in ("better", "worse") and claim.margin == 0 and claim.smallest is None


def _repeated(study: Study, plan: Plan) -> Iterator[AuditFinding]:
    for name in study.arms:
        if name not in plan.arms:
            continue
        arm = plan.arms[name]
        windows, tokens = arm.facts.get("windows_per_epoch"), arm.facts.get("tokens")
        context = arm.config.get("task", {}).get("context")
        if isinstance(windows, int) and isinstance(tokens, int) and isinstance(context, int) and windows > 0:
            parent = arm.parent
            before = int(arm.facts.get("tokens_before", 0)) if parent is not None and parent.data == arm.data else 0
            epochs = (tokens + before) / context / windows
            if epochs > 1:
                together = ", its parent's share included" if before else ""
                message = f"arm {name} reads its training text {epochs:.1f} times{together}"
                yield _found(
                    study, "repeated-data", "notice", message, ("base", "task"), "give more text or fewer steps"
                )


def different_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Settings in which two canonical configs differ; another `kind` counts once, with all that comes with it."""
    kinds = {path.rpartition(".")[0] for path in differing(one, other) if path.rpartition(".")[2] == "kind"}
    found: list[str] = []
    for path in differing(one, other):
        owner = next((kind for kind in sorted(kinds) if path.startswith(f"{kind}.")), None)
        # Another parent is another identity, which says nothing to a reader.
        name = "init_from" if path == "init_from.identity" else path if owner is None else owner
        if name not in found:
            found.append(name)
    return tuple(found)
