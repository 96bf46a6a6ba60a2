"""``python -m benchmarks.study_overhead``: time of a command outside training.

Start-up is measured in rounds, as a multiple of ``import torch``, the lower bound of every command:
on a busy machine ratios are more reliable than seconds. Then a study of many short trials measures
the overhead of a trial and the memory of the parent process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

from benchmarks.result_page import publish, table

__all__ = ["main"]

_ROOT = Path(__file__).resolve().parent.parent
_RUN = ["network=tiny", "total_steps=1024"]
_STUDY = [
    "study=default",
    "epsilon=interval(0.05,0.5)",
    "study.num_workers=1",
    "study/pruner=none",
    "network=tiny",
]
_WANDB = ["tracking=wandb", "tracking.mode=offline"]
_TORCH = "import torch"
_WITHOUT_SERVER = "--without-server"
_TORCH_S = 0.9  # on the machine that the goals are for
_GOALS_S = {
    "--help": 1.5,
    "a run, until it has trained an iteration": 3.0,
    "a study, until its first trial trains": 5.0,
    "a finished study, until it has shown its result": 3.0,
}


class Started(NamedTuple):
    """One start of a command."""

    wall_s: float
    """Until the awaited event."""
    cpu_s: float
    """Of the whole command, without forked processes that it does not wait for."""


class Start(NamedTuple):
    """A command, and the file whose appearance ends its start-up."""

    arguments: Sequence[str]
    mark: str | None = None
    """A pattern below the folder; None for the command's own end."""
    needs: Sequence[str] | None = None
    """A command to run before."""


_ITERATED = "outputs/runs/*/metrics.jsonl"
_TRIAL = "outputs/studies/*/trials/0000/seed_*/.hydra/config.yaml"
_OURS = ["-m", "ppo_lab"]
_SPAWNING = ["-m", "benchmarks.study_overhead", _WITHOUT_SERVER]
_SHORT_STUDY = [*_OURS, *_STUDY, "study.num_trials=1", "total_steps=1024", "tracking=local"]
_STARTS = {
    _TORCH: Start(["-c", "import torch"]),
    "--help": Start([*_OURS, "--help"]),
    "a run, until it has trained an iteration": Start(
        [*_OURS, *_RUN, "tracking=local"], mark=_ITERATED
    ),
    "the same, with W&B": Start([*_OURS, *_RUN, *_WANDB], mark=_ITERATED),
    "a study, until its first trial trains": Start(_SHORT_STUDY, mark=_TRIAL),
    "a finished study, until it has shown its result": Start(_SHORT_STUDY, needs=_SHORT_STUDY),
}


def start(name: str) -> Started:
    """Run the command ``name`` in an empty folder to its end; return its start-up time."""
    command = _STARTS[name]
    with tempfile.TemporaryDirectory() as folder:
        if command.needs is not None:
            _python(command.needs, folder)
        begin_s, cpu_s = time.time(), _children_cpu_s()
        _python(command.arguments, folder)
        end_s, cpu_s = time.time(), _children_cpu_s() - cpu_s
        if command.mark is not None:
            (mark,) = Path(folder).glob(command.mark)
            end_s = mark.stat().st_mtime
    return Started(end_s - begin_s, cpu_s)


def _python(arguments: Sequence[str], folder: str) -> None:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def _environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def start_table(num_rounds: int) -> str:
    """Return medians over rounds in which every command starts once."""
    started: dict[str, list[Started]] = {name: [] for name in _STARTS}
    for _ in range(num_rounds):
        for name, own in started.items():
            own.append(start(name))
            print(f"{name}: {own[-1].wall_s:.2f} s", file=sys.stderr)
    rows = []
    for name, own in started.items():
        wall_s = statistics.median(s.wall_s for s in own)
        pairs = list(zip(own, started[_TORCH]))
        times = statistics.median(s.wall_s / t.wall_s for s, t in pairs)
        cpu_times = statistics.median(s.cpu_s / t.cpu_s for s, t in pairs)
        goal = ""
        if (goal_s := _GOALS_S.get(name)) is not None:
            is_met = times < goal_s / _TORCH_S
            goal = f"{goal_s / _TORCH_S:.1f} ({goal_s:g} s), {'met' if is_met else 'missed'}"
        rows.append(
            [
                name,
                f"{wall_s:.2f} ({min(s.wall_s for s in own):.2f})",
                f"{times:.1f}",
                f"{statistics.median(s.cpu_s for s in own):.2f}",
                f"{cpu_times:.1f}",
                goal,
            ]
        )
    ratio = f"times `{_TORCH}`"
    header = ["start of", "wall s (fastest)", ratio, "CPU s, to its end", ratio, "goal, wall time"]
    return table(header, rows)


class Overhead(NamedTuple):
    """Overhead measured with a study of short trials."""

    training_s: float
    beside_s: float
    """Per trial, from one result to the next, less training; median, like the other."""
    memory_mib: tuple[float, float]
    """The parent's, at first and at the end."""


def study_overhead(num_trials: int, num_steps: int, program: Sequence[str] = _OURS) -> Overhead:
    """Run a study of ``num_trials`` trials in one slot; ``program`` is what takes its command."""
    study = ["study.name=overhead", f"study.num_trials={num_trials}", f"total_steps={num_steps}"]
    command = [sys.executable, *program, *_STUDY, *study, "tracking=local"]
    with tempfile.TemporaryDirectory() as folder:
        trials = Path(folder) / "outputs" / "studies" / "overhead" / "trials"
        memory = []
        with (Path(folder) / "shown").open("wb") as shown:
            process = subprocess.Popen(
                command, cwd=folder, env=_environment(), stdout=shown, stderr=shown
            )
            while process.poll() is None:
                time.sleep(1.0)
                if (trials / "0001").exists():
                    memory += _resident_mib(process.pid)
        assert process.returncode == 0, (Path(folder) / "shown").read_text()
        results = sorted(trials.glob("*/result.json"))
        ended_s = [path.stat().st_mtime for path in results]
        trained_s = [_trained_s(path) for path in results]
    rest_s = [
        after - before - trained
        for before, after, trained in zip(ended_s, ended_s[1:], trained_s[1:])
    ]
    return Overhead(
        statistics.median(trained_s), statistics.median(rest_s), (memory[0], memory[-1])
    )


def run_without_server(command: Sequence[str]) -> None:
    """Run ppo_lab's ``command`` here, with a new interpreter for each trial in place of a fork."""
    from ppo_lab.__main__ import main as run

    context = multiprocessing.get_context
    multiprocessing.get_context = lambda method=None: context(  # type: ignore[assignment]
        "spawn" if method == "forkserver" else method
    )
    forkserver.ensure_running = lambda: None
    sys.argv = ["ppo_lab", *command]
    run()


def _trained_s(result: Path) -> float:
    (summary,) = json.loads(result.read_text())["summaries"]
    return float(sum(summary["time"].values()))


def _resident_mib(pid: int) -> list[float]:
    """Return the memory that a process holds; none for one that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return [int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")]


def main(argv: Sequence[str] | None = None) -> None:
    if sys.argv[1:2] == [_WITHOUT_SERVER]:
        run_without_server(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each command")
    parser.add_argument("--trials", type=int, default=30)
    parser.add_argument("--spawned-trials", type=int, default=10, help="without the fork server")
    parser.add_argument("--steps", type=int, default=16384, help="of a trial")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    starts = start_table(options.rounds)
    forked = study_overhead(options.trials, options.steps)
    spawned = study_overhead(options.spawned_trials, options.steps, _SPAWNING)
    parts = [
        f"Medians of {options.rounds} interleaved rounds, one thread; ratios are within a round. "
        f"The goals are seconds on a machine where `{_TORCH}` takes {_TORCH_S} s.",
        starts,
        f"A study of {options.trials} trials of {options.steps:,} steps, one at a time "
        f"(`{' '.join(_STUDY)}`): training takes {forked.training_s:.2f} s a trial, everything "
        f"else {forked.beside_s:.2f} s. The parent holds {forked.memory_mib[0]:.0f} MiB at "
        f"first and {forked.memory_mib[1]:.0f} MiB at the end. With an interpreter of its own for "
        f"each of {options.spawned_trials} trials, in place of a fork of the server, everything "
        f"else takes {spawned.beside_s:.2f} s a trial.",
    ]
    publish("study_overhead", "Start-up, and a study beside training", parts, write=options.write)


if __name__ == "__main__":
    main()
