"""``python -m benchmarks.compile_time``: what compiling an iteration costs, and when it is repaid.

One CartPole run and a stack of eight, each in a process of its own with one thread. The first
finds no program and nothing of what all programs share, the second finds the latter. Processor time
counts the compiler's processes. Then compiled and uncompiled iterations take turns, and another
trainer loads the programs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.result_page import publish, table
from benchmarks.throughput import SETTINGS

if TYPE_CHECKING:
    from ppo_lab.trainer import Trainer

_ROOT = Path(__file__).resolve().parent.parent
_LANES = (1, 8)
_ROWS_PER_LANE = 8 * 128  # env steps of one iteration
_SHARED = "shared by all programs"
_NUM_WARM_UP = 3


class Seconds(NamedTuple):
    """What something took."""

    cpu: float
    wall: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)

    @staticmethod
    def now() -> Seconds:
        """Return what this process and its finished children have taken."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return Seconds(sum(u.ru_utime + u.ru_stime for u in usages), time.perf_counter())


class Measured(NamedTuple):
    """One stack of lanes."""

    compiled: dict[str, Seconds]
    """By program; also ``_SHARED``, unless it was there."""
    load_s: float
    """Wall time, all programs."""
    cpu_s: dict[str, float]
    """Per million env steps, ``uncompiled`` and ``compiled``."""

    @property
    def own_s(self) -> float:
        """Processor time of what only this kind of stack needs."""
        return sum(took.cpu for name, took in self.compiled.items() if name != _SHARED)

    @property
    def saved_s(self) -> float:
        """Processor time that a million env steps take less when compiled."""
        return self.cpu_s["uncompiled"] - self.cpu_s["compiled"]


class _Watch(logging.Handler):
    """Notes when compiling begins and ends, from what the package logs."""

    def __init__(self) -> None:
        super().__init__()
        self.took: dict[str, Seconds] = {}
        self._begin = self._inner = Seconds.now()

    def emit(self, record: logging.LogRecord) -> None:
        now = Seconds.now()
        if record.name == "ppo_lab.library":  # in the middle of the first program
            if record.msg.startswith("compiled"):
                self.took[_SHARED] = now - self._inner
                self._begin = Seconds(*(a + b for a, b in zip(self._begin, self.took[_SHARED])))
            self._inner = now
        elif record.msg.startswith("compiled"):
            assert isinstance(record.args, tuple)
            self.took[str(record.args[0])] = now - self._begin
            self._begin = now
        else:
            self._begin = now


def _cpu_s_of(trainer: Trainer) -> float:
    """Return the processor time of an iteration."""
    begin_s = time.process_time()
    trainer.iterate()
    return time.process_time() - begin_s


def _load_s(trainer: Trainer) -> float:
    """Return the wall time that a second iteration takes more than the next one."""
    ends_s = [time.perf_counter()]
    for _ in range(3):
        trainer.iterate()
        ends_s.append(time.perf_counter())
    _, second, third = (after - before for before, after in itertools.pairwise(ends_s))
    return second - third


def measure(num_lanes: int, num_rounds: int) -> Measured:
    """Compile a stack in this process, then train with and without the programs."""
    import torch

    from ppo_lab.compose import check_jobs, register
    from ppo_lab.trainer import Trainer

    torch.set_num_threads(1)
    register()

    def trainer_of(compile_when: str) -> Trainer:
        seeds = ",".join(map(str, range(1, num_lanes + 1)))
        overrides = [*SETTINGS, "total_steps=10000000", f"compile={compile_when}", f"seed={seeds}"]
        jobs = check_jobs(overrides, is_multirun=True, config_dir=None, config_name=None)
        return Trainer([job.config for job in jobs])

    watch = _Watch()
    logger = logging.getLogger("ppo_lab")
    logger.setLevel(logging.INFO)
    logger.addHandler(watch)
    trainers = {"uncompiled": trainer_of("never"), "compiled": trainer_of("always")}
    for trainer in trainers.values():
        for _ in range(_NUM_WARM_UP):
            trainer.iterate()
    cpu_s: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(num_rounds):
        for name, trainer in trainers.items():
            cpu_s[name].append(_cpu_s_of(trainer))
    per_million = 1e6 / (num_lanes * _ROWS_PER_LANE)
    return Measured(
        watch.took,
        _load_s(trainer_of("always")),
        {name: statistics.median(own) * per_million for name, own in cpu_s.items()},
    )


def measure_apart(num_lanes: int, num_rounds: int, folder: Path) -> Measured:
    """Return ``measure`` of a fresh process with one thread and its caches in ``folder``."""
    arguments = ["--measure", str(num_lanes), "--rounds", str(num_rounds)]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PPO_LAB_CACHE": str(folder / "programs"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "compiler"),
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.compile_time", *arguments],
        cwd=_ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    compiled, load_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return Measured({name: Seconds(*took) for name, took in compiled.items()}, load_s, cpu_s)


def compile_table(measured: dict[int, Measured]) -> str:
    """Return seconds by program."""
    names = list(dict.fromkeys(name for own in measured.values() for name in own.compiled))
    rows = [
        [
            name,
            *(
                _both(own.compiled[name]) if name in own.compiled else ""
                for own in measured.values()
            ),
        ]
        for name in names
    ]
    sums = [Seconds(*map(sum, zip(*own.compiled.values()))) for own in measured.values()]
    header = ["program", *(f"lanes: {lanes}, CPU s (wall s)" for lanes in measured)]
    return table(header, [*rows, ["all", *map(_both, sums)]])


def _both(took: Seconds) -> str:
    return f"{took.cpu:.1f} ({took.wall:.1f})"


def repay_table(measured: dict[int, Measured]) -> str:
    """Return what compiled iterations save, and the env steps from which on they have repaid."""
    shared_s = sum(
        own.compiled[_SHARED].cpu for own in measured.values() if _SHARED in own.compiled
    )
    rows = [
        [
            lanes,
            f"{own.load_s * 1e3:.0f}",
            f"{own.cpu_s['uncompiled']:.1f}",
            f"{own.cpu_s['compiled']:.1f}",
            f"{own.saved_s:.1f}",
            f"{own.own_s / own.saved_s:.2f}",
            f"{(own.own_s + shared_s) / own.saved_s:.2f}",
        ]
        for lanes, own in measured.items()
    ]
    header = [
        "lanes",
        "load, ms",
        "CPU s per million env steps",
        "compiled",
        "saved",
        "repaid after million env steps",
        "with what is shared",
    ]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="iterations of each kind")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure, options.rounds)))
        return
    with tempfile.TemporaryDirectory() as name:
        measured = {n: measure_apart(n, options.rounds, Path(name)) for n in _LANES}
    text = (
        "CartPole-v1, one run and a stack of eight, one thread each: "
        f"`{' '.join(SETTINGS)}`. The one run was compiled first, with nothing in the caches; the "
        "stack found what all programs share. The first program of a process includes the "
        "compiler's imports. Processor time counts all processes; speeds are medians of "
        f"{options.rounds} iterations, with and without programs in turn."
    )
    parts = [text, compile_table(measured), repay_table(measured)]
    publish("compile_time", "Time to compile", parts, write=options.write)


if __name__ == "__main__":
    main()
