"""A process that imports torch once and forks the ranks of a run for each request line.

Lines in: {"config", "seed", "ranks", "parallel", "steps", "from"?: folder of a checkpoint to go on from,
"to"?: folder to save one in, "parent"?: {"config", "from"} that `config.init_from` stands for, "timeout"?: seconds}.
Lines out: what rank 0 saw, see `lead`; what a rank raised goes to `error`.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from tests.train import mechanisms, rank_parts
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from winnow.attention import AttentionConfig
from winnow.tasks.base import TaskConfig
from winnow.train import checkpoint
from winnow.train.checkpoint import Snapshot
from winnow.train.config import RunConfig
from winnow.train.device import prepare
from winnow.train.distributed import joined
from winnow.train.group import ALONE, Group
from winnow.train.loop import Loop, build_task
from winnow.train.ranks import LOOPBACK
from winnow.train.start import Parent

CPU = torch.device("cpu")
AttentionConfig.members["charged"] = mechanisms.CHARGED
AttentionConfig.members["one-sided"] = rank_parts.ONE_SIDED
TaskConfig.members["masked"] = rank_parts.MASKED


def lead(asked: dict[str, Any], group: Group) -> dict[str, Any]:
    """Do what is asked for, alone or as rank 0."""
    config = RunConfig.model_validate(asked["config"])
    loop = Loop(config, seed=asked["seed"], device=CPU, group=group, parent=parent_of(asked, config))
    if "from" in asked:
        loop.restore(newest(asked["from"]))
    evaluations, insides, updates = [], [], []
    while loop.step < asked["steps"]:
        evaluations += [loop.evaluate()] if loop.evaluation_due else []
        insides += [loop.look_inside()] if loop.look_due else []
        measured = loop.update()
        updates.append(measured.metrics())
        if not measured.finite:
            return {"updates": updates, "explained": loop.explain().where}
    findings = [] if asked["steps"] < config.train.steps else loop.findings_at_end(loop.evaluate())
    snapshot = loop.snapshot(0, {})
    if "to" in asked:
        checkpoint.save(Path(asked["to"]), "0" * 16, snapshot)
    weights = {name: tensor.double().norm().item() for name, tensor in snapshot.weights.items()}
    moments = {name: tensor.double().norm().item() for name, tensor in snapshot.moments.items()}
    return {
        "updates": updates,
        "evaluations": evaluations,
        "insides": insides,
        "findings": [finding.rule + ": " + finding.message for finding in [*loop.watch.found, *findings]],
        "weights": weights,
        "moments": moments,
        "digest": checkpoint.weights_digest(snapshot.weights),
        "unseen": loop.gradients.unseen,
        "ratios": loop.ratios.dump(),
    }


def newest(folder: str) -> Snapshot:
    found = checkpoint.load_newest(Path(folder), "0" * 16).snapshot
    assert found is not None
    return found


def parent_of(asked: dict[str, Any], config: RunConfig) -> Parent | None:
    """What the run starts from: a checkpoint of another config's, as a store would have it."""
    if "parent" not in asked:
        return None
    assert config.init_from is not None
    before = RunConfig.model_validate(asked["parent"]["config"])
    task = build_task(before.task)[0]
    return Parent(
        "the parent",
        config.init_from.identity,
        before.grown,
        newest(asked["parent"]["from"]),
        task.vocab_size,
        before.task.context,
        config=before,
        seed=asked["seed"],
        data=task.digest,
    )


def rank_of(asked: dict[str, Any], rank: int, port: int, answers: int) -> None:
    try:
        with joined(rank, asked["ranks"], port, asked["parallel"], CPU, asked.get("timeout", 60.0)) as group:
            if rank:
                config = RunConfig.model_validate(asked["config"])
                group.follow(lambda: Loop(config, seed=asked["seed"], device=CPU, group=group))
            else:
                answer = lead(asked, group)
                group.end()
                os.write(answers, json.dumps(answer).encode())
    except BaseException as error:
        if rank == asked.get("tells", 0):
            os.write(answers, json.dumps({"error": "".join(traceback.format_exception(error))}).encode())
        os._exit(1)
    os._exit(0)


def ranks_of(asked: dict[str, Any]) -> dict[str, Any]:
    """Fork the ranks, wait for them, hand on the answer."""
    reading, writing = os.pipe()
    children, tellings = [], []
    for rank in range(asked["ranks"]):
        told, telling = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            rank_of(asked, rank, int(os.read(told, 16)), writing)
        os.close(told)
        children.append(child)
        tellings.append(telling)
    # After the forks: a child of a process with the store's thread could inherit a lock that nobody lets go.
    store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    for telling in tellings:
        os.write(telling, str(store.port).encode())
        os.close(telling)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read()
    for child in children:
        os.waitpid(child, 0)
    return json.loads(answer)


def alone(asked: dict[str, Any]) -> dict[str, Any]:
    """The same in a process that is alone."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.write(writing, json.dumps(lead(asked, ALONE)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as answers:
        answer = answers.read()
    os.waitpid(child, 0)
    return json.loads(answer)


def main() -> None:
    prepare(1)
    torch.set_num_interop_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo0" if sys.platform == "darwin" else "lo"
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(alone(asked) if asked["ranks"] == 1 else ranks_of(asked)), flush=True)


if __name__ == "__main__":
    main()
