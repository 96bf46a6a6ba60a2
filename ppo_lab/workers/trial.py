"""A task in its worker: the seeds of a trial in lockstep, their reports, and their result."""

from __future__ import annotations

import bisect
import dataclasses
import logging
import os
import select
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import fmean
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import resolve_memory
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.result import Result, worst_status
from ppo_lab.runner.resume import copy_run
from ppo_lab.runner.run_record import RunOutput, one_line
from ppo_lab.runner.signals import Interrupted
from ppo_lab.runner.stack import Stack
from ppo_lab.runner.stored import write_config
from ppo_lab.tracking import Terminal
from ppo_lab.training.checkpoint import load_checkpoint
from ppo_lab.training.scores import History, policy_state
from ppo_lab.training.trainer import Trainer
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
        """Send ``message`` to the scheduler; raise ``Interrupted`` if it is gone."""
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            raise Interrupted(signal.SIGTERM) from None

    def receive(self, wait_s: float = 0.0) -> Decision | None:
        """Return the next decision; None if there is none within ``wait_s``."""
        if not self.decisions and self.read is not None:
            self.read(wait_s)
        return self.decisions.popleft() if self.decisions else None


class TaskRun:
    """A task's seeds in the lanes of a stack: all at once, or as many as the strategy can hold.

    Whatever happens, the task has one end.
    """

    def __init__(
        self, task: Task, stack: Stack, mailbox: Mailbox, on_end: Callable[[int], None]
    ) -> None:
        """Prepare the run; ``on_end`` gets an exit code once the result is written."""
        self.mailbox = mailbox
        self._task, self._stack, self._on_end = task, stack, on_end
        self._configs: list[Config] = []
        self._reporter = _Reporter(task, mailbox)
        self.group: RunGroup | None = None
        """The seeds that wait or train now."""
        self.summaries: list[dict[str, Any]] = []
        """Of the seeds that have ended."""

    def begin(self) -> None:
        """Put the first seeds into the stack, each with a folder."""
        self._attempt(self._begin_first)

    def _begin_first(self) -> None:
        self._configs = [resolve_memory(_in_worker(config)) for config in self._task.configs]
        self._begin()

    def _begin(self) -> None:
        """Put the next seeds into the stack."""
        first = len(self.summaries)
        limit = self._configs[0].lane_limit
        size = len(self._configs) if limit is None else limit[2]
        configs = self._configs[first : first + size]
        seeds = range(first, first + len(configs))
        outputs, steps = [_output(self._task, c) for c in configs], self._task.planned_steps
        self.group = RunGroup(configs, outputs, on_finish=self._on_finish, planned_steps=steps)
        self.group.should_stop = partial(self._reporter.after_iteration, seeds)
        self._stack.queue.put(self.group)

    def _on_finish(self, summaries: list[dict[str, Any]]) -> None:
        self.summaries += summaries
        self._attempt(self._go_on)

    def _go_on(self) -> None:
        """Begin the next seeds, or write the result once all have ended or one did not finish."""
        status, reason = worst_status(self.summaries)
        if status == "finished" and len(self.summaries) < len(self._configs):
            self._begin()
            return
        if not self._task.is_job:
            Result(self._task.number, status, reason, self.summaries).write(self._task.folder)
        self._on_end(0)

    def _attempt(self, act: Callable[[], None]) -> None:
        """Call ``act``; an error is the end of this task, and of no other in the stack."""
        try:
            act()
        except Exception as error:
            number, folder = self._task.number, self._task.folder
            log.exception("task %d ends here", number)
            if not self._task.is_job and not isinstance(error, OSError):
                Result(number, "failed", one_line(error), self.summaries).write(folder)
            self._on_end(1)


def _in_worker(config: Config) -> Config:
    """Return ``config`` for a process that shows nothing itself and sees its own GPU only."""
    tracking = dataclasses.replace(config.tracking, terminal=Terminal.none)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    is_named = config.device.startswith("cuda:") and visible and "," not in visible
    device = "cuda" if is_named else config.device
    return dataclasses.replace(config, tracking=tracking, device=device)


def _output(task: Task, config: Config) -> RunOutput:
    """Return where a seed leaves its results; a trial's seed gets a folder with its config.

    It goes on from the checkpoint of an earlier attempt, here or in another folder.
    """
    if task.is_job:
        return dataclasses.replace(task.output, resumes=True)
    name = f"seed_{config.seed}"
    folder = task.folder / name
    overrides = [*task.output.overrides, f"seed={config.seed}"]
    write_config(folder, config, overrides)
    if load_checkpoint(folder) is None:
        any(copy_run(former / name, folder) for former in _former_attempts(task.folder))
    run_id = task.output.run_id and f"{task.output.run_id}-s{config.seed}"
    return dataclasses.replace(
        task.output, folder=folder, overrides=overrides, run_id=run_id, resumes=True
    )


def _former_attempts(folder: Path) -> list[Path]:
    """Return the folders of a trial's earlier attempts, the latest first.

    The first attempt's is the trial's own, ``0007``, and the third's is ``0007/attempt_3`` in it.
    """
    kind, _, number = folder.name.partition("_")
    if kind != "attempt" or not number.isdecimal():
        return []
    later = [folder.with_name(f"attempt_{n}") for n in range(int(number) - 1, 1, -1)]
    return [*later, folder.parent]


class _Reporter:
    """Sends a trial's progress and reports, and receives the decisions."""

    def __init__(self, task: Task, mailbox: Mailbox) -> None:
        self._number, self._mailbox, self._steps = task.number, mailbox, task.report_steps
        self._num_seeds = len(task.configs)
        self._latest: list[float | None] = [None] * self._num_seeds
        self._returns = [self._latest.copy() for _ in task.report_steps]  # by report and seed
        self._iteration = self._next = self._num_sent = 0
        """The last iteration, the reports that the training seeds have passed, and those sent."""
        self._progress_s = 0.0

    def after_iteration(self, seeds: range, trainer: Trainer, lanes: Sequence[int]) -> str | None:
        """Send what is due for ``seeds``, trained in ``lanes``; return a reason to stop, if any."""
        iteration, config = trainer.lane_iteration(lanes[0]), trainer.configs[lanes[0]]
        if iteration <= self._iteration:  # other seeds, or these from a checkpoint
            self._next = 0
        self._iteration = iteration
        for lane, seed in zip(lanes, seeds):
            history = trainer.history(lane)
            if history.diverged is not None:
                return f"{history.diverged} (seed {trainer.configs[lane].seed})"
            self._latest[seed] = history.final_return
        step = min(map(trainer.lane_steps, lanes))
        self._send_progress(trainer, lanes, step)
        stop = None
        while self._next < len(self._steps) and step >= self._steps[self._next] and stop is None:
            mark = self._steps[self._next]
            for lane, seed in zip(lanes, seeds):
                history = trainer.history(lane)
                self._returns[self._next][seed] = _return_at(history, mark, config.num_rows)
            is_complete = seeds.stop == self._num_seeds  # all seeds have passed this step
            is_last = mark > config.num_counted_steps - config.num_rows
            # None is sent twice where the trial began again or went on from a checkpoint.
            if is_complete and not is_last and self._next == self._num_sent:
                returns = tuple(self._returns[self._next])
                self._mailbox.send(TrialReport(self._number, self._steps[self._next], returns))
                stop = self._decision(self._steps[self._next], _DECISION_WAIT_S)
                self._num_sent += 1
            self._next += 1
        has_ended = step >= config.num_counted_steps
        return stop or (None if has_ended else self._decision())

    def _decision(self, step: int | None = None, wait_s: float = 0.0) -> str | None:
        """Return a reason to stop, if any; wait for the decision at ``step``."""
        deadline_s = time.monotonic() + wait_s
        while decision := self._mailbox.receive(max(deadline_s - time.monotonic(), 0.0)):
            if decision.stop is not None or decision.step == step:
                return decision.stop
        return None

    def _send_progress(self, trainer: Trainer, lanes: Sequence[int], step: int) -> None:
        now_s = time.monotonic()
        # A scheduler that retries its storage does not read; a full pipe must not stop training.
        if now_s - self._progress_s < _PROGRESS_INTERVAL_S or not self._mailbox.is_writable:
            return
        self._progress_s = now_s
        memory = trainer.meters.memory.read()
        share = len(lanes) / len(trainer.configs)  # of the stack's speed
        steps_per_s = share * trainer.num_live_steps / max(trainer.elapsed_s, 1e-9)
        vram_gib = None if memory is None else memory.gib().get("peak_reserved_gib")
        returns = tuple(self._latest)
        histories = [trainer.history(lane) for lane in lanes]
        kls = [history.kls[-1] for history in histories if history.kls]
        score_range = trainer.configs[lanes[0]].env.score_range()
        states = [policy_state(history, score_range) for history in histories]
        self._mailbox.send(
            TrialProgress(
                self._number, step, returns, steps_per_s, vram_gib,
                kl=fmean(kls) if kls else None, state=next(filter(None, states), ""),
            )
        )  # fmt: skip


def _return_at(history: History, mark: int, num_rows: int) -> float | None:
    """Return the mean return after the iteration of ``num_rows`` steps that passed ``mark``."""
    index = bisect.bisect_left(history.steps, mark)
    has_passed = index < len(history.steps) and history.steps[index] < mark + num_rows
    return history.returns[index] if has_passed else None
