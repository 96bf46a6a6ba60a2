"""``python -m benchmarks.compile_time``: compile time of an iteration, and when it pays off.

Measures one CartPole run and a stack of eight, each in a separate process with one thread: the run
first with empty caches, then with the parts that all programs share; the stack with those parts
only. Processor time includes the compiler's processes. Then compiled and uncompiled iterations are
interleaved, and another trainer loads the programs.
"""

from __future__ import annotations

import argparse
import itertools
import json
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
    from ppo_lab.training.trainer import Trainer

_ROOT = Path(__file__).resolve().parent.parent
_CASES = (("one run, nothing there", 1), ("one run", 1), ("a stack of eight", 8))
_ROWS_PER_LANE = 8 * 128  # env steps of one iteration
_NUM_WARM_UP = 3


class Seconds(NamedTuple):
    """Wall time and processor time."""

    cpu: float
    wall: float

    def __sub__(self, other: Seconds) -> Seconds:
        return Seconds(self.cpu - other.cpu, self.wall - other.wall)

    @staticmethod
    def now() -> Seconds:
        """Return the time used by this process and its finished children."""
        usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return Seconds(sum(u.ru_utime + u.ru_stime for u in usages), time.perf_counter())


class Measured(NamedTuple):
    """One stack of lanes."""

    compiling: Seconds
    load_s: float
    """Wall time, all programs."""
    cpu_s: dict[str, float]
    """Per million env steps, ``uncompiled`` and ``compiled``."""

    @property
    def saved_s(self) -> float:
        """Processor time that compiling saves per million env steps."""
        return self.cpu_s["uncompiled"] - self.cpu_s["compiled"]


def _cpu_s_of(trainer: Trainer) -> float:
    """Return the processor time of an iteration."""
    begin_s = time.process_time()
    trainer.iterate()
    return time.process_time() - begin_s


def _compiling(trainer: Trainer) -> Seconds:
    """Return the time of the second iteration, which compiles, minus that of the third."""
    ends = [Seconds.now()]
    for _ in range(3):
        trainer.iterate()
        ends.append(Seconds.now())
    _, second, third = (after - before for before, after in itertools.pairwise(ends))
    return second - third


def measure(num_lanes: int, num_rounds: int) -> Measured:
    """Compile a stack in this process, then train with and without the programs."""
    import torch

    from ppo_lab.config.compose import check_jobs, register
    from ppo_lab.training.trainer import Trainer

    torch.set_num_threads(1)
    register()

    def trainer_of(compile_when: str) -> Trainer:
        seeds = ",".join(map(str, range(1, num_lanes + 1)))
        overrides = [*SETTINGS, "total_steps=10000000", f"compile={compile_when}", f"seed={seeds}"]
        jobs = check_jobs(overrides, is_multirun=True, config_dir=None, config_name=None)
        return Trainer([job.config for job in jobs])

    trainers = {"uncompiled": trainer_of("never"), "compiled": trainer_of("always")}
    compiling = _compiling(trainers["compiled"])
    for trainer in trainers.values():
        for _ in range(_NUM_WARM_UP):
            trainer.iterate()
    cpu_s: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(num_rounds):
        for name, trainer in trainers.items():
            cpu_s[name].append(_cpu_s_of(trainer))
    per_million = 1e6 / (num_lanes * _ROWS_PER_LANE)
    return Measured(
        compiling,
        _compiling(trainer_of("always")).wall,
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
    compiling, load_s, cpu_s = json.loads(done.stdout.splitlines()[-1])
    return Measured(Seconds(*compiling), load_s, cpu_s)


def result_table(measured: dict[str, Measured]) -> str:
    """Return a table of compile times and of the env steps after which compiling pays off."""
    rows = [
        [
            name,
            f"{own.compiling.cpu:.0f}",
            f"{own.compiling.wall:.0f}",
            f"{own.load_s * 1e3:.0f}",
            f"{own.cpu_s['uncompiled']:.1f}",
            f"{own.cpu_s['compiled']:.1f}",
            f"{own.saved_s:.1f}",
            f"{own.compiling.cpu / own.saved_s:.2f}",
        ]
        for name, own in measured.items()
    ]
    header = [
        "case",
        "compiling, CPU s",
        "wall s",
        "loading, ms",
        "CPU s per million env steps",
        "compiled",
        "saved",
        "repaid after million env steps",
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
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, num_lanes in _CASES:
            for program in Path(folder).glob("programs/*.pt2"):
                program.unlink()
            measured[name] = measure_apart(num_lanes, options.rounds, Path(folder))
    text = (
        "CartPole-v1, one run and a stack of eight, one thread each: "
        f"`{' '.join(SETTINGS)}`. At first nothing is there; afterwards, what all programs share. "
        "The compiler's imports are included. Processor time counts all processes; speeds are "
        f"medians of {options.rounds} iterations, with and without programs in turn."
    )
    publish("compile_time", "Time to compile", [text, result_table(measured)], write=options.write)


if __name__ == "__main__":
    main()
