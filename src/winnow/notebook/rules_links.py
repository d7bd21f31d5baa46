"""Rules about links: what they lead to, and what they give away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

from winnow.notebook.pages import Prose
from winnow.notebook.results import anchor
from winnow.notebook.rules import Found, Reading, rule
from winnow.records.provenance import REDACTED

_LINK = re.compile(r"(?P<image>!)?\[(?P<text>[^\[\]]*)\]\(\s*<?(?P<target>[^\s)>]+)>?(?:\s+[\"'(][^)]*)?\)")
_SECRET_KEYS = re.compile(
    r"(?:access|auth|api|id|refresh|session)?_?-?(?:token|key|secret|password|passwd|pwd|sig|signature)|x-amz-(?:signature|credential|security-token)|sas|apikey",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|xox[abp]-[\w-]{10,}|GHSAT0[A-Z0-9]{20,})\b"
)
_ASSIGNED = re.compile(r"(?:TOKEN|API_KEY|SECRET|PASSWORD)=(?!['\"]?[$<])['\"]?[^\s'\"$]{8,}")
_ADDRESS = re.compile(r"https?://[^\s<>)\]\"']+")


@rule(
    "credential",
    "error",
    "a credential in the page: whoever reads it has it, and it stays in the history",
    "revoke it, and give the address without it",
)
def credential(reading: Reading) -> Iterator[Found]:
    whole = "\n".join(reading.page.lines)
    spelled = [pattern for pattern in (_SECRET, _ASSIGNED) if pattern.search(whole)]
    for line, text in enumerate(reading.page.lines, 1):
        named = list(_in_addresses(text)) if "://" in text else []
        for pattern in spelled if not named else ():
            match = pattern.search(text)
            if match:
                named.append(f"what begins with {match.group()[:6]!r}")
        if named:
            yield Found(line, named[0])


def _in_addresses(text: str) -> Iterator[str]:
    for match in _ADDRESS.finditer(text):
        try:
            address = urlsplit(match.group())
        except ValueError:  # brackets that are no IPv6 address
            continue
        if ":" in address.netloc.rpartition("@")[0]:
            yield "a password in an address"
        for key, value in parse_qsl(address.query):
            if _SECRET_KEYS.fullmatch(key) and len(value) >= 8 and not REDACTED.startswith(value):
                yield f"the parameter {key!r} of an address"


@rule("link-broken", "warning", "a link or picture to a file that does not exist", "mend the path, or add the file")
def link_broken(reading: Reading) -> Iterator[Found]:
    folder = reading.page.path.parent
    for line, match in _links(reading):
        target = unquote(match["target"].split("#")[0].split("?")[0])
        if not target or re.match(r"[A-Za-z][\w+.-]*:|//|/", target) or reading.is_winnows(line):
            continue
        try:
            there = (folder / target).exists()
        except (OSError, ValueError):
            there = False
        if not there:
            yield Found(line, f"{'picture' if match['image'] else 'link to'} {target!r}")


@rule("link-anchor", "warning", "a link to a heading that the page does not have", "mend what follows the #")
def link_anchor(reading: Reading) -> Iterator[Found]:
    anchors = _anchors(reading)
    for line, match in _links(reading):
        target = match["target"]
        if target.startswith("#") and len(target) > 1 and unquote(target[1:]).casefold() not in anchors:
            yield Found(line, f"no heading {target!r}")


def _anchors(reading: Reading) -> set[str]:
    """Of the headings, as GitHub makes them, of HTML, and of results, written already or not."""
    found = {anchor(item.cell.study).casefold() for item in reading.cells if item.cell.study is not None}
    seen: dict[str, int] = {}
    for section in reading.page.sections:
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", section.title).casefold()
        name = re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", plain).strip())
        n = seen.get(name, 0)
        seen[name] = n + 1
        found.add(f"{name}-{n}" if n else name)
    for _, item in _texts(reading):
        found.update(given.casefold() for given in re.findall(r"(?:id|name)=[\"']([^\"']+)[\"']", item.text))
    return found


@rule(
    "evidence-shared",
    "notice",
    "one address cited for several results: what it shows can have changed between them",
    "store the numbers beside each result",
)
def evidence_shared(reading: Reading) -> Iterator[Found]:
    """Every address once a line: a result and a summary may hold the same words."""
    seen: dict[str, int] = {}
    cited = {
        (line, match["target"])
        for _, result in reading.results
        for line, text in reading.numbered(result)
        for match in _LINK.finditer(text)
        if match["target"].startswith("http")
    }
    for line, address in sorted(cited):
        if address in seen:
            yield Found(line, f"also cited on line {seen[address]}", (seen[address],))
        seen.setdefault(address, line)


@rule("heading-repeated", "notice", "two headings of one text: a link reaches the first of them", "tell them apart")
def heading_repeated(reading: Reading) -> Iterator[Found]:
    """On one level under one parent: `Results` under each of several experiments is no repetition."""
    seen: dict[tuple[str, ...], int] = {}
    path: list[tuple[int, str]] = []
    for section in reading.page.sections:
        if section.heading is None:
            continue
        while path and path[-1][0] >= section.level:
            path.pop()
        path.append((section.level, section.title.casefold()))
        key = tuple(title for _, title in path)
        if key in seen:
            yield Found(section.line, f"{section.title!r} stands on line {seen[key]} too", (seen[key],))
        seen.setdefault(key, section.line)


def _texts(reading: Reading) -> Iterator[tuple[int, Prose]]:
    for index, section in enumerate(reading.page.sections):
        for item in section.items:
            if isinstance(item, Prose) and item.kind in ("paragraph", "item", "quote", "table", "html"):
                yield index, item


def _links(reading: Reading) -> Iterator[tuple[int, re.Match[str]]]:
    for section in reading.page.sections:
        if section.heading is not None:
            yield from ((section.line, match) for match in _LINK.finditer(_shown(section.title)))
    for _, item in _texts(reading):
        if item.kind != "html":
            for line, text in item.numbered():
                yield from ((line, match) for match in _LINK.finditer(_shown(text)))


def _shown(text: str) -> str:
    """A line without what stands in backticks: a link there is none."""
    return re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", text)
