"""What faults cost, counted: each sub-command provokes one kind many times over.

    python -m benchmarks.faults kill [--kills 200] [--seed 1] [--only NAME] [--write]
    python -m benchmarks.faults damage [--times 2000] [--seed 1] [--write]
    python -m benchmarks.faults memory [--write]

``kill`` sends SIGKILL at random moments to runs, starts them again until they have ended, and
compares weights, optimizer, environments and metrics with those of an undisturbed run, bit by bit.
``damage`` flips bits of checkpoints and policies, and cuts their files off. ``memory`` runs studies
a third of whose trials is out of memory.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load

from benchmarks.result_page import publish, table
from benchmarks.resumable import (
    SIZES,
    Left,
    in_child,
    left_by,
    outcome,
    train,
    train_alone,
)
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config
from ppo_lab.envs.gymnasium_env import env_seeds
from ppo_lab.training.checkpoint import Checkpoint, load_checkpoint
from ppo_lab.training.policy import load_policy

__all__ = ["KINDS", "Tally", "count_kills"]

_COMMON = (*SIZES, "network=tiny", "tracking=local", "device=cpu", "num_threads=1")


class Kind(NamedTuple):
    """A kind of run to be killed."""

    overrides: tuple[str, ...]
    num_lanes: int = 1


KINDS = {
    "native, one lane": Kind(("env=cartpole", "compile=never")),
    "native, a stack of 3": Kind(("env=cartpole", "compile=never"), num_lanes=3),
    "native, compiled": Kind(("env=cartpole", "compile=always")),
    "gymnasium": Kind(("env=cartpole", "env.backend=gymnasium", "compile=never")),
    "gymnasium, restarted at boundaries": Kind(
        ("env=gymnasium", "env.id=LunarLander-v3", "checkpoint.boundary_steps=96", "compile=never")
    ),
    "MuJoCo": Kind(("env=halfcheetah", "compile=never")),
    "memory=offloaded_optimizer": Kind(
        ("env=cartpole", "memory=offloaded_optimizer", "compile=never")
    ),
}


@dataclass
class Tally:
    """What became of the runs of a kind."""

    num_kills: int = 0
    num_runs: int = 0
    """That have ended in spite of it."""
    num_identical: int = 0
    num_doubled_rows: int = 0
    num_lost_rows: int = 0

    def count(self, found: Sequence[Left], expected: Sequence[Left]) -> None:
        """Count a stack that has ended."""
        self.num_runs += len(found)
        self.num_identical += sum(one == other for one, other in zip(found, expected))
        for one, other in zip(found, expected):
            self.num_doubled_rows += one.num_lines - len(one.rows)
            self.num_lost_rows += len(other.rows) - len(one.rows)


def count_kills(
    configs: Sequence[Config], folder: Path, *, num_kills: int, moments: random.Random
) -> Tally:
    """Kill runs of ``configs`` until there were ``num_kills``; return what became of them."""
    for attempt in ("warm", "undisturbed"):  # the first may have to compile
        begin_s = time.monotonic()
        assert in_child(partial(train, folder / attempt, configs)) == 0
    longest_s, expected = time.monotonic() - begin_s, outcome(folder / "undisturbed")
    tally = Tally()
    while tally.num_kills < num_kills:
        runs = folder / f"after_{tally.num_kills}"
        is_killed = True
        while is_killed:
            moment_s = moments.uniform(0.0, longest_s) if tally.num_kills < num_kills else None
            is_killed = in_child(partial(train, runs, configs, moment_s)) == -signal.SIGKILL
            tally.num_kills += is_killed
        tally.count(outcome(runs), expected)
    return tally


def _configs(kind: Kind) -> list[Config]:
    (job,) = check_jobs(
        [*_COMMON, *kind.overrides], is_multirun=False, config_dir=None, config_name=None
    )
    return [replace(job.config, seed=seed + 1) for seed in range(kind.num_lanes)]


def _kill(arguments: argparse.Namespace) -> bool:
    register()
    torch.set_num_threads(1)
    kinds = {arguments.only: KINDS[arguments.only]} if arguments.only else KINDS
    share = -(-arguments.kills // len(kinds))
    rows, is_exact = [], True
    for name, kind in kinds.items():
        configs = _configs(kind)
        with tempfile.TemporaryDirectory() as folder:
            moments = random.Random(arguments.seed)
            tally = count_kills(configs, Path(folder), num_kills=share, moments=moments)
        rows.append([name, *vars(tally).values()])
        is_exact &= tally.num_identical == tally.num_runs and not tally.num_doubled_rows
        print(rows[-1], file=sys.stderr)
    header = ["runs", "kills", "ended", "bit-identical", "rows doubled", "rows lost"]
    what = (
        f"Runs of {' '.join(_COMMON)}, with SIGKILL at moments drawn uniformly over the time of an "
        "undisturbed run, started again until they ended. Bit-identical: weights, moments of Adam, "
        "environments, histories, the saved policy and every value of metrics.jsonl but times."
    )
    title = "Runs that are killed and go on"
    publish("faults_kill", title, [what, table(header, rows)], write=arguments.write)
    return is_exact


def _damage(arguments: argparse.Namespace) -> bool:
    register()
    pick = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = [*_COMMON, "env=pendulum", "env.normalize_observations=true", "compile=never"]
        train_alone(words, folder)
        run = folder / "1"
        older, newest = sorted(int(path.name) for path in (run / "checkpoints").iterdir())
        known = load_checkpoint(run, at_most=older)
        assert known is not None
        checkpoint = run / "checkpoints" / str(newest)
        files = [*sorted(checkpoint.iterdir()), *sorted((run / "checkpoint").iterdir())]
        rows = []
        share = arguments.times // len(files)
        for path in files:
            content, num_noticed, num_alike = path.read_bytes(), 0, 0
            for number in range(share):
                place = pick.randrange(len(content))
                damaged = bytearray(content)
                if number % 2:
                    del damaged[place:]
                else:
                    damaged[place] ^= 1 << pick.randrange(8)
                path.write_bytes(damaged)
                is_policy = path.parent.name == "checkpoint"
                num_noticed += _is_refused(run) if is_policy else _is_passed_over(run, known)
                num_alike += path.suffix == ".safetensors" and _is_readable(bytes(damaged))
            path.write_bytes(content)
            plain = f"{num_alike:,}" if path.suffix == ".safetensors" else ""
            kind = "policy" if is_policy else "checkpoint"
            rows.append([f"{kind}: {path.name}", len(content), share, num_noticed, plain])
        assert not _is_refused(run)  # both are whole again
        assert not _is_passed_over(run, known)
    header = ["file", "bytes", "damaged", "detected", "read by safetensors alone"]
    what = (
        "A run's newest checkpoint and its policy, each file damaged by turns: one bit flipped, or "
        "cut off, at a place drawn at random. Detected: of a checkpoint, the one before it is used "
        "with all its bits and the reason is said; of a policy, `load_policy` raises `ValueError`."
    )
    publish("faults_damage", "Damaged files", [what, table(header, rows)], write=arguments.write)
    return all(row[2] == row[3] for row in rows)


def _is_passed_over(run: Path, older: Checkpoint) -> bool:
    """Return whether the newest checkpoint is passed over for ``older``, for a reason."""
    found = load_checkpoint(run)
    if found is None or found.folder != older.folder or len(found.skipped) != 1:
        return False
    mine, its = found.state.tensors, older.state.tensors
    is_same = mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in its)
    return is_same and found.state.numbers == older.state.numbers


def _is_refused(run: Path) -> bool:
    try:
        load_policy(run)
    except ValueError:
        return True
    return False


def _is_readable(content: bytes) -> bool:
    try:
        load(content)
    except SafetensorError:
        return False
    return True


_HUNGRY = (
    *("study=default", "epsilon=choice(0.1,0.3)", "study/sampler=random", "study/pruner=none"),
    *("study.name=hungry", "study.num_trials=60", "study.num_workers=2", "env=gymnasium"),
    *("env.id=benchmarks.hungry_env:Hungry-v0", "num_envs=2", "num_steps=64", "num_minibatches=2"),
    *("num_epochs=2", "total_steps=1024", "compile=never", "network=tiny", "tracking=local"),
    *("num_threads=1", "device=cpu", "tracking.terminal=plain", "checkpoint.boundary_steps=512"),
)
"""The repeats of a point have the seeds 1, 10,001, 20,001, ..."""


def _memory(arguments: argparse.Namespace) -> bool:
    register()
    torch.set_num_threads(1)
    # Ten of the first twenty repeats of each of two points.
    seeds = [env_seeds(torch.tensor([1 + 10_000 * n]), 2)[0] for n in range(1, 20, 2)]
    hungry = f"+env.kwargs.hungry=[{','.join(map(str, seeds))}]"
    rows, alone = [], dict[str, Left]()
    with tempfile.TemporaryDirectory() as name:
        for executor in ("processes", "stacked"):
            folder = Path(name) / executor
            folder.mkdir()
            words = [*_HUNGRY, hungry, f"study.executor={executor}"]
            command = [sys.executable, "-m", "ppo_lab", *words]
            begin_s = time.monotonic()
            status = subprocess.run(command, cwd=folder, check=False).returncode
            minutes = (time.monotonic() - begin_s) / 60
            counts, num_identical = Counter[str](), 0
            for path in folder.glob("outputs/studies/hungry/trials/*/result.json"):
                result = json.loads(path.read_text())
                (summary,) = result["summaries"]
                counts[result["status"]] += 1
                if result["status"] != "finished":
                    continue
                overrides, run = summary["overrides"], f"seed_{summary['seed']}"
                if (key := " ".join(overrides)) not in alone:
                    alone[key] = train_alone(overrides, Path(name) / str(len(alone)))
                num_identical += left_by(path.parent / run) == alone[key]._replace(run=run)
            rows.append([executor, counts.total(), counts["out_of_memory"], counts["finished"],
                         num_identical, status, f"{minutes:.1f}"])  # fmt: skip
    header = ["executor", "trials", "out of memory", "finished", "bit-identical to a run alone",
              "exit status", "minutes"]  # fmt: skip
    what = (
        f"Studies of `{' '.join(_HUNGRY)}`. In ten of the first twenty repeats of each point one "
        "environment asks for a PiB in its 100th step; the error is the allocator's. "
        "Bit-identical: weights, moments of Adam, environments, the saved policy and every value "
        "of metrics.jsonl but times. Lanes of a stack of several round otherwise than a run alone, "
        "from the first iteration on: about 1e-7 of a loss."
    )
    title = "Studies with trials that are out of memory"
    publish("faults_memory", title, [what, table(header, rows)], write=arguments.write)
    return all(row[1:4] == [60, 20, 40] for row in rows) and rows[0][4] == 40


def main() -> None:
    """Run a sub-command; exit with 1 if it found something lost."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(required=True)
    kill = commands.add_parser("kill", help="runs that are killed at random moments")
    kill.add_argument("--kills", type=int, default=200)
    kill.add_argument("--seed", type=int, default=1)
    kill.add_argument("--only", choices=list(KINDS))
    kill.add_argument("--write", action="store_true", help="save the page in benchmarks/results")
    kill.set_defaults(run=_kill)
    damage = commands.add_parser("damage", help="checkpoints and policies with wrong bits")
    damage.add_argument("--times", type=int, default=2000)
    damage.add_argument("--seed", type=int, default=1)
    damage.set_defaults(run=_damage)
    memory = commands.add_parser("memory", help="trials that are out of memory beside others")
    memory.set_defaults(run=_memory)
    for command in (damage, memory):
        command.add_argument("--write", action="store_true", help="save the page of results")
    arguments = parser.parse_args()
    sys.exit(0 if arguments.run(arguments) else 1)


if __name__ == "__main__":
    main()
