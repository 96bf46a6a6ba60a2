"""``python -m benchmarks.same_speed OLD NEW``: is one checkout as fast as another?

Measures training with each checkout's own ``benchmarks.throughput``, the two trainers taking turns
after every iteration, so that whatever else the machine does slows down both; and start-up with
``benchmarks.study_overhead``, in rounds that alternate between the two. Exits with 1 if a median
ratio is below 0.97.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result_page import publish, table

__all__ = ["main"]

_GOAL = 0.97
_WARM_UP = 10
"""Iterations that are left out."""
_TRAINING = [
    ("cartpole_8", "ppo_lab, torch"),
    ("cartpole_8", "ppo_lab, torch, compiled"),
    ("cartpole_8", "ppo_lab, gymnasium"),
    ("cartpole_64", "ppo_lab, torch"),
    ("halfcheetah", "ppo_lab, gymnasium"),
]
"""Cases and programs of ``benchmarks.throughput``."""
_STARTS = [
    "--help",
    "a run, until it has trained an iteration",
    "a study, until its first trial trains",
    "a finished study, until it has shown its result",
]
"""Of ``benchmarks.study_overhead``; seconds by the wall clock."""
_TRAIN = """
import sys, time
from benchmarks import throughput

def take_turns():
    print(time.process_time(), flush=True)
    sys.stdin.readline()
    return time.perf_counter(), time.process_time()

throughput._clocks = take_turns  # called after every iteration
throughput.measure(throughput.CASES[sys.argv[1]]._replace(num_iterations=60), sys.argv[2])
"""
_START = (
    "import json, sys; from benchmarks.study_overhead import start; "
    "print(json.dumps(1.0 / start(sys.argv[1]).wall_s))"
)


def _spawn(checkout: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start a program with ``checkout``'s code."""
    return subprocess.Popen(
        [sys.executable, "-c", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _start_speed(checkout: Path, name: str) -> float:
    """Return one start-up per second."""
    printed, _ = _spawn(checkout, [_START, name]).communicate()
    return float(json.loads(printed.splitlines()[-1]))


def _turns(sides: Sequence[Path], case: str, name: str) -> list[tuple[float, float]]:
    """Return the iterations per second of processor time of two checkouts, in pairs."""
    programs = [_spawn(side, [_TRAIN, case, name]) for side in sides]
    clocks: list[list[float]] = [[], []]
    while True:
        lines = []
        for program, clock in zip(programs, clocks):
            assert program.stdin is not None
            assert program.stdout is not None
            if clock:
                program.stdin.write("\n")
                program.stdin.flush()
            lines.append(program.stdout.readline())
            if lines[-1]:
                clock.append(float(lines[-1]))
        if not all(lines):
            break
    for program in programs:
        program.communicate()
    speeds = [
        [1.0 / (end - begin) for begin, end in itertools.pairwise(clock[_WARM_UP:])]
        for clock in clocks
    ]
    return list(zip(*speeds, strict=True))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="OLD NEW")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["training", "starts"], help="one of the two parts")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    old, new = (path.resolve() for path in options.checkouts)
    speeds: dict[str, list[tuple[float, float]]] = {}
    for number in range(options.rounds + 1):
        order = (old, new) if number % 2 else (new, old)
        for case, name in _TRAINING if options.only != "starts" and number else ():
            pairs = _turns(order, case, name)
            speeds.setdefault(f"{case}: {name}", []).extend(
                p if number % 2 else p[::-1] for p in pairs
            )
        for name in _STARTS if options.only != "training" else ():
            measured = {side: _start_speed(side, name) for side in order}
            if number:  # the first round fills caches
                speeds.setdefault(name, []).append((measured[old], measured[new]))
    rows: list[list[str]] = []
    is_met = True
    for name, pairs in speeds.items():
        ratios = sorted(after / before for before, after in pairs)
        middle, low, high = (ratios[len(ratios) * k // 4] for k in (2, 1, 3))
        is_met &= middle >= _GOAL
        speed = (f"{statistics.median(side):,.4g}" for side in zip(*pairs))
        rows.append([name, *speed, f"{middle:.3f} ({low:.3f} to {high:.3f})"])
    parts = [
        f"Medians over {options.rounds} rounds: of training, iterations per second of processor "
        "time, the two checkouts taking turns after each; of starts, starts per second by the "
        "wall clock. The middle half of the ratios is in brackets; above 1 is faster. Goal of "
        f"every median ratio: {_GOAL}, {'met' if is_met else 'missed'}.",
        table(["what", "old", "new", "new / old"], rows),
    ]
    publish("same_speed", "Speed of two checkouts", parts, write=options.write)
    sys.exit(not is_met)


if __name__ == "__main__":
    main()
