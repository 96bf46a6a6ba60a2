"""Pool of local worker processes, forked from a server that has imported everything.

The server (multiprocessing's) is started once, holds no CUDA context and no thread of ours, and
exits with this process; a worker is killed when the server exits. So no process outlives a
scheduler that is killed.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

from ppo_lab.config.lanes import stack_key
from ppo_lab.utils.forkserver import start_server
from ppo_lab.workers.base import Cancel, Decision, Exited, Task, WorkerEvent, WorkerPool
from ppo_lab.workers.worker import worker_main

__all__ = ["ProcessPool", "Running", "WorkerHandle"]

_GRACE_S = 10.0  # from SIGTERM, on which runs close their trackers, to SIGKILL


class Running(NamedTuple):
    """A task that a worker has; its ``key`` is that of tasks which can share a stack."""

    slot: int
    key: str
    task: Task


@dataclass
class WorkerHandle:
    """A worker process and the tasks that it has been sent."""

    process: ForkServerProcess
    connection: Connection
    tasks: dict[int, Running] = field(default_factory=dict)
    is_apart: bool = False
    """Whether it takes no tasks beside those that it has."""
    kill_s: float = math.inf
    """Time of its SIGKILL on the monotonic clock, once it was sent SIGTERM."""


class ProcessPool(WorkerPool):
    """Runs each task in a process of its own, so that a crash costs that task only."""

    _tasks_each = 1
    """Tasks that a worker accepts at a time."""

    def __init__(self, num_workers: int, devices: Sequence[str] = ()) -> None:
        """Start the fork server unless it is running.

        Worker i sees CUDA device i modulo their number; ``devices`` are CUDA's own names.
        """
        self._num_workers, self._devices = num_workers, list(devices)
        self._workers: dict[int, WorkerHandle] = {}
        self._context = multiprocessing.get_context("forkserver")
        start_server(is_tracked=False)

    @property
    def max_running(self) -> int:
        """Tasks that the pool accepts at a time."""
        return self._num_workers * self._tasks_each

    def start(self, task: Task) -> int:
        """Send ``task`` to the most suitable worker; see ``WorkerPool``."""
        taken = {running.slot for running in self._all_running()}
        slot = next(i for i in itertools.count() if i not in taken)
        assert slot < self.max_running, "the pool is full"
        self._assign(Running(slot, stack_key(task.configs[0]), task))
        return slot

    def _all_running(self) -> Iterator[Running]:
        for worker in self._workers.values():
            yield from worker.tasks.values()

    def _assign(self, running: Running) -> None:
        """Send a task to the most suitable worker."""
        self._send_to(self._choose(running.key), running)

    def _send_to(self, index: int, running: Running) -> None:
        """Send a task to worker ``index``, which is started if it is not there."""
        if index not in self._workers:
            self._start_worker(index, running.task)
        self._workers[index].tasks[running.task.number] = running
        _send(self._workers[index], running.task)

    def _choose(self, key: str) -> int:
        """Return the worker with the fewest tasks, preferably among those of the same program."""

        def cost(index: int) -> tuple[bool, bool, int]:
            has = self._workers[index].tasks.values() if index in self._workers else ()
            is_other = bool(has) and all(running.key != key for running in has)
            return (self._is_full(index), is_other, len(has))

        return min(range(self._num_workers), key=cost)

    def _is_full(self, index: int) -> bool:
        worker = self._workers.get(index)
        return worker is not None and (worker.is_apart or len(worker.tasks) >= self._tasks_each)

    def _start_worker(self, index: int, task: Task) -> None:
        """Fork worker ``index``, whose first task is ``task``."""
        self._fork(index, task.folder / "log", len(task.configs), exits_after_task=True)

    def _fork(self, index: int, log_file: Path, max_lanes: int, *, exits_after_task: bool) -> None:
        ours, theirs = self._context.Pipe()
        device = self._devices[index % len(self._devices)] if self._devices else None
        args = (theirs, log_file, device, self._num_workers, max_lanes, exits_after_task)
        process = self._context.Process(target=worker_main, args=args, name=f"worker {index}")
        process.start()
        theirs.close()
        self._workers[index] = WorkerHandle(process, ours)

    def send(self, message: Decision | Cancel) -> None:
        """Send a decision to its task; ignored if the task has ended."""
        if (worker := self._worker_of(message.number)) is not None:
            _send(worker, message)

    def _worker_of(self, number: int) -> WorkerHandle | None:
        return next((w for w in self._workers.values() if number in w.tasks), None)

    def wait(self, timeout_s: float) -> list[WorkerEvent]:
        """Return messages and exits; see ``WorkerPool``."""
        by_source: dict[Any, int] = {}
        for index, worker in self._workers.items():
            by_source[worker.process.sentinel] = index
            if not worker.connection.closed:
                by_source[worker.connection] = index
        if not by_source:
            time.sleep(timeout_s)
            return []
        ready = {by_source[source] for source in connection.wait(list(by_source), timeout_s)}
        for worker in self._workers.values():
            if time.monotonic() > worker.kill_s:
                worker.process.kill()
        return [event for index in sorted(ready) for event in self._read(index)]

    def _read(self, index: int) -> list[WorkerEvent]:
        worker = self._workers[index]
        # Checked first: the pipe then holds everything that an ended process ever sent.
        has_ended = not worker.process.is_alive()
        events: list[WorkerEvent] = []
        try:
            while not worker.connection.closed and worker.connection.poll():
                events.append(worker.connection.recv())
        except (EOFError, ConnectionResetError):
            worker.connection.close()
            has_ended |= self._tasks_each > 1  # joined now, lest it is sent another task
        for event in events:
            if isinstance(event, Exited):
                del worker.tasks[event.number]
        return events + self._remove(index) if has_ended else events

    def _remove(self, index: int) -> list[WorkerEvent]:
        """Remove a worker that has ended and return the exits of its tasks."""
        worker = self._workers.pop(index)
        worker.process.join()
        exit_code = worker.process.exitcode
        assert exit_code is not None
        worker.connection.close()
        worker.process.close()
        return [Exited(number, exit_code) for number in worker.tasks]

    def stop(self, number: int) -> None:
        """Send SIGTERM to the task's process, and SIGKILL after ten seconds."""
        if (worker := self._worker_of(number)) is not None:
            _terminate(worker)

    def close(self) -> None:
        """Send SIGTERM to every worker, SIGKILL after ten seconds, and wait until it is gone."""
        for worker in self._workers.values():
            _terminate(worker)
        while self._workers:
            self.wait(0.2)


def _terminate(worker: WorkerHandle) -> None:
    if worker.kill_s == math.inf:
        worker.kill_s = time.monotonic() + _GRACE_S
        worker.process.terminate()


def _send(worker: WorkerHandle, message: Task | Decision | Cancel) -> None:
    """Send to a worker; if it is ending, the exits of its tasks are the next events."""
    try:
        if not worker.connection.closed:
            worker.connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return
