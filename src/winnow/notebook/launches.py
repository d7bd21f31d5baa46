"""The training programs that a notebook's command blocks start, with what really reaches each of them.

A launch is found by its launcher (`torchrun`, `python -m`, `accelerate launch`, ...), bare, after `cd ... &&`, or in
the quoted argument of a remote call. Options are told apart from what was written but cannot arrive: what follows a
broken continuation. What an option means is the program's affair: see `program`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from winnow.notebook.pages import Fence, Page, Prose
from winnow.notebook.shell import Command, Word, parse

SHELLS = ("", "sh", "bash", "zsh", "shell", "console", "shell-session", "shellsession", "terminal")
"""Info strings of fences that hold commands; a block state is the other kind."""
STATES = {"verified": False, "finished": False, "running": True, "fail": True, "succeed": True}
"""What a runner writes into an info string, `RUNNER:STATE` or `RUNNER:STATE/ID`: whether an id belongs to it."""
RUNNERS = ("vast",)
"""Names of runners that are known without seeing them at work; others are learnt from the page."""
NAMES = ("log_dir", "logdir", "run_name", "name", "output_dir", "out_dir", "exp_name", "experiment_name")
GROUPS = ("group", "wandb_group", "run_group")
SEEDS = ("random_seed", "seed", "manual_seed")
"""Options that usually say how a run is called, what it is compared with, and its seed."""

_TAG = re.compile(r"(?P<runner>[A-Za-z][\w-]*?)(?::(?P<state>[A-Za-z]+)(?:/(?P<id>[\w.-]+))?)?")
_LAUNCHERS = ("torchrun", "deepspeed", "accelerate")
_PYTHON = re.compile(r"python(?:3(?:\.\d+)?)?")
_PREFIXES = ("nohup", "time", "nice", "sudo", "env", "exec", "srun", "uv", "run", "poetry", "launch", "stdbuf")
_TOOLS = (
    "pip", "venv", "ensurepip", "http", "json", "pytest", "unittest", "timeit", "site", "build", "twine", "pdb",
    "cProfile", "ruff", "mypy", "pre_commit", "nbconvert", "jupyter", "notebook", "ipykernel", "setup",
)  # fmt: skip
"""Modules that train nothing."""
_TALKERS = ("git", "echo", "printf", "grep", "sed", "awk", "curl", "alias")
"""Commands whose quoted arguments are no commands."""
_WITHOUT_VALUE = ("--standalone", "--no-python", "--no_python", "--multi_gpu", "--cpu", "-u", "-O", "-B")
SYSTEM = re.compile(
    r"(?:CUDA|NCCL|OMP|MKL|TORCH|PYTORCH|PYTHON|HF|WANDB|MASTER|TOKENIZERS|GLOO|TRITON|XLA|NVIDIA|LD|SLURM)_?|"
    r"(?:RANK|WORLD_SIZE|LOCAL_RANK|PATH|HOME|DEBUG)\b"
)
"""Environment variables that belong to machine and libraries, not to the program."""


@dataclass(frozen=True, slots=True)
class BlockState:
    """What an info string says of a block's run."""

    text: str
    line: int
    runner: str = ""
    state: str = ""
    """One of STATES; "waiting" for a bare runner; empty for a tag that follows no grammar."""
    machine: str | None = None
    problem: str | None = None
    """What is wrong with the tag."""


@dataclass(frozen=True, slots=True)
class Option:
    """An option as written: name without dashes, in the flags' spelling; `value` is None for a bare flag."""

    name: str
    value: str | None
    line: int


@dataclass(frozen=True)
class Launch:
    """One start of a training program."""

    fence: Fence
    section: int
    """Index of its section in the page."""
    state: BlockState | None
    commands: tuple[Command, ...]
    """All commands of its block, in order; those of a remote call in place of the call."""
    command: Command
    """The one that starts the program."""
    interface: Literal["environment", "flags"]
    """"flags", or "environment" where settings are given as variables."""
    remote: str | None
    """The machine that a remote call names."""
    options: tuple[Option, ...]
    """What reaches the program."""
    lost: tuple[Option, ...]
    """What was written and cannot reach it."""
    arguments: tuple[Word, ...]
    """What reaches the program besides options."""
    environment: Mapping[str, Option]
    """Variables set for it that are no options of the program."""
    launcher: str
    """torchrun, python, accelerate or deepspeed."""
    launcher_options: Mapping[str, Option]
    """The launcher's own, by name in the flags' spelling (`nproc_per_node`, `master_port`)."""
    module: str
    """Dotted module or script, as written."""
    before: tuple[Prose, ...]
    """Prose between the fence or heading before it and this fence."""

    def option(self, *names: str) -> Option | None:
        """The last occurrence of an option, by any of its names."""
        return next((item for item in reversed(self.options) if item.name in names), None)

    @property
    def lead(self) -> tuple[Prose, ...]:
        """The part of `before` that is about this block alone: what follows the last line across the page."""
        breaks = [index for index, item in enumerate(self.before) if item.is_break]
        return self.before[breaks[-1] + 1 :] if breaks else self.before

    @property
    def line(self) -> int:
        """Line of the fence that holds it."""
        return self.fence.opening_line

    @property
    def name(self) -> str | None:
        """How the run is called, by the usual options."""
        return _value(self.option(*NAMES))

    @property
    def group(self) -> str | None:
        """What it is compared with, by the usual options."""
        return _value(self.option(*GROUPS))

    @property
    def seed(self) -> int | None:
        """The seed given; None where none is."""
        value = _value(self.option(*SEEDS))
        return int(value) if value is not None and value.isdecimal() else None

    @property
    def processes(self) -> str | None:
        """Processes per machine as written: a number, or "gpu" for as many as it has."""
        return _value(self.launcher_options.get("nproc_per_node"))

    @property
    def port(self) -> Option | None:
        """Rendezvous port."""
        return self.launcher_options.get("master_port") or self.environment.get("MASTER_PORT")

    @property
    def devices(self) -> str | None:
        """CUDA_VISIBLE_DEVICES, where it is set."""
        return _value(self.environment.get("CUDA_VISIBLE_DEVICES"))

    @cached_property
    def checkout(self) -> Word | None:
        """The revision that `git checkout` or `git switch` selects before the program starts."""
        found = [
            command.words[-1]
            for command in self._earlier
            if [word.text for word in command.words[:2]] in (["git", "checkout"], ["git", "switch"])
            and len(command.words) > 2
        ]
        return found[-1] if found else None

    @cached_property
    def pulls(self) -> bool:
        """Whether the code is whatever `git pull` brings."""
        return any([word.text for word in command.words[:2]] == ["git", "pull"] for command in self._earlier)

    @property
    def redirect(self) -> str | None:
        """The file that its output goes to."""
        return next((word.text for sign, word in self.command.redirects if ">" in sign), None)

    @cached_property
    def _earlier(self) -> Sequence[Command]:
        return self.commands[: next(n for n, command in enumerate(self.commands) if command is self.command)]


def launches(page: Page) -> tuple[Launch, ...]:
    """Every launch of a page, in order. A block that starts several programs gives several."""
    runners = _runners(page)
    found: list[Launch] = []
    for index, section in enumerate(page.sections):
        before: list[Prose] = []
        for item in section.items:
            if isinstance(item, Prose):
                before.append(item)
            else:
                found += _launches(item, index, block_state(item, runners), tuple(before))
                before = []
    return tuple(found)


def block_states(page: Page) -> tuple[BlockState, ...]:
    """The state of every fence that has or is meant to have one."""
    runners = _runners(page)
    states = (block_state(fence, runners) for fence in page.fences())
    return tuple(state for state in states if state is not None)


def block_state(fence: Fence, runners: frozenset[str] = frozenset(RUNNERS)) -> BlockState | None:
    """The state in a fence's info string; None where it is a language or nothing.

    A tag that names a runner or ends in a state without following the grammar has `problem` set.
    """
    text, line = fence.info, fence.opening_line
    match = _TAG.fullmatch(text)
    if match and match["runner"] in runners:
        state, machine = match["state"], match["id"]
        if state is None:
            return BlockState(text, line, match["runner"], "waiting")
        if state not in STATES:
            problem = f"{state!r} is no state"
        elif STATES[state] and machine is None:
            problem = f"{state!r} needs the id of its machine"
        elif machine is not None and not STATES[state]:
            problem = f"{state!r} has no id"
        else:
            return BlockState(text, line, match["runner"], state, machine)
        return BlockState(text, line, match["runner"], problem=problem)
    if " " not in text and (_meant(text) or any(text.startswith((f"{name}:", f"{name}/")) for name in runners)):
        return BlockState(text, line, problem="this is no tag of a runner")
    return None


def _meant(text: str) -> bool:
    """Whether an info string was meant as a tag: it ends in a state, or has one before a slash."""
    head, slash, _ = text.partition("/")
    name = next((state for state in STATES if head.casefold().endswith(state)), None)
    return name is not None and (bool(slash) or len(head) > len(name) or ":" in text)


def _runners(page: Page) -> frozenset[str]:
    seen = {
        match["runner"] for fence in page.fences() if (match := _TAG.fullmatch(fence.info)) and match["state"] in STATES
    }
    return frozenset({*RUNNERS, *seen})


def _launches(fence: Fence, section: int, state: BlockState | None, before: tuple[Prose, ...]) -> list[Launch]:
    if state is None and fence.info.casefold() not in SHELLS:
        return []
    text = "\n".join(fence.lines)
    if not re.search(r"python|torchrun|deepspeed|accelerate", text):
        return []
    lines = fence.lines
    if fence.info.casefold() in ("console", "shell-session", "shellsession", "terminal"):
        lines = _prompted(lines)
    commands: list[Command] = []
    machines: list[str | None] = []
    for command in parse(lines, fence.first_line):
        quotes = any('"' in word.raw or "'" in word.raw for word in command.words)
        calls = quotes and command.name not in _TALKERS and _launcher(command) is None
        inner = command.inner() if calls else ()
        if any(_launcher(each) is not None for each in inner):
            machine = next((word.text for word in command.words[1:] if re.fullmatch(r"[\w.@-]+", word.text)), "")
            commands += inner
            machines += [machine] * len(inner)
        else:
            commands.append(command)
            machines.append(None)
    found: list[Launch] = []
    for index, command in enumerate(commands):
        launcher = _launcher(command)
        if launcher is None:
            continue
        lost: list[Option] = []
        for later in commands[index + 1 :]:
            if not later.torn:
                break
            lost += _options(later.words)[0]
        found.append(_launch(fence, section, state, before, tuple(commands), command, machines[index], lost, launcher))
    return found


def _prompted(lines: Sequence[str]) -> list[str]:
    """A pasted terminal: what stands after a prompt is a command, with its further lines; the rest is output."""
    found: list[str] = []
    joined = False
    for line in lines:
        typed = line.lstrip().startswith("$ ")
        found.append(line if typed or joined else "")
        joined = (typed or joined) and line.endswith("\\")
    return found


def _launcher(command: Command) -> tuple[str, int] | None:
    """The launcher, and where in the words its own name ends."""
    for index, word in enumerate(command.words):
        name = word.text.rpartition("/")[2]
        if name in _LAUNCHERS:
            more = command.words[index + 1].text if index + 1 < len(command.words) else ""
            return name, index + (name == "accelerate" and more == "launch")
        if _PYTHON.fullmatch(name):
            program = _program(command.words, index + 1)
            if program is None:
                return None
            module = command.words[program].text
            if module in ("torch.distributed.run", "torch.distributed.launch"):
                return "torchrun", program
            return None if module.split(".")[0] in _TOOLS else ("python", index)
        if name not in _PREFIXES and not word.text.startswith("-") and "=" not in word.text:
            return None
    return None


def _program(words: Sequence[Word], start: int) -> int | None:
    """Where the module or script stands among a launcher's arguments."""
    index = start
    while index < len(words):
        text = words[index].text
        if text in ("-m", "--module"):
            return index + 1 if index + 1 < len(words) else None
        if text == "-c":
            return None
        if not text.startswith("-"):
            return index
        bare = "=" in text or text in _WITHOUT_VALUE or not text.startswith("--")
        index += 1 if bare else 2
    return None


def _launch(
    fence: Fence,
    section: int,
    state: BlockState | None,
    before: tuple[Prose, ...],
    commands: tuple[Command, ...],
    command: Command,
    remote: str | None,
    lost: Sequence[Option],
    launcher: tuple[str, int],
) -> Launch:
    name, index = launcher
    program = _program(command.words, index + 1)
    end = len(command.words) if program is None else program
    own, _ = _options(command.words[index + 1 : end])
    options, arguments = _options(command.words[end + 1 :])
    assignments = {
        word_name: Option(word_name, word.text, word.line)
        for word_name, word in _assignments(command.assignments, command.words[:index])
    }
    settings = [item for item in assignments.values() if not SYSTEM.match(item.name)]
    by_environment = not options and len(settings) > 0
    if by_environment:
        options = [Option(item.name.lower(), item.value, item.line) for item in settings]
        assignments = {key: item for key, item in assignments.items() if item not in settings}
    return Launch(
        fence=fence,
        section=section,
        state=state,
        commands=commands,
        command=command,
        interface="environment" if by_environment else "flags",
        remote=remote,
        options=tuple(options),
        lost=tuple(lost),
        arguments=tuple(arguments),
        environment=assignments,
        launcher=name,
        launcher_options={item.name: item for item in own if item.name != "m"},
        module="" if program is None else command.words[program].text,
        before=before,
    )


def _assignments(given: Sequence[tuple[str, Word]], earlier: Sequence[Word]) -> list[tuple[str, Word]]:
    """Those before the command, and those of `env NAME=value`."""
    later = [
        (name, Word(value, word.line, value))
        for word in earlier
        for name, equals, value in [word.text.partition("=")]
        if equals and name.isidentifier()
    ]
    return [*given, *later]


def _options(words: Sequence[Word]) -> tuple[list[Option], list[Word]]:
    """Options with the values that follow them, and the arguments that are neither."""
    options: list[Option] = []
    arguments: list[Word] = []
    waiting = False
    for word in words:
        dashed = re.match(r"--?(?=[A-Za-z])", word.text) if word.raw[:1] == "-" else None
        if dashed:
            name, equals, value = word.text[dashed.end() :].partition("=")
            options.append(Option(name.replace("-", "_"), value if equals else None, word.line))
            waiting = not equals
        elif waiting and word.text.strip():
            options[-1] = Option(options[-1].name, word.text, options[-1].line)
            waiting = False
        else:
            arguments.append(word)
    return options, arguments


def _value(option: Option | None) -> str | None:
    return None if option is None else option.value
