"""``python -m benchmarks.sweep``: a grid of CartPole runs, stacked, as processes, and by SB3.

Every program trains the same runs, epsilons times seeds, on the same cores. Ours are commands as a
user types them, with the start of Python, compilation and files: all runs in one command as lanes
of stacks, or each run as a separate process. Stable-Baselines3 trains its runs one after another
in one process per core, starts only once per core, and writes nothing. Slow programs may train a
part of the runs; their time is then scaled to all. Programs are interleaved.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from benchmarks.result_page import publish, table
from benchmarks.throughput import SETTINGS

_ROOT = Path(__file__).resolve().parent.parent
_EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
_SOLVED = 475.0  # mean of the last 100 episodes, Gymnasium's reward_threshold of CartPole-v1
_BASELINE = "Stable-Baselines3"
_GOAL = 12.0  # times as fast as the baseline


class Trial(NamedTuple):
    """One run of the grid."""

    epsilon: float
    seed: int


class Outcome(NamedTuple):
    """Result of one program."""

    wall_s: float
    best_returns: list[float]
    """For each run the best mean of the last 100 episodes at the end of an iteration."""


class Machine(NamedTuple):
    """Processes at a time, and the amount of training."""

    num_workers: int
    num_steps: int
    launcher: str


Program = Callable[[Sequence[Trial], Machine, Path], Outcome]


def stacked(trials: Sequence[Trial], machine: Machine, folder: Path) -> Outcome:
    """Run all of ``trials``, a whole grid, in one command."""
    epsilons = sorted({trial.epsilon for trial in trials})
    seeds = sorted({trial.seed for trial in trials})
    assert len(trials) == len(epsilons) * len(seeds), "a stack is given the whole grid"
    overrides = [
        f"epsilon={','.join(map(str, epsilons))}",
        f"seed={','.join(map(str, seeds))}",
        f"hydra/launcher={machine.launcher}",
        "-m",
    ]
    begin_s = time.perf_counter()
    _run_ours(overrides, machine, folder)
    return Outcome(time.perf_counter() - begin_s, _best_returns(folder, len(trials)))


def processes(trials: Sequence[Trial], machine: Machine, folder: Path) -> Outcome:
    """Run each of ``trials`` as a separate command, as many at a time as there are workers."""

    def run(trial: Trial) -> None:
        overrides = [f"epsilon={trial.epsilon}", f"seed={trial.seed}"]
        _run_ours([*overrides, f"name=e{trial.epsilon}-s{trial.seed}"], machine, folder)

    begin_s = time.perf_counter()
    with ThreadPoolExecutor(machine.num_workers) as pool:
        list(pool.map(run, trials))
    return Outcome(time.perf_counter() - begin_s, _best_returns(folder, len(trials)))


def stable_baselines(trials: Sequence[Trial], machine: Machine, folder: Path) -> Outcome:
    """Train ``trials`` with SB3, distributed over one process per worker."""

    def train(own: Sequence[Trial]) -> list[float]:
        arguments = ["--train", json.dumps(own), "--steps", str(machine.num_steps)]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.sweep", *arguments],
            cwd=_ROOT, env=_environment(folder), stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        returns: list[float] = json.loads(done.stdout.splitlines()[-1])
        return returns

    begin_s = time.perf_counter()
    hands = [trials[worker :: machine.num_workers] for worker in range(machine.num_workers)]
    with ThreadPoolExecutor(machine.num_workers) as pool:
        returns = list(pool.map(train, [hand for hand in hands if hand]))
    return Outcome(time.perf_counter() - begin_s, [value for own in returns for value in own])


_PROGRAMS: dict[str, Program] = {
    "stacked": stacked,  # with nothing compiled before
    "stacked again": stacked,  # with what the first left compiled
    "processes": processes,
    _BASELINE: stable_baselines,
}


def train_with_sb3(trials: Sequence[Trial], num_steps: int) -> list[float]:
    """Train ``trials`` one after another in this process; return each one's best return."""
    import torch

    from benchmarks import sb3
    from ppo_lab.config.compose import check_jobs, register

    torch.set_num_threads(1)
    register()
    best = []
    for trial in trials:
        overrides = [
            *SETTINGS,
            "env.backend=gymnasium",
            f"total_steps={num_steps}",
            f"epsilon={trial.epsilon}",
            f"seed={trial.seed}",
        ]
        (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
        best.append(max(sb3.train(job.config).returns))
    return best


def _run_ours(overrides: Sequence[str], machine: Machine, folder: Path) -> None:
    command = [*SETTINGS, f"total_steps={machine.num_steps}", "tracking=local"]
    with (folder / "log").open("a") as log:
        done = subprocess.run(
            [sys.executable, "-m", "ppo_lab", *command, *overrides],
            cwd=folder, env=_environment(folder), stdout=log, stderr=log, check=False,
        )  # fmt: skip
    assert done.returncode == 0, (folder / "log").read_text()


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment with one thread, this checkout, and the folder's own caches."""
    paths = [str(_ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PPO_LAB_CACHE": str(folder.parent / "programs"),
        "TORCHINDUCTOR_CACHE_DIR": str(folder.parent / "compiler"),
    }


def _best_returns(folder: Path, num_trials: int) -> list[float]:
    paths = sorted((folder / "outputs").glob("*/**/summary.json"))
    assert len(paths) == num_trials, f"{len(paths)} of {num_trials} runs left a summary"
    return [float(json.loads(path.read_text())["best_return"]) for path in paths]


def compare(
    trials: Mapping[str, Sequence[Trial]], machine: Machine, num_rounds: int
) -> dict[str, list[Outcome]]:
    """Run every program once per round; the second stack of a round uses the cache of the first."""
    outcomes: dict[str, list[Outcome]] = {name: [] for name in trials}
    for _ in range(num_rounds):
        with tempfile.TemporaryDirectory() as name:
            for number, (program, own) in enumerate(trials.items()):
                # Processes have a cache of their own; the two stacks share theirs.
                group = "stacked" if _PROGRAMS[program] is stacked else program
                folder = Path(name) / group.replace(" ", "_") / str(number)
                folder.mkdir(parents=True)
                outcome = _PROGRAMS[program](own, machine, folder)
                outcomes[program].append(outcome)
                line = f"{program}: {len(own)} runs in {outcome.wall_s:.1f} s"
                print(line, file=sys.stderr)
    return outcomes


def summary_table(
    outcomes: Mapping[str, Sequence[Outcome]], num_trials: int, num_steps: int
) -> str:
    """Return medians over rounds; ratios are within a round."""

    def whole_s(outcome: Outcome) -> float:
        return outcome.wall_s * num_trials / len(outcome.best_returns)

    rows = []
    for program, own in outcomes.items():
        seconds = [whole_s(outcome) for outcome in own]
        against = outcomes.get(_BASELINE, [])
        ratios = [whole_s(other) / mine for mine, other in zip(seconds, against)]
        best = [value for outcome in own for value in outcome.best_returns]
        num_solved = sum(value >= _SOLVED for value in best)
        is_goal = program == next(iter(outcomes)) != _BASELINE and ratios
        met = "met" if ratios and statistics.median(ratios) >= _GOAL else "missed"
        rows.append(
            [
                program,
                len(own[0].best_returns),
                f"{statistics.median(seconds):,.0f}",
                f"{num_trials * num_steps / statistics.median(seconds):,.0f}",
                f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"
                if ratios
                else "",
                f"{_GOAL:g}, {met}" if is_goal else "",
                f"{num_solved} of {len(best)}",
            ]
        )
    header = [
        "program",
        "runs",
        f"wall s for {num_trials}",
        "env steps/s",
        f"times {_BASELINE}",
        "goal",
        f"reached {_SOLVED:g}",
    ]
    return table(header, rows)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilons", type=int, default=len(_EPSILONS), help="how many, at most 8")
    parser.add_argument("--seeds", type=int, default=8, help="of each epsilon")
    parser.add_argument("--steps", type=int, default=500_000, help="of each run")
    parser.add_argument("--workers", type=int, default=2, help="processes at a time")
    parser.add_argument("--process-runs", type=int, default=16, help="given to our processes")
    parser.add_argument("--sb3-runs", type=int, default=16, help=f"given to {_BASELINE}")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--programs", nargs="+", choices=_PROGRAMS, default=list(_PROGRAMS))
    parser.add_argument("--launcher", default="stacked", help="Hydra's, for the stacked grid")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    parser.add_argument("--train", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.train:
        own = [Trial(*pair) for pair in json.loads(options.train)]
        print(json.dumps(train_with_sb3(own, options.steps)))
        return
    grid = [
        Trial(epsilon, seed)  # all epsilons of a seed first: a part of the runs has each as often
        for seed, epsilon in itertools.product(
            range(1, options.seeds + 1), _EPSILONS[: options.epsilons]
        )
    ]
    parts = {"processes": options.process_runs, _BASELINE: options.sb3_runs}
    trials = {name: grid[: parts.get(name, len(grid))] for name in options.programs}
    for name, own in trials.items():
        if len(own) % options.workers:  # a worker would idle, and scaling would count that again
            parser.error(f"{name}: {len(own)} runs are not a multiple of {options.workers} workers")
    machine = Machine(options.workers, options.steps, options.launcher)
    outcomes = compare(trials, machine, options.rounds)
    text = (
        f"CartPole-v1, {options.epsilons} epsilons x {options.seeds} seeds, {options.steps:,} env "
        f"steps each, {options.workers} workers with one thread each: `{' '.join(SETTINGS)}`. Wall "
        "time with start and compilation; programs with fewer runs are scaled to all. The first "
        "stack of a round finds nothing compiled, the second what the first left. Medians of "
        f"{options.rounds} interleaved rounds. Reached: the mean of the last 100 episodes was at "
        f"least {_SOLVED:g} at the end of some iteration."
    )
    publish(
        "sweep",
        "A sweep of CartPole",
        [text, summary_table(outcomes, len(grid), options.steps)],
        write=options.write,
    )


if __name__ == "__main__":
    main()
