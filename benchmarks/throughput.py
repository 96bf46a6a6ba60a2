"""``python -m benchmarks.throughput``: env steps per second, ours against Stable-Baselines3's.

CartPole-v1 at the settings of CleanRL's ppo.py (less its value clipping), learning included. Every
measurement is a process of its own with one thread, in steady state: the first iterations are left
out. The programs take turns, and each is compared with SB3's run of the same round, because the
machine may be busy with other things. Neither side writes logs or files.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.result_page import publish, table

__all__ = ["SETTINGS", "Speed", "measure"]

_ROOT = Path(__file__).resolve().parent.parent
_BASELINE = "Stable-Baselines3"
_PROGRAMS = {
    "ppo_lab, torch": ["env.backend=torch", "compile=never"],
    "ppo_lab, torch, compiled": ["env.backend=torch", "compile=always"],
    "ppo_lab, gymnasium": ["env.backend=gymnasium", "compile=never"],
    "ppo_lab, gymnasium, compiled": ["env.backend=gymnasium", "compile=always"],
    _BASELINE: ["env.backend=gymnasium"],
}
_GOALS = {
    "ppo_lab, torch": 2.0,
    "ppo_lab, torch, compiled": 6.0,
    "ppo_lab, gymnasium": 1.2,
    "ppo_lab, gymnasium, compiled": 2.0,
}
SETTINGS = [
    "env=cartpole",
    "network=tiny",
    "num_envs=8",
    "num_steps=128",
    "num_minibatches=4",
    "num_epochs=4",
    "lr=2.5e-4",
    "lr_schedule=linear",
    "entropy_coef=0.01",
    "value_coef=0.5",
    "device=cpu",
    "num_threads=1",
]
_NUM_ROWS = 8 * 128  # of one iteration
_NUM_WARM_UP = 10  # iterations left out: first calls, allocator, caches, compilation


class Speed(NamedTuple):
    """Env steps of one measurement."""

    per_s: float  # by the wall clock
    per_cpu_s: float  # by the processor time of the process


def measure(program: str, num_steps: int) -> Speed:
    """Train in this process and return the speed after the warm-up."""
    import torch

    from ppo_lab.compose import check_jobs, register

    torch.set_num_threads(1)
    register()
    total_steps = num_steps + _NUM_WARM_UP * _NUM_ROWS  # the warm-up comes on top
    overrides = [*SETTINGS, *_PROGRAMS[program], f"total_steps={total_steps}"]
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    ends: list[tuple[float, float]] = []
    if program == _BASELINE:
        from benchmarks import sb3

        ends = sb3.train(job.config).iteration_ends
    else:
        from ppo_lab.trainer import Trainer

        def mark(*_: object) -> None:
            ends.append((time.perf_counter(), time.process_time()))

        Trainer([job.config], on_record=mark).run()
    begin, end = ends[_NUM_WARM_UP - 1], ends[-1]
    measured = (len(ends) - _NUM_WARM_UP) * _NUM_ROWS
    return Speed(measured / (end[0] - begin[0]), measured / (end[1] - begin[1]))


def measure_apart(program: str, num_steps: int) -> Speed:
    """Return ``measure`` of a fresh process with one thread."""
    arguments = ["--measure", program, "--steps", str(num_steps)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.throughput", *arguments],
        cwd=_ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Speed(*json.loads(done.stdout.splitlines()[-1]))


def summary_table(speeds: dict[str, list[Speed]]) -> str:
    """Return medians over rounds, and of the ratios to SB3 within a round."""
    rows = []
    for program, own in speeds.items():
        wall = [mine.per_s / other.per_s for mine, other in zip(own, speeds[_BASELINE])]
        cpu = [mine.per_cpu_s / other.per_cpu_s for mine, other in zip(own, speeds[_BASELINE])]
        ratio = statistics.median(wall)
        goal = _GOALS.get(program)
        rows.append(
            [
                program,
                f"{statistics.median(s.per_s for s in own):,.0f}",
                f"{statistics.median(s.per_cpu_s for s in own):,.0f}",
                f"{ratio:.2f} ({min(wall):.2f} to {max(wall):.2f})",
                f"{statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f})",
                "" if goal is None else f"{goal}, {'met' if ratio >= goal else 'missed'}",
            ]
        )
    header = [
        "program",
        "env steps/s",
        "env steps per CPU s",
        "ratio to SB3",
        "by CPU time",
        "goal",
    ]
    return table(header, rows)


def rounds_table(speeds: dict[str, list[Speed]]) -> str:
    """Return every measurement."""
    rows = [
        [number, *(f"{speed.per_s:,.0f} / {speed.per_cpu_s:,.0f}" for speed in one_round)]
        for number, one_round in enumerate(zip(*speeds.values()), 1)
    ]
    return table(["round", *(f"{program} (wall / CPU)" for program in speeds)], rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each program")
    parser.add_argument("--steps", type=int, default=61_440, help="env steps measured each time")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--measure", choices=_PROGRAMS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        print(json.dumps(measure(options.measure, options.steps)))
        return
    speeds: dict[str, list[Speed]] = {program: [] for program in _PROGRAMS}
    for _ in range(options.rounds):
        for program, own in speeds.items():
            own.append(measure_apart(program, options.steps))
            print(f"{program}: {own[-1].per_s:,.0f} env steps/s", file=sys.stderr)
    parts = [
        f"CartPole-v1, 8 environments x 128 steps, {options.steps:,} env steps after "
        f"{_NUM_WARM_UP} iterations of warm-up, one thread, learning included: "
        f"`{' '.join(SETTINGS)}`. Medians of {options.rounds} interleaved rounds; ratios are "
        "within a round, smallest and largest in brackets.",
        summary_table(speeds),
        rounds_table(speeds),
    ]
    publish("throughput", "Throughput", parts, write=options.write)


if __name__ == "__main__":
    main()
