"""``python -m benchmarks.resumable FOLDER CONFIGS``: train a stack, or go on with it.

``CONFIGS`` is a pickle, since composing takes longer than the training. The run with seed *n* has
the folder ``FOLDER/n``. With the environment variable ``KILL_AFTER_S`` another process kills this
one at that time.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from safetensors.numpy import load_file

from ppo_lab.config.compose import check_jobs
from ppo_lab.config.run import Config
from ppo_lab.runner import pace
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.run import RunOutput, run_group
from ppo_lab.tracking import read_metrics

__all__ = ["SIZES", "Left", "in_child", "left_by", "outcome", "train", "train_alone"]

SIZES = (
    *("num_envs=2", "num_steps=16", "num_epochs=1", "num_minibatches=2", "total_steps=384"),
    *("tracking.mode=disabled", "tracking.terminal=none", "checkpoint.every_s=0.02"),
)
"""Twelve iterations, with a checkpoint after about every second."""
_MEASURED = ("time/", "perf/", "charts/SPS")


class Left(NamedTuple):
    """All that a run has left, but for measured times: equal for equal runs only."""

    run: str
    num_lines: int
    """Lines of metrics.jsonl, of which a reader would merge doubled ones."""
    rows: list[dict[str, str]]
    iteration: str
    """Of the last checkpoint."""
    tensors: dict[str, bytes]
    policies: list[bytes]
    """The last one, and the best of the evaluations."""


def outcome(folder: Path) -> list[Left]:
    """Return what each run of a stack has left."""
    return [left_by(run) for run in sorted(folder.iterdir())]


def left_by(run: Path) -> Left:
    """Return what a run has left in its folder."""
    rows = [
        {key: str(value) for key, value in row.items() if not key.startswith(_MEASURED)}
        for row in read_metrics(run / "metrics.jsonl")
    ]
    num_lines = len((run / "metrics.jsonl").read_text().splitlines())
    last = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name))
    state = load_file(last / "state.safetensors")
    policies = [path.read_bytes() for path in sorted(run.rglob("checkpoint/model.safetensors"))]
    tensors = {name: array.tobytes() for name, array in sorted(state.items())}
    return Left(run.name, num_lines, rows, last.name, tensors, policies)


def train(folder: Path, configs: Sequence[Config], kill_after_s: float | None = None) -> None:
    """Train ``configs`` as one stack below ``folder``, or go on with it."""
    pace._LARGEST_FRAC = 1.0  # checkpoints may take all the time that there is
    if kill_after_s is not None:
        _kill_after(kill_after_s)
    folders = [folder / str(config.seed) for config in configs]
    run_group(RunGroup(configs, [RunOutput(path, [], resumes=True) for path in folders]))


def train_alone(overrides: Sequence[str], folder: Path) -> Left:
    """Train a command's run below ``folder`` in a forked process; return what it has left."""
    (job,) = check_jobs(overrides, is_multirun=False, config_dir=None, config_name=None)
    assert in_child(partial(train, folder, [job.config])) == 0
    return left_by(folder / str(job.config.seed))


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


def _kill_after(delay_s: float) -> None:
    trained = os.getpid()
    if os.fork() == 0:
        time.sleep(delay_s)
        if os.getppid() == trained:
            os.kill(trained, signal.SIGKILL)
        os._exit(0)


def _main() -> None:
    folder, pickled = map(Path, sys.argv[1:])
    delay_s = os.environ.get("KILL_AFTER_S")
    train(folder, pickle.loads(pickled.read_bytes()), float(delay_s) if delay_s else None)


if __name__ == "__main__":
    _main()
