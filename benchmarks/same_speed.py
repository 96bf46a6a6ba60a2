"""``python -m benchmarks.same_speed OLD NEW``: is one checkout as fast as another?

Measures training with each checkout's own ``benchmarks.throughput`` and start-up with its
``benchmarks.study_overhead``, in rounds that alternate between the two, and compares within a
round. Exits with 1 if a median ratio is below 0.97.
"""

from __future__ import annotations

import argparse
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
_TRAINING = {
    "cartpole_8": ["ppo_lab, torch", "ppo_lab, torch, compiled", "ppo_lab, gymnasium"],
    "cartpole_64": ["ppo_lab, torch"],
    "halfcheetah": ["ppo_lab, gymnasium"],
}
"""Programs of ``benchmarks.throughput`` by case; env steps per second of processor time."""
_STARTS = [
    "--help",
    "a run, until it has trained an iteration",
    "a study, until its first trial trains",
    "a finished study, until it has shown its result",
]
"""Of ``benchmarks.study_overhead``; seconds by the wall clock."""
_TRAIN = (
    "import json, sys; from benchmarks.throughput import CASES, measure; "
    "print(json.dumps(measure(CASES[sys.argv[1]], sys.argv[2]).per_cpu_s))"
)
_START = (
    "import json, sys; from benchmarks.study_overhead import start; "
    "print(json.dumps(1.0 / start(sys.argv[1]).wall_s))"
)


def _speed(checkout: Path, arguments: Sequence[str]) -> float:
    """Return what a program prints last, run with ``checkout``'s code."""
    done = subprocess.run(
        [sys.executable, "-c", *arguments],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout.splitlines()[-1]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="OLD NEW")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", choices=["training", "starts"], help="one of the two parts")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    old, new = (path.resolve() for path in options.checkouts)
    programs: dict[str, list[str]] = {}
    if options.only != "starts":
        programs |= {
            f"{case}: {name}": [_TRAIN, case, name]
            for case in _TRAINING
            for name in _TRAINING[case]
        }
    if options.only != "training":
        programs |= {name: [_START, name] for name in _STARTS}
    speeds: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for number in range(options.rounds + 1):
        for name, arguments in programs.items():
            sides = (old, new) if number % 2 else (new, old)
            measured = {side: _speed(side, arguments) for side in sides}
            if number:  # the first round fills caches
                speeds[name].append((measured[old], measured[new]))
                print(f"{name}: {measured[new] / measured[old]:.3f}", file=sys.stderr)
    rows: list[list[str]] = []
    is_met = True
    for name, pairs in speeds.items():
        ratios = [after / before for before, after in pairs]
        middle = statistics.median(ratios)
        is_met &= middle >= _GOAL
        speed = (f"{statistics.median(side):,.4g}" for side in zip(*pairs))
        rows.append([name, *speed, f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})"])
    parts = [
        f"Medians of {options.rounds} alternating rounds. Training in env steps per second of "
        "processor time, starts per second by the wall clock; a ratio above 1 is faster. Goal of "
        f"every median ratio: {_GOAL}, {'met' if is_met else 'missed'}.",
        table(["what", "old", "new", "new / old"], rows),
    ]
    publish("same_speed", "Speed of two checkouts", parts, write=options.write)
    sys.exit(not is_met)


if __name__ == "__main__":
    main()
