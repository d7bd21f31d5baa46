"""One function for each rule: it plants the defect that the rule is about into a sound notebook, and marks the line."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from tests.notebook.command_notebooks import MARK, SEEDS, Block, Notebook


def _block(notebook: Notebook, random: Random) -> Block:
    return random.choice(notebook.blocks)


def _no_backslash(made: Notebook, random: Random, blanks: str = "") -> None:
    block = _block(made, random)
    block.joined = True
    lines = block.lines()
    at = random.randrange(1, len(lines) - 1)
    lines[at] = lines[at].removesuffix(" \\") + (f" \\{blanks}" if blanks else "") + MARK
    block.raw = lines
    block.info = "sh"


def option_lost(made: Notebook, random: Random) -> None:
    _no_backslash(made, random)


def option_lost_to_blanks(made: Notebook, random: Random) -> None:
    _no_backslash(made, random, "  ")


def state_impossible(made: Notebook, random: Random) -> None:
    _no_backslash(made, random)
    block = next(each for each in made.blocks if each.raw)
    assert block.raw is not None
    block.raw = [line.replace(MARK, "") for line in block.raw]
    block.info = "queue:finished" + MARK


def option_unknown(made: Notebook, random: Random) -> None:
    _block(made, random).set("tillt", "0.5", MARK)


def option_value(made: Notebook, random: Random) -> None:
    _block(made, random).set("mixer", "drft" + MARK)


def option_removed(made: Notebook, random: Random) -> None:
    _block(made, random).set("hinge", "0.5" + MARK)


def option_meaning(made: Notebook, random: Random) -> None:
    _block(made, random).set("pull", "0.5" + MARK)


def option_two_forms(made: Notebook, random: Random) -> None:
    first, second, third = random.sample(made.blocks, 3)
    for block, value in ((first, "0.1"), (second, "0.2"), (third, None)):
        block.options.insert(2, ("pull" + (MARK if value is None else ""), value))


def option_twice(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.options += [("rate", "0.001"), ("rate", "0.003" + MARK)]


def path_private(made: Notebook, random: Random) -> None:
    _block(made, random).set("start", random.choice(["/root/x/w.pt", "/home/ann/w.pt", "~/w.pt", "/tmp/w.pt"]) + MARK)


def interface_outdated(made: Notebook, random: Random) -> None:
    made.sections[0].blocks.insert(
        0, Block(["An early try."], [], "x", "```", MARK, raw=["DN_TITLE=early DN_UPDATES=900 python fit_driftnet.py"])
    )


def run_deleted_first(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.joined = False
    block.before = [f"rm -rf {block.value('title')}" + MARK]


def checkout_stays(made: Notebook, random: Random) -> None:
    first, second = random.sample(made.blocks, 2)
    first.before, second.before = ["git pull"], ["git fetch", "git checkout 1a2b3c4d"]
    second.info += MARK


def revision_in_name(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.before = ["git checkout 1a2b3c4d"]
    block.set("title", "9f8e7d6c5" + MARK)


def code_unpinned(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    for block in section.blocks[1:]:
        block.before = ["git pull"]
    section.blocks[1].info += MARK


def devices_of_machine(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    for block in section.blocks:
        block.launcher = "torchrun --nproc_per_node=auto -m driftnet.fit"
    section.blocks[0].info += MARK


def port_reused(made: Notebook, random: Random) -> None:
    blocks = sorted(random.sample(made.blocks, 2), key=made.blocks.index)
    for block in blocks:
        block.launcher = "torchrun --master_port 4711 -m driftnet.fit"
    blocks[1].info += MARK


def state_unknown(made: Notebook, random: Random) -> None:
    first, second = random.sample(made.blocks, 2)
    first.info = "queue:finished"
    second.info = random.choice(["queuefinished/9", "queue:finnished", "queue:running", "queue/9"]) + MARK


def state_running(made: Notebook, random: Random) -> None:
    _block(made, random).info = "queue:running/9" + MARK


def state_in_prose(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.lead[0] += random.choice([" (killed)", " (not done)", " DONE", " (job 7, failed)"]) + MARK
    for each in made.blocks:
        each.info = "sh"


def state_contradicted(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.lead[0] += " (failed: no memory)"
    block.info = "queue:succeed/3" + MARK


def state_missing(made: Notebook, random: Random) -> None:
    for block in made.blocks:
        block.info = "queue:finished"
    block = random.choice(made.blocks[1:])
    block.info = MARK


def fence_closing(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.fence, block.after = "~~~~", []
    lines = block.lines()
    block.raw = [*lines, "~~~~~" + MARK, "", "And more.", "", "~~~~", "x = 1"]


def fence_first_line(made: Notebook, random: Random) -> None:
    made.sections[-1].words[1:1] = ["", f"```loss = score(x) * 2{MARK}", "more = loss", "```"]


def fence_inline(made: Notebook, random: Random) -> None:
    made.sections[-1].words[1:1] = ["", f"```python prepare.py```{MARK}"]


def fence_open(made: Notebook, random: Random) -> None:
    made.sections[-1].blocks[-1].after += ["Then this.", "", f"```text{MARK}", "never closed"]


def run_overwritten(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks[1].set("title", section.blocks[0].value("title"))
    section.blocks[1].info += MARK


def run_repeated(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks[1].set("rng", section.blocks[0].value("rng"))
    section.blocks[1].set("mixer", "plain")  # what it is anyway
    section.blocks[1].info += MARK


def run_collides(made: Notebook, random: Random) -> None:
    made.sections[1].blocks[0].set("title", made.sections[0].blocks[0].value("title"))
    made.sections[1].blocks[0].info += MARK


def seeds_unequal(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks.pop()
    section.blocks[-2].info += MARK


def seed_single(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks = [block for block in section.blocks if block.value("rng") == "11"]
    section.blocks[0].info += MARK


def seed_unmentioned(made: Notebook, random: Random) -> None:
    block = next(each for each in made.blocks if each.value("rng") == "12")
    block.lead = [f"Once more unto it.{MARK}"]
    block.set("title", "plain")


def seed_index(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    for block in section.blocks:
        n = SEEDS.index(int(block.value("rng")))
        block.set("title", block.value("title").rpartition("-")[0] + f"-run_{n}")
    section.blocks[-1].set("rng", "12")
    section.blocks[-1].info += MARK


def run_index(made: Notebook, random: Random) -> None:
    block = made.blocks[0]
    block.set("title", "wide_run_4")
    block.info += MARK


def group_of_others(made: Notebook, random: Random) -> None:
    made.sections[1].blocks[0].set("campaign", "c0" + MARK)


def warmup_outlasts(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.set("updates", "39")
    block.info += MARK


def baseline_missing(made: Notebook, random: Random) -> None:
    section = max(made.sections, key=lambda each: len(each.blocks))
    section.blocks = [
        replace(each, options=[*each.options, ("mixer", "drift"), ("tilt", f"0.{n}")])
        for n, each in enumerate(section.blocks[:3], 1)
    ]
    section.blocks[0].options.append(("echo", None))
    section.blocks[0].info += MARK


def baselines_two(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks[0].lead[0] += " (baseline)"
    section.blocks[3].lead[0] += " (baseline)"
    section.blocks[3].info += MARK


def environment_differs(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.variables = "TRACE_SUMS=1 "
    block.info += MARK


def nuisance_differs(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.set("slice", "4")
    block.info += MARK


def settings_together(made: Notebook, random: Random) -> None:
    section = made.sections[0]
    for block in section.blocks[3:6]:
        block.set("rate", "0.004")
        block.set("tokens", "8192")
    section.blocks[3].info += MARK
    section.blocks[0].lead = ["Baseline:"]


def factor_differs(made: Notebook, random: Random) -> None:
    section = random.choice(made.sections)
    section.blocks[0].lead = ["Baseline:"]
    section.blocks[1].lead = [random.choice(["Half-lr", "2x bigger lr", "Double the lr"]) + f", seed 12.{MARK}"]
    section.blocks[1].set("rate", "0.0005")


def text_steps(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.set("updates", "450")
    block.lead[0] = f"Now for 0.9k steps, seed {block.value('rng')}.{MARK}"


def text_value(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.set("tilt", "0.4")
    block.lead[0] = f"With tilt = 0.3, seed {block.value('rng')}.{MARK}"


def text_option(made: Notebook, random: Random) -> None:
    block = made.sections[0].blocks[0]
    block.lead[0] = f"With no fusing, seed {block.value('rng')}.{MARK}"


def value_never_run(made: Notebook, random: Random) -> None:
    for block in made.sections[0].blocks[:3]:
        block.set("tilt", "0.125")
    made.sections[0].words[2] = f"Hypothesis: tilt=0.75 will be better than none.{MARK}"


def hypothesis_unanswered(made: Notebook, random: Random) -> None:
    block = _block(made, random)
    block.lead += ["", f"Hypothesis: nobody will look at this one.{MARK}"]


def hypothesis_not_run(made: Notebook, random: Random) -> None:
    words = random.choice(made.sections).words
    words[2] += MARK
    words[4] = "Result: never run, loss unknown."


def result_incomplete(made: Notebook, random: Random) -> None:
    random.choice(made.sections).words[4] = f"Result: it looked fine.{MARK}"


def result_empty(made: Notebook, random: Random) -> None:
    random.choice(made.sections).words[4] = f"Result:{MARK}"


def result_open(made: Notebook, random: Random) -> None:
    words = random.choice(made.sections).words
    words[4] += f" But it is {random.choice(['unclear', 'hard to tell'])} why.{MARK}"


def result_of_another(made: Notebook, random: Random) -> None:
    words = random.choice(made.sections).words
    words[2] = "Hypothesis: drifting will be better than the echoing arm."
    words[4] = f"Result: loss 1.02 nats on 3 seeds, identical to the fused kernel.{MARK}"


def section_without_result(made: Notebook, random: Random) -> None:
    section = made.sections[-1]
    section.words = ["A question for another day."]
    section.heading += MARK


def compared_with_itself(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" The drift-2 runs were slightly better than the drift-2 runs.{MARK}"


def comparison_without_direction(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" It had much validation loss than before.{MARK}"


def artefact_lost(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" We accidentally deleted the weights.{MARK}"


def stopped_early(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" I was stopping some runs on partial curves.{MARK}"


def credential(made: Notebook, random: Random) -> None:
    secret = random.choice(["https://x.org/a.png?token=AbCdEf0123456789", "https://me:pw1234@x.org/a"])
    made.sections[0].words[4] += f" [plot]({secret}){MARK}"


def link_broken(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" ![plot](pictures/none.png){MARK}"


def evidence_shared(made: Notebook, random: Random) -> None:
    for section, mark in zip(made.sections[:2], ("", MARK), strict=True):
        section.words[4] += f" [curves](https://board.example.org/view?n=3){mark}"


def heading_repeated(made: Notebook, random: Random) -> None:
    made.sections[1].heading = made.sections[0].heading + MARK


def section_empty(made: Notebook, random: Random) -> None:
    made.sections[-1].blocks[-1].after += [f"## To do{MARK}"]


def run_not_shown(made: Notebook, random: Random) -> None:
    made.sections[0].words[4] += f" An earlier run (not shown) was lower.{MARK}"


PLANTED = {
    name.removesuffix("_to_blanks").replace("_", "-") + ("+" if name.endswith("_to_blanks") else ""): function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__annotations__", {}).get("made") == "Notebook" and name[0] != "_"
}
"""Rules, and what plants a defect for each."""
