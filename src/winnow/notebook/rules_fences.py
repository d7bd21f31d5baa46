"""Rules about fences and the states of their blocks."""

from __future__ import annotations

import re
from collections.abc import Iterator

from winnow.notebook.launches import Launch
from winnow.notebook.pages import Fence
from winnow.notebook.rules import Found, Reading, rule

_LANGUAGE = re.compile(r"\{[^}]*\}|[A-Za-z0-9][\w+#.:/,*-]*")
_ATTRIBUTE = re.compile(r"\{[^}]*\}|[\w.-]+=(?:\"[^\"]*\"|'[^']*'|\S+)|[A-Za-z][\w.:/-]*")
_INLINE = re.compile(r"\s*(`{3,})(?!`)(.+?)(?<!`)\1\s*")
_ENDED = {
    "finished": re.compile(r"\b(?:DONE|done|finished|completed)\b"),
    "unfinished": re.compile(r"\b(?:not done|not finished|unfinished|still running)\b", re.IGNORECASE),
    "stopped": re.compile(r"\b(?:KILLED|killed|stopped early|aborted|cancelled|canceled)\b"),
    "failed": re.compile(r"\b(?:failed|crashed)\b", re.IGNORECASE),
}
"""Words by which prose says how a block ended, tried in this order but for the first."""
_CONTRADICTED = {
    "finished": ("unfinished", "failed", "stopped"),
    "succeed": ("unfinished", "failed", "stopped"),
    "running": ("finished", "failed", "stopped"),
    "fail": ("finished", "unfinished"),
}


@rule("fence-open", "error", "a fence that is never closed", "close it with as many backticks as opened it")
def fence_open(reading: Reading) -> Iterator[Found]:
    for fence in reading.page.fences():
        if not fence.closed:
            yield Found(fence.opening_line, f"the fence opened here runs on to line {fence.last_line}, the end")


@rule(
    "fence-first-line",
    "error",
    "content on the opening line of a fence, where Markdown reads a language and shows nothing",
    "put the content on a line of its own, below the backticks",
)
def fence_first_line(reading: Reading) -> Iterator[Found]:
    for fence in reading.page.fences():
        if _is_content(fence):
            yield Found(fence.opening_line, f"the page does not show {_short(fence.info)}")


def _is_content(fence: Fence) -> bool:
    info = re.sub(r"^\{[^}]*\}\s*", "", fence.info)  # {.python .numberLines}
    if not info:
        return False
    first, *rest = info.split()
    if not _LANGUAGE.fullmatch(first) or re.search(r"\s=\s|[;)]$|\w\(", info):
        return True
    attributes = _ATTRIBUTE.findall(" ".join(rest))
    plain = [word for word in attributes if "=" not in word and not word.startswith("{")]
    return len(plain) > 3 or (len(plain) > 2 and bool(re.search(r"\s[\d.]+(?:\s|$)", info)))


@rule(
    "fence-inline",
    "notice",
    "a command between triple backticks on one line: Markdown shows it inside the paragraph",
    "put the backticks on lines of their own, above and below",
)
def fence_inline(reading: Reading) -> Iterator[Found]:
    for _, item in reading.prose:
        for line, text in item.numbered():
            if _INLINE.fullmatch(text):
                yield Found(line, "this is no code block, though it is written like one")


@rule(
    "fence-closing",
    "notice",
    "a fence closed by more backticks than opened it: simpler readers run on past it",
    "close it with as many backticks as opened it",
)
def fence_closing(reading: Reading) -> Iterator[Found]:
    for fence in reading.page.fences():
        if fence.closed and len(fence.closing) > len(fence.markup):
            said = f"{len(fence.closing)} characters close what {len(fence.markup)} opened"
            yield Found(fence.last_line, said, (fence.opening_line,))


@rule(
    "state-unknown",
    "error",
    "a tag that is no state: the runner passes the block over",
    "write RUNNER, RUNNER:verified, RUNNER:finished, or RUNNER:running/ID, :fail/ID, :succeed/ID",
)
def state_unknown(reading: Reading) -> Iterator[Found]:
    for state in reading.states:
        if state.problem is not None:
            yield Found(state.line, f"{state.text!r}: {state.problem}")


@rule("state-running", "notice", "a block left in running", "see what became of its machine, and write it down")
def state_running(reading: Reading) -> Iterator[Found]:
    for state in reading.states:
        if state.state == "running":
            yield Found(state.line, f"still marked as running, on {state.machine}")


@rule(
    "state-impossible",
    "error",
    "a block marked as finished whose last command cannot succeed",
    "join its lines, run it again, and mark it then",
)
def state_impossible(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        last = launch.commands[-1]
        if launch.state is not None and launch.state.state in ("finished", "succeed") and last.torn:
            said = f"marked as {launch.state.state}, and its last command is {_short(last.words[0].text)}"
            yield Found(launch.line, said, (last.line,))


@rule(
    "state-contradicted",
    "error",
    "the prose says that a block ended otherwise than its state does",
    "keep the one that is true",
)
def state_contradicted(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        if launch.state is None or launch.state.state not in _CONTRADICTED:
            continue
        said = _said(launch)
        if said is not None and said[1] in _CONTRADICTED[launch.state.state]:
            yield Found(launch.line, f"marked as {launch.state.state}, and line {said[0]} says {said[2]!r}", (said[0],))


@rule(
    "state-in-prose",
    "notice",
    "how a block ended stands in the prose alone",
    "write the state behind the backticks that open the block, where tools find it",
)
def state_in_prose(reading: Reading) -> Iterator[Found]:
    for launch in reading.launches:
        said = _said(launch) if launch.state is None else None
        if said is not None:
            yield Found(said[0], f"{said[2]!r}, and the block on line {launch.line} has no state", (launch.line,))


def _said(launch: Launch) -> tuple[int, str, str] | None:
    """Line, kind and words by which the prose right before a block says how it ended: in brackets, or in capitals."""
    for item in reversed(launch.lead):
        for line, text in item.numbered() if item.is_text else ():
            for part in re.findall(r"\(([^()]*)\)|\b(DONE|KILLED|FAILED|CRASHED|RUNNING)\b", text):
                said = part[0] or part[1]
                for kind in ("unfinished", "stopped", "failed", "finished"):
                    match = _ENDED[kind].search(said) or (part[1] and _ENDED[kind].search(said.lower()))
                    if match:
                        return line, kind, match.group()
    return None


@rule(
    "state-missing",
    "warning",
    "a block without a state among blocks of its kind that have one: nobody can tell whether it ran",
    "write its state behind the backticks that open it",
)
def state_missing(reading: Reading) -> Iterator[Found]:
    """Of its kind: the same program, started the same way on as many processes, after the first block with a state."""
    tagged = [launch for launch in reading.launches if launch.state is not None and launch.state.state]
    kinds = {_kind(launch): launch.line for launch in reversed(tagged)}
    for launch in reading.launches:
        if launch.state is None and not launch.fence.info and kinds.get(_kind(launch), launch.line) < launch.line:
            first = kinds[_kind(launch)]
            yield Found(launch.line, f"no state; blocks like it have one from line {first} on", (first,))


def _kind(launch: Launch) -> tuple[str, ...]:
    before = [" ".join(word.text for word in command.words[:2]) for command in launch.commands[:-1]]
    return (launch.module, launch.launcher, str(launch.processes), str(launch.remote), *before)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
