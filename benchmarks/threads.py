"""``python -m benchmarks.threads``: when a second CPU thread is faster.

One run of CartPole by network size and threads, without and beside a busy process, to place the
threshold in ``training.precision``. Every measurement is a separate process; thread counts
are interleaved within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.result_page import publish, table

_ROOT = Path(__file__).resolve().parent.parent
_SETTINGS = ["env=cartpole", "num_epochs=4", "device=cpu"]
_THREADS = (1, 2)
_THRESHOLD_FLOP = 2e9  # of training.precision
_NUM_WARM_UP = 1  # iterations left out
_LIMIT_S = 5.0  # two threads that wait for a core can be 50 times slower than one


@dataclass(frozen=True)
class Size:
    """A network and a minibatch, and how long to measure it."""

    overrides: tuple[str, ...]
    num_iterations: int  # fewer when they take longer than _LIMIT_S


# From tiny to medium, and between them: widths, and one size by its minibatch instead.
_SIZES = {
    "tiny, 2 x 64": Size(("network=tiny",), 60),
    "small, 2 x 256": Size(("network=small",), 20),
    "2 x 512": Size(("network=small", "network.hidden=[512,512]"), 6),
    "small, 64 environments": Size(("network=small", "num_envs=64"), 3),
    "2 x 1024": Size(("network=small", "network.hidden=[1024,1024]"), 3),
    "medium, 3 x 1024": Size(("network=medium",), 2),
}


class _EnoughError(Exception):
    """Ends a measurement at its time limit."""


class Speed(NamedTuple):
    """One measurement."""

    gradient_step_ms: float
    per_s: float  # env steps per second, collecting included
    flop: float  # of one gradient step, as training.precision counts


def measure(name: str, num_threads: int) -> Speed:
    """Train in this process and return the speed after the warm-up."""
    from ppo_lab.config.compose import check_jobs, register
    from ppo_lab.tracking import Record
    from ppo_lab.training.precision import configure_torch
    from ppo_lab.training.trainer import Trainer

    register()
    size = _SIZES[name]
    overrides = [*_SETTINGS, *size.overrides, f"num_threads={num_threads}"]
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    num_rows = job.config.num_rows
    total_steps = (size.num_iterations + _NUM_WARM_UP) * num_rows
    config = dataclasses.replace(job.config, total_steps=total_steps)
    update_s: list[float] = []
    ends_s: list[float] = []

    def mark(_lane: int, record: Record) -> None:
        update_s.append(record.metrics["time/update_s"])
        ends_s.append(time.perf_counter())
        if ends_s[-1] - ends_s[_NUM_WARM_UP - 1] > _LIMIT_S:
            raise _EnoughError

    configure_torch(config)
    trainer = Trainer([config], on_record=mark)
    with contextlib.suppress(_EnoughError):
        while trainer.retire_ended():
            trainer.iterate()
    num_iterations = len(ends_s) - _NUM_WARM_UP
    num_gradient_steps = num_iterations * config.num_epochs * config.num_minibatches
    parameters = 2 * config.network.num_trunk_parameters(trainer.spec)
    return Speed(
        1000.0 * sum(update_s[_NUM_WARM_UP:]) / num_gradient_steps,
        num_iterations * num_rows / (ends_s[-1] - ends_s[_NUM_WARM_UP - 1]),
        6.0 * parameters * num_rows / config.num_minibatches,
    )


def measure_apart(name: str, num_threads: int) -> Speed:
    """Return ``measure`` of a fresh process."""
    kept = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.threads", "--measure", name, str(num_threads)],
        cwd=_ROOT,
        env=kept,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Speed(*json.loads(done.stdout.splitlines()[-1]))


@contextlib.contextmanager
def busy_neighbour(*, is_there: bool) -> Iterator[None]:
    """Keep one other process computing while the block runs, if ``is_there``."""
    if not is_there:
        yield
        return
    neighbour = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        neighbour.kill()
        neighbour.wait()


Speeds = dict[tuple[str, bool, int], list[Speed]]  # by size, neighbour, threads


def results_table(speeds: Speeds, *, has_neighbour: bool) -> str:
    """Return milliseconds per gradient step and env steps per second, by size and threads."""
    rows = []
    for name in _SIZES:
        one, two = (speeds[name, has_neighbour, threads] for threads in _THREADS)
        ratios = [a.gradient_step_ms / b.gradient_step_ms for a, b in zip(one, two)]
        rows.append(
            [
                name,
                f"{one[0].flop / 1e9:.3f}",
                *(
                    f"{statistics.median(s.gradient_step_ms for s in own):.2f}"
                    for own in (one, two)
                ),
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                *(f"{statistics.median(s.per_s for s in own):,.0f}" for own in (one, two)),
                f"{statistics.median(b.per_s / a.per_s for a, b in zip(one, two)):.2f}",
            ]
        )
    header = [
        "network",
        "GFLOP per gradient step",
        "ms, 1 thread",
        "ms, 2 threads",
        "gain of a gradient step",
        "env steps/s, 1 thread",
        "2 threads",
        "gain of the run",
    ]
    return table(header, rows)


def verdict(speeds: Speeds) -> str:
    """Return where two threads are faster, and where the current rule chooses the slower count."""

    def wins(name: str, has_neighbour: bool) -> bool:
        pairs = zip(speeds[name, has_neighbour, 1], speeds[name, has_neighbour, 2])
        return statistics.median(two.per_s / one.per_s for one, two in pairs) > 1.0

    flop = {name: speeds[name, False, 1][0].flop for name in _SIZES}
    lines = []
    for label, has_neighbour in (("without a neighbour", False), ("beside a busy process", True)):
        winners = [name for name in _SIZES if wins(name, has_neighbour)]
        largest = max((flop[name] for name in _SIZES if name not in winners), default=0.0)
        wrong = [name for name in _SIZES if (flop[name] >= _THRESHOLD_FLOP) != (name in winners)]
        lines.append(
            f"- {label}: a run of two threads is faster for {', '.join(winners) or 'none'}; the "
            f"largest gradient step for which it is slower has {largest / 1e9:.2f} GFLOP; the "
            f"threshold of {_THRESHOLD_FLOP:.0e} FLOP in `training/precision.py` takes the "
            f"slower count for {', '.join(wrong) or 'none'}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each case")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--measure", nargs=2, metavar=("SIZE", "THREADS"), help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure:
        name, num_threads = options.measure
        print(json.dumps(measure(name, int(num_threads))))
        return
    speeds: Speeds = {}
    for _ in range(options.rounds):
        for name in _SIZES:
            for has_neighbour in (False, True):
                for num_threads in _THREADS:
                    with busy_neighbour(is_there=has_neighbour):
                        speed = measure_apart(name, num_threads)
                    speeds.setdefault((name, has_neighbour, num_threads), []).append(speed)
                    print(name, has_neighbour, num_threads, speed, file=sys.stderr)
    parts = [
        f"CartPole-v1, torch backend, 8 environments x 128 steps, 4 minibatches, 4 epochs: "
        f"`{' '.join(_SETTINGS)}`. FLOP of a gradient step: 6 x parameters of both trunks x rows. "
        f"Medians of {options.rounds} interleaved rounds. Above 1, two threads are faster.",
        verdict(speeds),
        "## Without a neighbour of ours (the machine's own load stands below)",
        results_table(speeds, has_neighbour=False),
        "## Beside a busy process",
        results_table(speeds, has_neighbour=True),
    ]
    publish("threads", "One CPU thread or two", parts, write=options.write)


if __name__ == "__main__":
    main()
