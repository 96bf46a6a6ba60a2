"""A task in its worker: the seeds of a trial in lockstep, their reports, and their result."""

from __future__ import annotations

import dataclasses
import logging
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from omegaconf import OmegaConf

from ppo_lab.config.run import Config
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.result import Result, worst_status
from ppo_lab.runner.run_record import RunOutput
from ppo_lab.runner.stack import Stack
from ppo_lab.tracking import Terminal
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.json_files import atomic_write
from ppo_lab.workers.base import Decision, Task, TrialProgress, TrialReport

__all__ = ["Mailbox", "TaskRun"]

log = logging.getLogger(__name__)

_DECISION_WAIT_S = 1.0
"""A trial continues after this time without a decision: the storage may not be reachable."""
_PROGRESS_INTERVAL_S = 0.5


@dataclass
class Mailbox:
    """A trial's part of the pipe between its worker and the pool."""

    connection: Connection
    read: Callable[[float], bool] | None
    """Waits for a message; None where nothing may wait."""
    decisions: deque[Decision] = field(default_factory=deque)
    """Received, but not used yet."""

    @property
    def is_writable(self) -> bool:
        """Whether the pipe has room."""
        return bool(select.select([], [self.connection], [], 0.0)[1])

    def send(self, message: TrialReport | TrialProgress) -> None:
        """Send ``message`` to the scheduler."""
        self.connection.send(message)

    def receive(self, wait_s: float = 0.0) -> Decision | None:
        """Return the next decision; None if there is none within ``wait_s``."""
        if not self.decisions and self.read is not None:
            self.read(wait_s)
        return self.decisions.popleft() if self.decisions else None


class TaskRun:
    """A task's seeds in the lanes of a stack: all at once, or as many as the strategy can hold."""

    def __init__(
        self, task: Task, stack: Stack, mailbox: Mailbox, on_end: Callable[[int], None]
    ) -> None:
        """Prepare the run; ``on_end`` gets an exit code once the result is written."""
        self.mailbox = mailbox
        self._task, self._stack, self._on_end = task, stack, on_end
        self._configs = [resolve_memory(_without_terminal(config)) for config in task.configs]
        self._reporter = None if task.is_job else _Reporter(task, mailbox)
        self.group: RunGroup
        """The seeds that wait or train now."""
        self.summaries: list[dict[str, Any]] = []
        """Of the seeds that have ended."""

    def begin(self) -> None:
        """Put the next seeds into the stack, each with a folder."""
        first = len(self.summaries)
        size = self._configs[0].memory.max_lanes or len(self._configs)
        configs = self._configs[first : first + size]
        seeds = range(first, first + len(configs))
        outputs, steps = [_output(self._task, c) for c in configs], self._task.planned_steps
        self.group = RunGroup(configs, outputs, on_finish=self._on_finish, planned_steps=steps)
        if self._reporter is not None:
            self.group.should_stop = partial(self._reporter.after_iteration, seeds)
        self._stack.queue.put(self.group)

    def _on_finish(self, summaries: list[dict[str, Any]]) -> None:
        """Begin the next seeds, or write the result once all have ended or one did not finish."""
        self.summaries += summaries
        status, reason = worst_status(self.summaries)
        if status == "finished" and len(self.summaries) < len(self._configs):
            self.begin()
            return
        exit_code = 0
        if not self._task.is_job:
            try:
                Result(self._task.number, status, reason, self.summaries).write(self._task.folder)
            except OSError:
                log.exception("trial %d has ended, but its result is lost", self._task.number)
                exit_code = 1
        self._on_end(exit_code)


def _without_terminal(config: Config) -> Config:
    """Return ``config`` for a process that shows nothing itself."""
    tracking = dataclasses.replace(config.tracking, terminal=Terminal.none)
    return dataclasses.replace(config, tracking=tracking)


def _output(task: Task, config: Config) -> RunOutput:
    """Return where a seed leaves its results; a trial's seed gets a folder with its config."""
    if task.is_job:
        return task.output
    folder = task.folder / f"seed_{config.seed}"
    (folder / ".hydra").mkdir(parents=True)
    overrides = [*task.output.overrides, f"seed={config.seed}"]
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    atomic_write(folder / ".hydra" / "config.yaml", text.encode())
    atomic_write(folder / ".hydra" / "overrides.yaml", OmegaConf.to_yaml(overrides).encode())
    run_id = task.output.run_id and f"{task.output.run_id}-s{config.seed}"
    return dataclasses.replace(task.output, folder=folder, overrides=overrides, run_id=run_id)


class _Reporter:
    """Sends a trial's progress and reports, and receives the decisions."""

    def __init__(self, task: Task, mailbox: Mailbox) -> None:
        self._number, self._mailbox, self._steps = task.number, mailbox, task.report_steps
        self._num_seeds = len(task.configs)
        self._latest: list[float | None] = [None] * self._num_seeds
        self._returns = [self._latest.copy() for _ in task.report_steps]  # by report and seed
        self._next = self._num_sent = 0
        """Reports that the training seeds have passed, and those sent."""
        self._progress_s = 0.0

    def after_iteration(self, seeds: range, trainer: Trainer, lanes: Sequence[int]) -> str | None:
        """Send what is due for ``seeds``, trained in ``lanes``; return a reason to stop, if any."""
        iteration, config = trainer.lane_iteration(lanes[0]), trainer.configs[lanes[0]]
        if iteration == 1:
            self._next = 0
        for lane, seed in zip(lanes, seeds):
            history = trainer.history(lane)
            if history.diverged is not None:
                return f"{history.diverged} (seed {trainer.configs[lane].seed})"
            self._latest[seed] = history.final_return
        step, is_last = iteration * config.num_rows, iteration == config.num_iterations
        self._send_progress(trainer, len(lanes), step)
        stop = None
        while self._next < len(self._steps) and step >= self._steps[self._next] and stop is None:
            for seed in seeds:
                self._returns[self._next][seed] = self._latest[seed]
            is_complete = seeds.stop == self._num_seeds  # all seeds have passed this step
            # None is sent twice where a failed stack made the trial begin again.
            if is_complete and not is_last and self._next == self._num_sent:
                returns = tuple(self._returns[self._next])
                self._mailbox.send(TrialReport(self._number, self._steps[self._next], returns))
                stop = self._decision(self._steps[self._next], _DECISION_WAIT_S)
                self._num_sent += 1
            self._next += 1
        return stop or (None if is_last else self._decision())

    def _decision(self, step: int | None = None, wait_s: float = 0.0) -> str | None:
        """Return a reason to stop, if any; wait for the decision at ``step``."""
        deadline_s = time.monotonic() + wait_s
        while decision := self._mailbox.receive(max(deadline_s - time.monotonic(), 0.0)):
            if decision.stop is not None or decision.step == step:
                return decision.stop
        return None

    def _send_progress(self, trainer: Trainer, num_lanes: int, step: int) -> None:
        now_s = time.monotonic()
        # A scheduler that retries its storage does not read; a full pipe must not stop training.
        if now_s - self._progress_s < _PROGRESS_INTERVAL_S or not self._mailbox.is_writable:
            return
        self._progress_s = now_s
        memory = trainer.meters.memory.read()
        share = num_lanes / len(trainer.configs)  # of the stack's speed
        steps_per_s = share * trainer.num_live_steps / max(trainer.elapsed_s, 1e-9)
        vram_gib = None if memory is None else memory.gib().get("peak_reserved_gib")
        returns = tuple(self._latest)
        self._mailbox.send(TrialProgress(self._number, step, returns, steps_per_s, vram_gib))
