"""winnow prune and winnow generate on a tiny study: what is printed, what is refused."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.cli.tiny import winnow as command
from tests.cli.tiny import write_study

ARMS = 'arms.selective = { model.attention = { kind = "selective" } }\n'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("pruned")
    path = write_study(
        found,
        ARMS,
        changes={"lr = 0.01": "lr = 0.03", "seeds = [0, 1, 2]": "seeds = [0, 1]", "looks = [2, 3]": "looks = [2]"},
    )
    assert command("run", path.name, "--jobs", 1, cwd=found).code == 0
    return found


def test_a_curve_of_all_seeds_as_text_csv_json_and_picture(folder: Path) -> None:
    asked = ("prune", "tiny/selective", "--keep", "1/2", "--keep", "0.125", "--policy", "votes", "--policy", "h2o")
    text = command(*asked, "--target-loss-of", "tiny/control", "--step", 5, cwd=folder)
    assert text.code == 0, text.err
    head, names, full, half, eighth = text.out.splitlines()[:5]
    assert head == "tiny/selective: loss in nats per token, context 16, 2 seeds, ± 1 sd"
    assert names.split() == ["keep", "keys", "votes", "h2o"]
    assert [row.split()[:2] for row in (full, half, eighth)] == [["all", "16"], ["1/2", "8"], ["1/8", "2"]]
    assert "smallest memory at the loss of tiny/control" in text.out
    found = json.loads(command(*asked, "--json", "--plot", "curve.png", cwd=folder).out)
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert found["files"] == ["curve.png"]
    assert [run["name"] for run in found["runs"]] == ["tiny/selective/0", "tiny/selective/1"]
    for run in found["runs"]:
        shown = json.loads(command("show", run["run"], "--json", cwd=folder).out)
        assert run["unpruned"] == shown["record"]["final"]["val/ce"]
        assert run["target"] is None
        assert run["parity"] == {}
        assert {(row["policy"], row["keep"]) for row in run["curve"]} == {
            (p, k) for p in ("votes", "h2o") for k in (0.5, 0.125)
        }
        (path,) = run["curve"][0]["budgets"]
        assert path == "blocks.0.attention"
        eight = next(row for row in run["curve"] if (row["policy"], row["keep"]) == ("votes", 0.5))
        assert eight["memory"] == pytest.approx(9 * (2 * 2 * 8 * 4 + 4 + 4) / (16 * 2 * 2 * 8 * 4))
    rows = list(csv.DictReader(command(*asked, "--csv", cwd=folder).out.splitlines()))
    assert len(rows) == 8
    assert float(rows[0]["loss"]) == found["runs"][0]["curve"][0]["loss"]


def test_memory_at_the_loss_of_another_run(folder: Path) -> None:
    """The run's own loss can always be reached; a better one never."""
    own = ("--target-loss-of", "tiny/selective", "--json", "--keep", "1/2")
    (run,) = json.loads(command("prune", "tiny/selective/0", *own, cwd=folder).out)["runs"]
    assert set(run["parity"]) == {"votes", "anew", "window", "h2o"}
    votes = run["parity"]["votes"]
    assert votes["uniform"]["loss"] <= run["target"] == run["unpruned"]
    assert votes["by_layer"]["loss"] <= run["target"]
    assert run["parity"]["window"]["by_layer"] == {}
    (alike,) = json.loads(command("prune", "tiny/selective/0", *own, "--uniform", cwd=folder).out)["runs"]
    assert alike["parity"]["votes"] == {"uniform": votes["uniform"], "by_layer": {}}
    losses = {
        seed: json.loads(command("show", f"tiny/selective/{seed}", "--json", cwd=folder).out)["record"]["final"][
            "val/ce"
        ]
        for seed in (0, 1)
    }
    worse, better = sorted(losses, key=lambda seed: -losses[seed])
    never = ("--target-loss-of", f"tiny/selective/{better}", "--keep", "1/2", "--record", "never")
    told = command("prune", f"tiny/selective/{worse}", *never, cwd=folder)
    shown = json.loads(command("show", f"never/selective/{worse}", "--json", cwd=folder).out)["record"]["final"]
    assert {value for name, value in shown.items() if name.startswith("memory/")} == {1.0}
    assert {value for name, value in shown.items() if name.startswith("log2-")} == {0.0}
    assert "none" in told.out
    assert "the full cache's loss is above it" in told.out


def test_memory_at_parity_is_recorded_and_decides_claims(folder: Path) -> None:
    """A recorded study reads what `--record` wrote; nothing is written twice, and another arm's run is not taken."""
    (folder / "parity.toml").write_text(
        'id = "parity"\nruns = "recorded"\nseeds = [0, 1]\nlooks = [2]\ncontrol = "selective"\n'
        'endpoint = { metric = "log2-memory/window/uniform", better = "lower" }\n'
        'arms.selective = { run = "tiny/selective" }\narms.control = { run = "tiny/control" }\n'
        'claims.less = "selective better-than control on log2-memory/window/uniform smallest 0.5"\n'
    )
    assert command("check", "parity.toml", cwd=folder).code == 0
    asked = ("prune", "tiny/selective", "--keep", "1/2", "--target-loss-of", "tiny/selective/0", "--record", "parity")
    told = json.loads(command(*asked, "--json", cwd=folder).out)["runs"]
    for run in told:
        shown = json.loads(command("show", f"parity/selective/{run['seed']}", "--json", cwd=folder).out)["record"]
        memory = {name: value for name, value in shown["final"].items() if not name.startswith("log2-")}
        assert shown["config"]["digest"] == run["run"]
        assert set(memory) == {
            "memory/votes/uniform",
            "memory/votes/by-layer",
            "memory/window/uniform",
            "memory/h2o/uniform",
        }
        for name, value in memory.items():
            _, policy, way = name.split("/")
            kept = run["parity"][policy]["by_layer" if way == "by-layer" else way]
            assert value == (kept["memory"] if kept else 1.0), name
            assert shown["final"][f"log2-{name}"] == math.log2(value)
    assert "selective" in command("table", "parity.toml", cwd=folder).out
    again = command(*asked, cwd=folder)
    assert (again.code, again.out) == (2, "")
    assert "error: --record: parity/selective/0 is recorded already" in again.err
    other = ("prune", "tiny/control", "--target-loss-of", "tiny/selective/0", "--record", "parity", "--uniform")
    assert command(*other, cwd=folder).code == 0
    ((verdict,),) = (
        study["verdicts"] for study in json.loads(command("compare", "parity.toml", "--json", cwd=folder).out)
    )
    assert (verdict["claim"]["id"], verdict["n"]) == ("less", 2)


def test_text_is_generated_from_a_small_cache(folder: Path) -> None:
    asked = ("generate", "tiny/selective/0", "--prompt", "the ", "--seed", 3)
    ended = command(*asked, "--budget", "1/4", cwd=folder)
    assert ended.code == 0, ended.err
    assert ended.out.startswith("the ")
    assert "cache of 4 of 16 keys a layer" in ended.err
    assert "tokens/s" in ended.err
    assert ended.out == command(*asked, "--budget", 4, cwd=folder).out
    found = json.loads(command(*asked, "--prompt", "select", "--tokens", 5, "--json", cwd=folder).out)
    assert [text["prompt"] for text in found["texts"]] == ["the ", "select"]
    assert found["cache_bytes"] == 2 * 16 * (2 * 2 * 8 * 4 + 4 + 4)
    assert found["tokens"] <= 10
    both = command(*asked, "--prompt", "select", "--tokens", 5, cwd=folder).out
    assert both.splitlines()[0] == "prompt 0"
    greedy = [command(*asked, "--temperature", 0, "--seed", seed, cwd=folder).out for seed in (1, 2)]
    assert greedy[0] == greedy[1]
    assert command("generate", "tiny/control/0", "--budget", 3, cwd=folder).code == 0
    told = command(*asked, "--budget", 3, "--policy", "anew", cwd=folder).err
    assert "cache of all 16 keys a layer, of which a query reads 3: " in told


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("prune tiny/control/0 --policy votes", "error: --policy: votes goes by votes, and tiny/control/0 casts none"),
        (
            "prune tiny/selective/0 tiny/control/0 --policy anew",
            "error: --policy: anew goes by votes, and tiny/control/0",
        ),
        ("prune tiny/selective/0 --keep 0", "error: --keep: '0' is no part of the context"),
        ("prune tiny/selective/0 --keep 9/8", "error: --keep: '9/8' is no part of the context"),
        ("prune tiny/selective/0 --keep half", "error: --keep: 'half' is no part of the context"),
        ("prune tiny/selective/0 --keep 1/0", "error: --keep: '1/0' is no part of the context"),
        ("prune tiny/selective/0 --step 0", "error: --step: 0 keys"),
        ("prune tiny/selective/0 --tokens 99999999", "error: evaluation.tokens: 99999999 validation tokens"),
        ("prune tiny/nothing", "error: no run of 'tiny/nothing' has finished"),
        ("prune tiny/selective/7", "error: there is no run 'tiny/selective/7'"),
        ("prune tiny/selective/0 --plot curve.pdf", "error: --plot: 'curve.pdf' is not a PNG file"),
        ("prune tiny/selective/0 --record parity", "error: --record: there is no loss to keep up with"),
        ("prune tiny/selective/0 --target-loss-of tiny/control --record a/b", "error: --record: study 'a/b' is not"),
        (
            "prune tiny/selective/0 tiny/selective tiny/control --record x --target-loss-of tiny/control --csv --json",
            "error: --csv: one form at a time",
        ),
        ("prune tiny/selective/0 --csv --json", "error: --csv: one form at a time"),
        ("prune tiny/selective/0 --target-loss-of tiny/no/0", "error: --target-loss-of: there is no run 'tiny/no/0'"),
        ("generate tiny/selective/0 --prompt 1234567890123456", "error: --prompt: 17 tokens"),
        ("generate tiny/selective/0 --prompt 123456789012345", "error: --prompt: 16 tokens"),
        ("generate tiny/selective/0 --prompt a\0b", "error: --prompt: the text holds a NUL character"),
        ("generate tiny/selective/0 --prompt \udcff", "error: --prompt: the text is not Unicode"),
        ("generate tiny/selective/0 --prompt 1 --tokens 15", "error: --tokens: 15 new tokens"),
        ("generate tiny/selective/0 --tokens 0", "error: --tokens: 0 new tokens"),
        ("generate tiny/selective/0 --budget 0", "error: --budget: a budget of 0 keys; keep at least 1"),
        ("generate tiny/selective/0 --budget -1/2", "error: --budget: '-1/2' is no number of keys"),
        ("generate tiny/selective/0 --budget 1,2", "error: --budget: 2 budgets for 1 layers"),
        (
            "generate tiny/control/0 --budget 4 --policy votes",
            "error: --policy: votes goes by votes, and the run casts",
        ),
        ("generate tiny/selective/0 --policy votes", "error: --policy: nothing goes without a budget"),
        ("generate tiny/selective/0 --temperature -1", "error: --temperature: -1.0 is not permitted"),
        ("generate tiny/selective/0 --top-k 0", "error: --top-k: 0 is not permitted"),
        ("generate tiny/selective/0 --top-p 2", "error: --top-p: 2.0 is not permitted"),
    ],
)
def test_what_is_refused(folder: Path, asked: str, said: str) -> None:
    ended = command(*asked.split(), cwd=folder)
    assert ended.code == 2
    assert ended.err.strip().splitlines()[-1].startswith(said)


def test_check_refuses_pruned_losses_that_cannot_be_measured(tmp_path: Path) -> None:
    changes = {"tokens = 256 }": "tokens = 256, prune = [{ keep = [0.5] }] }", "n_layers = 1": "n_layers = 2"}
    arm = 'arms.residual = { model.attention = { kind = "selective", residual_scores = true } }\n'
    path = write_study(tmp_path, arm, changes=changes)
    ended = command("check", path.name, cwd=tmp_path)
    assert ended.code == 2
    said = "error: tiny.toml:9: base.evaluation.prune: prune/votes/0.5/ce cannot be measured: under residual scores"
    assert ended.err.splitlines()[0].startswith(said)


def test_a_damaged_checkpoint_and_another_text_are_refused(folder: Path, tmp_path: Path) -> None:
    here = tmp_path / "copy"
    shutil.copytree(folder, here)
    name = "tiny/selective/0"
    shown: dict[str, Any] = json.loads(command("show", name, "--json", cwd=here).out)
    newest = sorted((Path(here / "winnow-store") / "runs" / shown["digest"] / "checkpoints").glob("step-*"))[-1]
    weights = newest / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    for asked in (("prune", name), ("generate", name)):
        ended = command(*asked, cwd=here)
        assert ended.code == 2
        assert "has a damaged checkpoint: step-00000006: weights.safetensors is damaged" in ended.err


def test_a_text_that_has_changed_is_refused(tmp_path: Path) -> None:
    path = write_study(tmp_path, changes={"seeds = [0, 1, 2]": "seeds = [0]", "looks = [2, 3]": "looks = [1]"})
    assert command("run", path.name, "--jobs", 1, cwd=tmp_path).code == 0
    with (tmp_path / "text.txt").open("a") as text:
        text.write("one more line\n")
    ended = command("prune", "tiny/control/0", cwd=tmp_path)
    assert ended.code == 2
    assert "has changed since; give the text that it was trained on" in ended.err
