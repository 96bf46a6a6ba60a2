"""A trial's own process: its seeds in lockstep, reporting to the parent and told when to stop.

The parent forks it from a server that has imported all this already. Whatever happens here, a
crash, a full memory or a SIGKILL, costs this trial only.
"""

from __future__ import annotations

import ctypes
import dataclasses
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, Protocol

from omegaconf import OmegaConf

from ppo_lab.config.run import Config
from ppo_lab.config.study import STORAGE_VARIABLE
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.runner.group import GroupView, RunGroup
from ppo_lab.runner.run import RunOutput, run_group
from ppo_lab.tracking import Terminal
from ppo_lab.utils.json_files import atomic_write
from ppo_lab.workers.base import Decision, Task, TrialProgress, TrialReport
from ppo_lab.workers.result import Result, worst_status

__all__ = ["become_child", "log_to", "run_trial", "trial_group", "trial_main", "without_terminal"]

log = logging.getLogger(__name__)

_VERDICT_WAIT_S = 1.0
"""A trial goes on after this long without a verdict: the parent may be waiting for its storage."""
_NOTE_INTERVAL_S = 0.5
_PR_SET_PDEATHSIG = 1
_EXIT_TERMINATED = 128 + signal.SIGTERM


def trial_main(task: Task, connection: Connection) -> None:
    """Run ``task`` as a process of its own."""
    become_child()
    log_to(task.folder / "log")
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    log.info("trial %d, process %d, CUDA_VISIBLE_DEVICES=%s", task.number, os.getpid(), devices)
    run_trial(task, connection)


def become_child() -> None:
    """Let the parent decide over this process: what Ctrl-C means, and when it ends."""
    _end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    os.environ.pop(STORAGE_VARIABLE, None)  # it may hold a password, and is not needed here


def run_trial(task: Task, connection: Connection) -> Result:
    """Train every seed, write ``result.json``, and return it."""
    reporter = _Reporter(task, connection, verdict_wait_s=_VERDICT_WAIT_S)
    summaries = []
    seeds = [resolve_memory(without_terminal(config)) for config in task.configs]
    for lanes in _stacks(seeds):
        reporter.begin(lanes)
        configs = [seeds[lane] for lane in lanes]
        destinations = [_destination(task, config) for config in configs]
        summaries += run_group(
            RunGroup(
                configs,
                destinations,
                should_stop=reporter.after_iteration,
                planned_steps=task.planned_steps,
            )
        )
        if worst_status(summaries)[0] != "finished":
            break
    return _write_result(task, summaries)


def _write_result(task: Task, summaries: list[dict[str, Any]]) -> Result:
    status, reason = worst_status(summaries)
    result = Result(task.number, status, reason, summaries)
    result.write(task.folder)
    return result


def trial_group(task: Task, connection: TrialConnection, on_end: Callable[[], None]) -> RunGroup:
    """Return a trial's seeds as a group for a shared stack, with a folder for each seed.

    ``on_end`` is called once the result is written.
    """
    configs = [without_terminal(config) for config in task.configs]
    # A stack does not wait: a verdict that comes later is taken later.
    reporter = _Reporter(task, connection, verdict_wait_s=0.0)

    def should_stop(view: GroupView) -> str | None:
        if view.iteration == 1:
            reporter.begin(range(len(configs)))
        return reporter.after_iteration(view)

    def on_finish(summaries: list[dict[str, Any]]) -> None:
        _write_result(task, summaries)
        on_end()

    return RunGroup(
        configs,
        [_destination(task, config) for config in configs],
        should_stop=should_stop,
        on_finish=on_finish,
        planned_steps=task.planned_steps,
    )


def _stacks(configs: Sequence[Config]) -> Iterator[range]:
    """Return the seeds that train together: all at once, or as many as the strategy can hold."""
    size = configs[0].memory.max_lanes or len(configs)
    for begin in range(0, len(configs), size):
        yield range(begin, min(begin + size, len(configs)))


def without_terminal(config: Config) -> Config:
    """Return ``config`` for a process that has none: the parent shows how it stands."""
    tracking = dataclasses.replace(config.tracking, terminal=Terminal.none)
    return dataclasses.replace(config, tracking=tracking)


def _destination(task: Task, config: Config) -> RunOutput:
    """Make a seed's folder, with its config as Hydra would leave it."""
    folder = task.folder / f"seed_{config.seed}"
    (folder / ".hydra").mkdir(parents=True)
    overrides = [*task.overrides, f"seed={config.seed}"]
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    atomic_write(folder / ".hydra" / "config.yaml", text.encode())
    atomic_write(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(overrides).encode())
    run_id = f"{task.run_id}-s{config.seed}" if task.run_id else None
    return RunOutput(folder, overrides, task.group, task.notes, run_id, "trial", task.is_forecast)


class TrialConnection(Protocol):
    """A trial's end of the pipe to the parent, or its share of one."""

    def send(self, message: TrialReport | TrialProgress, /) -> None:
        """Tell the parent."""

    def poll(self, timeout: float = 0.0, /) -> bool:
        """Return whether there is a verdict; wait for it until ``timeout`` (s)."""

    def recv(self) -> Decision:
        """Return the next verdict; EOFError when the parent is gone."""

    def fileno(self) -> int:
        """Return the pipe's file descriptor."""


class _Reporter:
    """Tells the parent how the seeds stand, and takes its verdicts."""

    def __init__(self, task: Task, connection: TrialConnection, *, verdict_wait_s: float) -> None:
        self._connection, self._verdict_wait_s = connection, verdict_wait_s
        self._marks = task.marks
        self._returns: list[list[float | None]] = [
            [None] * len(task.configs) for _ in task.marks
        ]  # by mark and seed
        self._latest: list[float | None] = [None] * len(task.configs)
        self._num_seeds = len(task.configs)
        self._lanes = range(0)
        self._next_mark = self._num_reported = 0
        self._noted_s = 0.0

    def begin(self, lanes: range) -> None:
        """Turn to the seeds ``lanes``, which train together."""
        self._lanes, self._next_mark = lanes, 0

    def after_iteration(self, standing: GroupView) -> str | None:
        """Report what has become due; return the reason to stop, if there is one."""
        for lane, seed in enumerate(self._lanes):
            if (number := standing.history(lane).diverged) is not None:
                return f"{number} (seed {standing.config(lane).seed})"
            history = standing.history(lane)
            self._latest[seed] = history.final_return
        config = standing.config(0)
        step = standing.iteration * config.num_rows
        self._note(standing, step)
        stop = None
        is_last = standing.iteration == config.num_iterations
        while self._is_mark_due(step) and stop is None:
            for seed in self._lanes:
                self._returns[self._next_mark][seed] = self._latest[seed]
            is_complete = self._lanes.stop == self._num_seeds  # all seeds are past the mark
            # One that was reported before the stack failed, and the trial began again, stands.
            if is_complete and not is_last and self._next_mark == self._num_reported:
                stop = self._report(self._next_mark)
                self._num_reported += 1
            self._next_mark += 1
        return stop or (None if is_last else self._late_verdict())

    def _is_mark_due(self, step: int) -> bool:
        return self._next_mark < len(self._marks) and step >= self._marks[self._next_mark]

    def _report(self, index: int) -> str | None:
        """Report a mark and wait a moment for what the parent thinks of it."""
        mark = TrialReport(self._marks[index], tuple(self._returns[index]))
        self._connection.send(mark)
        deadline_s = time.monotonic() + self._verdict_wait_s
        while self._connection.poll(max(deadline_s - time.monotonic(), 0.0)):
            verdict = self._receive()
            if verdict.stop is not None or verdict.step == mark.step:
                return verdict.stop
        return None

    def _late_verdict(self) -> str | None:
        while self._connection.poll():
            if (verdict := self._receive()).stop is not None:
                return verdict.stop
        return None

    def _receive(self) -> Decision:
        try:
            return self._connection.recv()
        except EOFError:  # the parent is gone, and this trial with it
            sys.exit(1)

    def _note(self, standing: GroupView, step: int) -> None:
        now_s, trainer = time.monotonic(), standing.trainer
        share = len(standing.lanes) / len(trainer.configs)
        if now_s - self._noted_s < _NOTE_INTERVAL_S:
            return
        # A parent that waits for its storage reads nothing; a full pipe must not stop the training.
        _, writable, _ = select.select([], [self._connection], [], 0.0)
        if writable:
            self._noted_s = now_s
            memory = trainer.meters.memory.read()
            self._connection.send(
                TrialProgress(
                    step=step,
                    returns=tuple(self._latest),
                    # Of the stack's speed, this trial's part.
                    env_steps_per_s=share * trainer.num_live_steps / max(trainer.elapsed_s, 1e-9),
                    vram_gib=None if memory is None else memory.gib().get("peak_reserved_gib"),
                )
            )


def _end_with_parent() -> None:
    """Have the kernel kill this process when the one it was forked from dies."""
    forked_from = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if forked_from == 1 or os.getppid() != forked_from:  # it died before that
        sys.exit(1)


def log_to(path: Path) -> None:
    """Send logging, and all that libraries print, into the attempt's own file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.close(file)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    sys.exit(_EXIT_TERMINATED)
