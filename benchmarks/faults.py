"""What faults cost, counted: each sub-command provokes one kind many times over.

    python -m benchmarks.faults kill [--kills 200] [--seed 1] [--only NAME] [--write]

``kill`` sends SIGKILL at random moments to runs, starts them again until they have ended, and
compares weights, optimizer, environments and metrics with those of an undisturbed run, bit by bit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.result_page import publish, table
from benchmarks.resumable import SIZES, Left, outcome, train
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.config.run import Config

__all__ = ["KINDS", "Tally", "count_kills", "in_child"]

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


def in_child(act: Callable[[], object]) -> int:
    """Call ``act`` in a forked process and return its exit status."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


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
    arguments = parser.parse_args()
    sys.exit(0 if arguments.run(arguments) else 1)


if __name__ == "__main__":
    main()
