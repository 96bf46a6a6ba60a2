"""A process that keeps one stack full with what the parent hands it.

Trials and jobs of grids are known by their number. Between two iterations the worker reads what
the parent has sent; it waits for it only when there is nothing to do, and a moment after an end.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.run_record import RunOutput
from ppo_lab.runner.stack import Stack
from ppo_lab.workers.base import (
    Decision,
    Exited,
    GridJob,
    Reported,
    Task,
    TrialProgress,
    TrialReport,
)
from ppo_lab.workers.trial import become_child, log_to, trial_group, without_terminal

__all__ = ["WorkerMessage", "stop_order", "worker_main"]

log = logging.getLogger(__name__)

_REFILL_WAIT_S = 0.05
"""After an end, the parent has this long to fill the free lanes: about an iteration's time."""
_FIRST_WAIT_S = 1.0
"""Before anything runs, each further trial has this long to come: then all lanes begin at once."""


@dataclass(frozen=True)
class WorkerMessage:
    """Parent to worker: what concerns one trial that the worker has."""

    number: int
    verdict: Decision | None
    """None to end it now."""


def stop_order(number: int) -> WorkerMessage:
    """Return what ends a trial now."""
    return WorkerMessage(number, None)


def worker_main(connection: Connection, max_lanes: int, log_file: Path) -> None:
    """Run as a process of its own, until SIGTERM or the parent's end."""
    become_child()
    log_to(log_file)
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    log.info("process %d, %d lanes, CUDA_VISIBLE_DEVICES=%s", os.getpid(), max_lanes, devices)
    _Worker(connection, max_lanes, log_file).run()


class _Worker:
    """The loop, and the entries by their number."""

    def __init__(self, connection: Connection, max_lanes: int, log_file: Path) -> None:
        self._connection, self._stack, self._log_file = connection, Stack(max_lanes), log_file
        self._entries: dict[int, RunGroup] = {}
        self._mail: dict[int, _Mail] = {}
        self._has_lane_to_fill = False

    def run(self) -> None:
        """Take what comes and train, until the parent is gone."""
        try:
            while self._read():
                self._stack.step()
        finally:
            self._stack.close()
            share = self._stack.utilization.busy_frac
            log.info("%.1f %% of the lanes were busy until the last run began", 100.0 * share)

    def _read(self) -> bool:
        """Take what the parent has sent; wait for it if there is nothing to do.

        Returns:
            Whether the parent is still there.
        """
        try:
            if not self._stack.has_work:
                self._take(self._connection.recv())
                while self._expects_more() and self._connection.poll(_FIRST_WAIT_S):
                    self._take(self._connection.recv())
            deadline_s = time.monotonic() + (_REFILL_WAIT_S if self._has_lane_to_fill else 0.0)
            self._has_lane_to_fill = False
            while self._connection.poll(
                max(0.0, deadline_s - time.monotonic()) if self._expects_more() else 0.0
            ):
                self._take(self._connection.recv())
        except (EOFError, ConnectionResetError):
            return False
        return True

    def _expects_more(self) -> bool:
        """Return whether a lane may stay free that the parent has something for."""
        return (
            self._stack.queue.num_wanted < self._stack.num_free and self._stack.queue.num_more != 0
        )

    def _take(self, message: Task | GridJob | WorkerMessage) -> None:
        if not isinstance(message, WorkerMessage):
            self._begin(message)
            return
        entry = self._entries.get(message.number)
        if entry is None:
            return  # it has ended meanwhile
        if message.verdict is not None:
            self._mail[message.number].verdicts.append(message.verdict)
            return
        self._stack.abort(entry)
        if message.number in self._entries:  # it waited, and has nothing to finish
            self._end(message.number)

    def _begin(self, task: Task | GridJob) -> None:
        ours = os.path.relpath(self._log_file, task.folder)
        (task.folder / "log").write_text(f"trained as lanes of a stack; see {ours}\n")
        log.info("%d arrives: %s", task.number, " ".join(task.overrides))
        number = task.number

        def on_end() -> None:
            self._end(number)

        mail = self._mail[number] = _Mail(number, self._connection)
        entry = (
            trial_group(task, mail, on_end) if isinstance(task, Task) else _job_group(task, on_end)
        )
        self._entries[number] = entry
        if isinstance(task, GridJob):
            self._stack.queue.num_more = task.num_left
        self._stack.queue.put(entry)

    def _end(self, number: int) -> None:
        entry = self._entries.pop(number)
        del self._mail[number]
        self._has_lane_to_fill = True
        log.info("%d: %s", number, ", ".join(s["status"] for s in entry.summaries) or "not begun")
        self._connection.send(Exited(number, 0))


def _job_group(job: GridJob, on_end: Callable[[], None]) -> RunGroup:
    """Return a grid's job as a group of one for a shared stack."""
    return RunGroup(
        [without_terminal(job.config)],
        [RunOutput(job.folder, job.overrides, job.group)],
        on_finish=lambda _: on_end(),
        planned_steps=job.planned_steps,
    )


class _Mail:
    """A trial's share of the pipe: it sends with its number, and reads what came for it."""

    def __init__(self, number: int, connection: Connection) -> None:
        self._number, self._connection = number, connection
        self.verdicts: deque[Decision] = deque()

    def send(self, message: TrialReport | TrialProgress, /) -> None:
        self._connection.send(Reported(self._number, message))

    def poll(self, timeout: float = 0.0, /) -> bool:  # noqa: ARG002 - a stack does not wait
        return bool(self.verdicts)

    def recv(self) -> Decision:
        return self.verdicts.popleft()

    def fileno(self) -> int:
        return self._connection.fileno()
