"""Calibration of verdicts: simulated studies of known truth through the real judge, against the published rates.

    python bench/calibration.py [--studies 20000] > bench/results/calibration.md

One process, no training. The designs and ceilings are those of tests/study/test_calibration.py.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.study.simulated import Design, simulate, slack
from tests.study.test_calibration import DESIGNS, EQUAL, SIZED, STRESS

PINS = {0.0: (0.025, 0.958), -1.0: (0.47, 0.44), -2.0: (0.960, 0.022), -3.0: (1.0, None)}
"""Published rates of supported and refuted at these effects: looks 3/5/8, s = 2 sigma, d0 = 12, without the guard."""


def row(*cells: object) -> None:
    print(
        "| " + " | ".join(f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells) + " |", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--date", default=time.strftime("%Y-%m-%d"))
    options = parser.parse_args()
    studies: int = options.studies
    began = time.time()
    print(f"# Calibration of verdicts\n\n{options.date}, {studies:,} simulated studies per row, four arms unless said")
    print("otherwise, looks 3/5/8, alpha .05 two-sided. Written by `python bench/calibration.py`.\n")
    print("## No effect: false verdicts per direction (nominal .025, plus 4 binomial sd)\n")
    row("design", "false supports", "false refutations", "limit", "ok")
    row("---", "---", "---", "---", "---")
    limit = 0.025 + slack(0.025, studies)
    for name, design in DESIGNS.items():
        found = simulate(design, studies, 7)
        wrong = found.rate("supported"), found.rate("refuted")
        row(name, *wrong, limit, "yes" if max(wrong) <= limit else "NO")
    print("\n## Stress: false verdicts of both directions, against their ceilings (plus 4 binomial sd)\n")
    row("design", "false verdicts", "ceiling", "ok")
    row("---", "---", "---", "---")
    for name, (design, ceiling) in STRESS.items():
        found = simulate(design, studies, 8)
        wrong_rate = found.rate("supported") + found.rate("refuted")
        row(name, wrong_rate, ceiling, "yes" if wrong_rate <= ceiling + slack(ceiling, studies) else "NO")
    print("\n## Power of `better ... smallest 2 sigma`: supported / refuted / undecided\n")
    row("effect (sigma)", "unpaired", "expected without the guard", "paired, rho .8")
    row("---", "---", "---", "---")
    for effect, pin in PINS.items():
        effects = (0.0, effect, 0.0, 0.0)
        shown = []
        for design in (Design((SIZED,), effects, paired=False), Design((SIZED,), effects)):
            found = simulate(design, studies // 4, 9)
            shown.append(" / ".join(f"{found.rate(status):.3f}" for status in ("supported", "refuted", "undecided")))
        row(f"{effect:g}", shown[0], " / ".join("-" if value is None else f"{value:.3f}" for value in pin), shown[1])
    print("\n## Equality within 2 sigma, unpaired\n")
    row("truth (sigma)", "supported", "refuted", "expected supported")
    row("---", "---", "---", "---")
    for effect, pin in ((0.0, 0.925), (2.0, 0.024)):
        found = simulate(Design((EQUAL,), (0.0, effect, 0.0, 0.0), paired=False), studies // 2, 10)
        row(f"{effect:g}", found.rate("supported"), found.rate("refuted"), pin)
    print("\n## Four claims with no effect, Holm: any false support (limit .025, plus 4 binomial sd)\n")
    claims = tuple(f"a{k} better-than control on m smallest 2.2" for k in range(1, 5))
    for paired in (False, True):
        family = Design(claims, (0.0,) * 5, paired=paired, rho=0.5, correction="holm")
        found = simulate(family, studies // 4, 11)
        wrong_rate = found.any({f"h{k}": "supported" for k in range(4)})
        print(f"- {'paired, rho .5' if paired else 'unpaired'}: {wrong_rate:.4f}")
    print(f"\nTook {(time.time() - began) / 60:.0f} minutes on one thread.")


if __name__ == "__main__":
    main()
