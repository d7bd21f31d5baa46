"""Notebooks of commands, generated: sound ones of many shapes, for defects to be planted in.

A planted line carries MARK, which is taken out once its number is known.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

MARK = "⌖"
SEEDS = (11, 12, 13)


@dataclass
class Block:
    """A command block with the prose before it."""

    lead: list[str]
    options: list[tuple[str, str | None]]
    launcher: str
    fence: str
    info: str
    before: list[str] = field(default_factory=list)
    """Commands joined to it by &&."""
    variables: str = ""
    joined: bool = True
    """One option a line."""
    after: list[str] = field(default_factory=list)
    raw: list[str] | None = None
    """The lines inside, where a planted defect wrote them itself."""

    def set(self, name: str, value: str | None, mark: str = "") -> None:
        self.options = [each for each in self.options if each[0] != name] + [(name + mark, value)]

    def value(self, name: str) -> str:
        return next(value or "" for given, value in self.options if given == name)

    def lines(self) -> list[str]:
        """The lines inside the fence."""
        if self.raw is not None:
            return self.raw
        first = " && ".join([*self.before, f"{self.variables}{self.launcher}"])
        given = [f"--{name}" if value is None else f"--{name} {value}" for name, value in self.options]
        if not self.joined:
            return [" ".join([first, *given])]
        return [line + " \\" for line in [first, *(f"    {each}" for each in given)][:-1]] + [f"    {given[-1]}"]

    def text(self) -> list[str]:
        return [*self.lead, "", f"{self.fence}{self.info}", *self.lines(), self.fence.rstrip(MARK), "", *self.after]


@dataclass
class Section:
    """A comparison: arms times seeds."""

    heading: str
    words: list[str]
    blocks: list[Block]


@dataclass
class Notebook:
    """A whole notebook."""

    sections: list[Section]

    @property
    def blocks(self) -> list[Block]:
        return [block for section in self.sections for block in section.blocks]

    def text(self) -> str:
        lines = ["# A lab", "", "What is written here was made up.", ""]
        for section in self.sections:
            lines += [section.heading, "", *section.words, ""]
            for block in section.blocks:
                lines += block.text()
        return "\n".join(lines) + "\n"

    def render(self) -> tuple[bytes, list[int]]:
        """The file, and the numbers of the marked lines."""
        text = self.text()
        marked = [number for number, line in enumerate(text.split("\n"), 1) if MARK in line]
        return text.replace(MARK, "").encode(), marked


def notebook(shape: int) -> Notebook:
    """A sound notebook; another shape for every number."""
    random = Random(shape)
    launcher = random.choice(
        [
            "python -m driftnet.fit",
            "torchrun --standalone --nproc_per_node 2 -m driftnet.fit",
            "python3 scripts/fit_driftnet.py",
            "accelerate launch -m driftnet.fit",
        ]
    )
    fence, info = random.choice(["```", "~~~", "````"]), random.choice(["queue:finished", "sh", "", "bash"])
    joined = random.random() < 0.7
    level = random.choice(["##", "###"])
    treatments = [[("mixer", "drift")], [("tilt", "0.25")], [("echo", None)], [("no_fusing", None)]]
    random.shuffle(treatments)
    sections: list[Section] = []
    for number in range(random.randint(2, 4)):
        arms = [[], *treatments[: random.randint(2, 4)]]
        blocks: list[Block] = []
        for index, arm in enumerate(arms):
            for seed in SEEDS:
                names = [("campaign", f"c{number}"), ("title", f"c{number}-a{index}-s{seed}")]
                word = "as it comes" if not arm else "with another " + arm[0][0].replace("_", "-")
                blocks.append(
                    Block(
                        [f"Arm {index} {word}, seed {seed}."],
                        [
                            *names,
                            ("updates", str(1000 + 10 * number)),
                            *arm,
                            ("rng", str(seed)),
                        ],
                        launcher,
                        fence,
                        info,
                        joined=joined,
                    )
                )
        words = [
            f"Question {number} is whether any arm helps.",
            "",
            "Hypothesis: the second arm will be better than the first.",
            "",
            f"Result: validation loss 0.0{number + 1} nats lower over 3 seeds.",
            "",
            "---",
        ]
        sections.append(Section(f"{level} Question {number}", words, blocks))
    return Notebook(sections)
