"""What one run is: a task, a model, how it is trained, how it is measured.

`RunConfig` is resolved when it is made: every number that follows from others (micro batch, accumulation) is filled
in, and what does not divide exactly is refused, so the stored config says what ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self, cast

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    field_validator,
    model_validator,
)

from winnow.attention.prune import PolicyConfig, VotesConfig, budget_of
from winnow.config import Config
from winnow.errors import InputError
from winnow.models.base import ModelConfig
from winnow.models.grafts import GraftConfig, grow
from winnow.tasks.base import TaskConfig
from winnow.train.presets import EVALUATION, TRAIN, expand


class TrainConfig(Config):
    """How a run is trained. The defaults are GPT-2's (Brown et al. 2020, appendix B), at a small token budget;
    `preset` names others (`winnow.train.presets`)."""

    steps: PositiveInt = 400
    """Updates of the optimizer."""
    tokens_per_update: PositiveInt = 4096
    """Tokens in one update = context x micro_batch x accumulation, exactly."""
    micro_batch: PositiveInt | None = None
    """Sequences in one forward and backward pass; None = as many as the update has."""
    accumulation: PositiveInt | None = None
    """Passes whose gradients are summed into one update; None = what follows from the other three."""
    lr: PositiveFloat = 6e-4
    """Peak learning rate; a parameter's own multiplier comes from the table of parameters."""
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """What the rate does after warm-up: falls to `min_lr_fraction` along a cosine or a line, or stays."""
    warmup: NonNegativeInt = 20
    """Updates of linear warm-up: update s has lr x (s + 1) / warmup. 0 = none."""
    min_lr_fraction: float = Field(default=0.1, ge=0.0, le=1.0)
    """The rate that the schedule reaches at `steps`, as a fraction of the peak. Not read by `constant`."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of AdamW's two moments, each in [0, 1)."""
    eps: PositiveFloat = 1e-8
    """Added to the root of AdamW's second moment."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled decay per unit of learning rate. 0 = none."""
    decay_on: Literal["matrices", "all"] = "matrices"
    """Which parameters decay: those that the table of parameters marks (weights with two axes or more), or all."""
    clip: PositiveFloat | None = 1.0
    """Largest norm of the whole gradient; None = no clipping."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the forward pass under autocast; weights, moments and losses stay fp32."""
    compile: bool = False
    """Run the model through torch.compile. Such a run is stamped "not bit-exact"."""
    recompute: bool = False
    """Keep only the inputs of each block and compute its inside again in the backward pass: less memory, about a third
    more arithmetic, the same numbers. False: off."""
    checkpoint_every: PositiveInt | None = None
    """Updates between checkpoints; None = about once a minute. The last update always has one."""
    keep: tuple[PositiveInt, ...] = ()
    """Steps whose checkpoint is made and kept for good, so that other runs can start from it; (): the last one only."""

    legacy: ClassVar[Mapping[str, Any]] = {"recompute": False}
    outside_identity: ClassVar[frozenset[str]] = frozenset({"checkpoint_every", "keep"})

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, value: Any) -> Any:
        return expand(cast("dict[str, Any]", value), TRAIN) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for beta in self.betas:
            if not 0.0 <= beta < 1.0:
                raise InputError(f"betas are {list(self.betas)}", mend="each must be at least 0 and less than 1")
        late = [step for step in self.keep if step > self.steps]
        if late:
            raise InputError(f"step {late[0]} is never reached", key="keep", mend=f"the run ends at step {self.steps}")
        return self


class PruneConfig(Config):
    """Losses of the trained model with a bounded cache: `prune/POLICY/KEEP/ce`, after the last update."""

    policy: PolicyConfig = VotesConfig()
    """Which keys go; its name alone will do. Arms that do not select have no loss under `votes` and `anew`."""
    keep: tuple[float, ...]
    """Parts of the context that every layer keeps, each above 0 and at most 1."""

    @field_validator("policy", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keeps(self) -> Self:
        if self.policy.kind == "none":
            raise InputError("nothing goes under none", key="policy", mend="val/ce is that loss")
        if not self.keep:
            raise InputError("keeps nothing", key="keep", mend="give parts of the context, say [0.25, 0.125]")
        for keep in self.keep:
            budget_of(keep, 1)
            if self.keep.count(keep) > 1:
                raise InputError(f"{keep} stands twice", key="keep", mend="name each part once")
        return self

    def metrics(self) -> dict[str, float]:
        """The part of the context that is kept, by metric."""
        return {f"prune/{self.policy.kind}/{keep:g}/ce": keep for keep in self.keep}


class EvaluationConfig(Config):
    """What a run is measured on. It belongs to the study, never to an arm."""

    every: PositiveInt = 50
    """Updates between evaluations; step 0 and the last step are always evaluated."""
    tokens: PositiveInt = 16384
    """Validation tokens of one evaluation, from the front of the validation split: the same ones each time. The
    default is all of a validation set that has a size of its own (filled in), else 16,384."""
    bytes: PositiveInt | None = None
    """Validation bytes instead of tokens, so that arms with different tokenizers predict the same text;
    None = `tokens` says how much."""
    inside: PositiveInt | None = None
    """Updates between looks at the inside of the mechanisms (`inside/LAYER/NAME` in the journal, on the first batch of
    the validation tokens); step 0 and the last step are looked at too. None = never."""

    prune: tuple[PruneConfig, ...] = ()
    """Losses with a bounded cache, measured once, after the last update. (): none."""
    batch_means: PositiveInt | None = None
    """Rows of batches whose means are averaged into the metrics, a smaller last batch like the others, each padded to
    its own longest row: how some published numbers were made. Tasks of questions and answers only.
    None: the metrics are exact."""
    train_window: PositiveInt | None = None
    """Training rows whose errors are `train/error`, `train/mask_error` and `train/sample_error`, at every update that
    fills such a window; rounded up to whole updates, at most the whole run. Tasks of questions and answers only.
    None: errors of training rows are not counted."""

    legacy: ClassVar[Mapping[str, Any]] = {"inside": None, "prune": (), "batch_means": None, "train_window": None}

    @model_validator(mode="before")
    @classmethod
    def _expand_preset(cls, value: Any) -> Any:
        return expand(cast("dict[str, Any]", value), EVALUATION) if isinstance(value, dict) else value

    def of(self, task: TaskConfig) -> Self:
        """With the tokens of a validation set that has a size of its own, unless a number was given.

        Raises InputError where the task does not have what is to be measured.
        """
        size = task.validation_tokens
        if size is None and self.train_window is not None:
            mend = "leave it out: it is for tasks of questions and answers"
            raise InputError(f"{task.kind} tasks count no errors", key="evaluation.train_window", mend=mend)
        given = "tokens" in self.model_fields_set or self.bytes is not None
        return self if size is None or given else self.replace({"tokens": size})

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [name for part in self.prune for name in part.metrics()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{twice} is asked for twice", key="prune", mend="name each policy and part once")
        return self


class InitFromConfig(Config):
    """What a run starts from instead of fresh initial values: another run's checkpoint, or a file of weights."""

    run: str | None = None
    """`study/arm`: that arm's run with this run's own seed; `study/arm/SEED`: always that one. None: see `path`."""
    path: str | None = None
    """A file or folder of weights, relative to the study, or `hf://owner/repo/path`. None: see `run`."""
    mode: Literal["resume", "restart"] = "restart"
    """resume: go on as the parent would have (weights, optimizer, step, schedule, data position).
    restart: its weights and data position, with a fresh optimizer and schedule from step 0."""
    step: PositiveInt | None = None
    """The parent's checkpoint after so many updates; None = its last (filled in when the study is resolved)."""
    moments: bool = False
    """Restart only: carry the optimizer's moments of every parameter that both have. False: fresh moments."""
    identity: str | None = None
    """Filled in when the study is resolved: digest of what the parent is. None = not resolved yet."""

    outside_identity: ClassVar[frozenset[str]] = frozenset({"run", "path"})

    @model_validator(mode="after")
    def _one_parent(self) -> Self:
        if (self.run is None) == (self.path is None):
            raise InputError(
                f"{'no parent is' if self.run is None else 'run and path are both'} given",
                mend='write run = "study/arm" or path = "file"',
            )
        if self.run is not None:
            parent_name(self.run)
        if self.moments and self.mode == "resume":
            raise InputError("a resumed run always has its moments", key="moments", mend="leave it out")
        return self


def parent_name(run: str) -> tuple[str, str, int | None]:
    """(study, arm, fixed seed) of `init_from.run`. Raises InputError where it is not written as it must be."""
    study, _, rest = run.partition("/")
    arm, slash, seed = rest.partition("/")
    if not study or not arm or (slash and not (seed.isascii() and seed.isdigit())):
        raise InputError(f"{run!r} names no run", key="run", mend='write "study/arm" or "study/arm/SEED"')
    return study, arm, int(seed) if slash else None


class RunConfig(Config):
    """One run, fully resolved: the scientific identity is this, the seed, the data and the `use` files."""

    task: TaskConfig
    model: ModelConfig
    """The model before the grafts: the parent's own where there is one."""
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    init_from: InitFromConfig | None = None
    """What the run starts from; None = fresh initial values."""
    graft: tuple[GraftConfig, ...] = ()
    """Changes of the starting model, fresh or loaded, in this order, before the first update. (): none."""

    legacy: ClassVar[Mapping[str, Any]] = {"init_from": None, "graft": ()}
    _grown: ModelConfig = PrivateAttr()

    @model_validator(mode="after")
    def _follows(self) -> Self:
        micro_batch, accumulation = split_update(self.train, self.task.context)
        changes = {"micro_batch": micro_batch, "accumulation": accumulation}
        # The one place where a frozen config is completed: nobody has seen this instance yet.
        object.__setattr__(self, "train", self.train.replace(changes))
        object.__setattr__(self, "evaluation", self.evaluation.of(self.task))
        try:
            self._grown = grow(self.model, self.graft)
        except InputError as error:
            key = f"graft.{error.key}" if error.key else "graft"
            raise InputError(error.message, key=key, mend=error.mend) from error
        self._check_model()
        self._check_prunable()
        if self.first_step >= self.train.steps:
            raise InputError(
                f"the parent's step {self.first_step} is where this run ends",
                key="train.steps",
                mend=f"ask for more than {self.first_step}: a resumed run counts the parent's steps too",
            )
        return self

    def _check_model(self) -> None:
        """Refuse what the kind of model cannot do, before anything runs."""
        model = self.grown
        if self.task.next_token and not model.causal:
            raise InputError(
                f"a model of kind {model.kind!r} sees later positions, and task {self.task.kind!r} asks for the next "
                "token: it would read its targets",
                key="model",
                mend="use a causal model, or a task whose targets are no later tokens of the input",
            )
        if not model.decodes and any(not part.policy.needs_votes for part in self.evaluation.prune):
            what = f"a model of kind {model.kind!r} has no cache of keys to prune"
            raise InputError(what, key="evaluation.prune", mend="drop it, or prune by votes, which says nothing of it")

    def _check_prunable(self) -> None:
        """Raises InputError where a loss with a bounded cache is asked for and no layer may drop a key."""
        asked = {name: (part.policy, keep) for part in self.evaluation.prune for name, keep in part.metrics().items()}
        for name, (policy, keep) in asked.items():
            if self.grown.needs_all_keys and policy.binds(budget_of(keep, self.task.context), self.task.context):
                raise InputError(
                    f"{name} cannot be measured: under residual scores a layer reads those of the layer below, which "
                    "may have dropped other keys",
                    key="evaluation.prune",
                    mend="drop it, or the arm's residual_scores",
                )

    @property
    def grown(self) -> ModelConfig:
        """The model that runs: `model` after the grafts."""
        return self._grown

    @property
    def metrics(self) -> dict[str, Literal["lower", "higher"]]:
        """What the run measures and a claim may be decided on, and which way is better."""
        votes = self.grown.casts_votes
        asked = [part for part in self.evaluation.prune if votes or not part.policy.needs_votes]
        return {**self.task.metrics, **{name: "lower" for part in asked for name in part.metrics()}}

    @property
    def first_step(self) -> int:
        """Updates that count as done when the run starts: the parent's where it is resumed."""
        start = self.init_from
        return start.step or 0 if start is not None and start.mode == "resume" else 0

    @property
    def rows(self) -> int:
        """Sequences in one update."""
        return self.train.tokens_per_update // self.task.context


def split_update(train: TrainConfig, context: int) -> tuple[int, int]:
    """(micro_batch, accumulation) of an update.

    context: tokens in a sequence. Raises `InputError` unless
    tokens_per_update = context x micro_batch x accumulation has exactly one solution.
    """
    tokens = train.tokens_per_update
    rows, rest = divmod(tokens, context)
    if rest or not rows:
        lower = max(context, tokens - rest)
        raise InputError(
            f"{tokens} tokens are no whole number of sequences of {context}",
            key="train.tokens_per_update",
            mend=f"use {lower} or {(tokens // context + 1) * context}",
        )
    micro_batch, accumulation = train.micro_batch, train.accumulation
    if micro_batch is None:
        passes = accumulation or 1
        if rows % passes:
            raise InputError(
                f"{rows} sequences an update do not divide into {passes} passes",
                key="train.accumulation",
                mend=f"permitted: {_divisors(rows)}",
            )
        return rows // passes, passes
    if rows % micro_batch:
        raise InputError(
            f"{rows} sequences an update ({tokens} tokens, context {context}) do not divide by {micro_batch}",
            key="train.micro_batch",
            mend=f"permitted: {_divisors(rows)}",
        )
    passes = rows // micro_batch
    if accumulation is not None and accumulation != passes:
        raise InputError(
            f"{context} x {micro_batch} x {accumulation} is {context * micro_batch * accumulation} tokens, "
            f"tokens_per_update is {tokens}",
            key="train.accumulation",
            mend=f"use {passes}, or leave it out",
        )
    return micro_batch, passes


def split_ranks(config: RunConfig, ranks: int) -> tuple[int, int]:
    """(rows of a pass, passes) of each rank in an update.

    A pass has at most `micro_batch` rows, the most that divides a rank's rows evenly; one rank has exactly the config's
    micro batch and accumulation. Raises InputError unless rows = rows of a pass x passes x ranks has a solution, or
    where the config cannot be trained on several ranks.
    """
    micro_batch, accumulation = split_update(config.train, config.task.context)
    share = rank_rows(micro_batch * accumulation, ranks)
    if ranks > 1 and config.evaluation.prune:
        raise InputError("several ranks measure no pruned losses", key="evaluation.prune", mend="drop it, or --ranks")
    if ranks > 1 and config.train.compile:
        raise InputError("several ranks do not run compiled models", key="train.compile", mend="drop it, or --ranks")
    size = max(rows for rows in range(1, min(micro_batch, share) + 1) if share % rows == 0)
    return size, share // size


def rank_rows(rows: int, ranks: int) -> int:
    """Rows of each rank in an update of `rows`. Raises InputError where they do not divide."""
    if rows % ranks:
        raise InputError(
            f"{rows} sequences an update do not divide by {ranks} ranks",
            key="--ranks",
            mend=f"permitted: {_divisors(rows)}",
        )
    return rows // ranks


def _divisors(number: int) -> str:
    return ", ".join(str(value) for value in range(1, number + 1) if number % value == 0)
