"""Trials share stacks: each worker process keeps one stack of lanes full.

A worker that is killed costs the trials it had; the next one starts another.
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from ppo_lab.config.lanes import stack_key
from ppo_lab.utils.forkserver import start_server
from ppo_lab.workers.base import Decision, Event, Executor, Exited, GridJob, Task
from ppo_lab.workers.worker import WorkerMessage, stop_order, worker_main

__all__ = ["StackedExecutor"]

_GRACE_S = 10.0  # from SIGTERM, in which runs close their trackers, to SIGKILL


@dataclass
class _Worker:
    process: ForkServerProcess
    connection: Connection
    tasks: dict[int, str] = field(default_factory=dict)
    """Key of each trial it has, by number."""


class StackedExecutor(Executor):
    """Workers of this machine; see the module.

    A worker is given more trials than it has lanes for, so that the next one is there when a lane
    is free.
    """

    def __init__(
        self,
        num_workers: int,
        max_lanes: int,
        folder: Path,
        *,
        num_seeds: int = 1,
        num_ahead: int = 1,
        devices: Sequence[str] = (),
    ) -> None:
        """Start the server; workers log into ``folder`` once there are trials.

        Args:
            num_workers: Processes; process i sees the device i modulo their number.
            max_lanes: Of each worker's stack.
            folder: Exists by the time a trial starts.
            num_seeds: Lanes that a trial takes.
            num_ahead: Trials that each worker is given beyond its lanes.
            devices: CUDA's own names.
        """
        self._num_workers, self._max_lanes = num_workers, max(max_lanes, num_seeds)
        self._trials_each = self._max_lanes // num_seeds + num_ahead
        self._folder, self._devices = folder, list(devices)
        self._workers: dict[int, _Worker] = {}
        self._slots: dict[int, int] = {}
        self._context = multiprocessing.get_context("forkserver")
        start_server(is_tracked=False)  # unless it runs already

    @property
    def num_slots(self) -> int:
        """Trials that have lanes, and those that wait for the next free ones."""
        return self._num_workers * self._trials_each

    def slots(self) -> dict[int, int]:
        """Return each running trial's slot."""
        return dict(self._slots)

    def start(self, task: Task | GridJob) -> None:
        """Hand ``task`` to the worker that suits it best."""
        taken = set(self._slots.values())
        slot = next(i for i in itertools.count() if i not in taken)
        assert slot < self.num_slots, "no slot is free"
        key = stack_key(task.configs[0])
        index = self._choose(key)
        worker = self._workers.get(index) or self._start_worker(index)
        worker.tasks[task.number], self._slots[task.number] = key, slot
        _send(worker, task)

    def _choose(self, key: str) -> int:
        """Return the worker with the fewest trials, of those that train the same program."""

        def cost(index: int) -> tuple[bool, bool, int]:
            has = list(self._workers[index].tasks.values()) if index in self._workers else []
            return (len(has) >= self._trials_each, bool(has) and key not in has, len(has))

        return min(range(self._num_workers), key=cost)

    def _start_worker(self, index: int) -> _Worker:
        ours, theirs = self._context.Pipe()
        device = self._devices[index % len(self._devices)] if self._devices else None
        log_file = self._folder.absolute() / f"worker_{index}.log"
        process = self._context.Process(
            target=_forked,
            args=(theirs, self._max_lanes, log_file, device),
            name=f"worker {index}",
        )
        process.start()
        theirs.close()
        worker = self._workers[index] = _Worker(process, ours)
        return worker

    def tell(self, number: int, verdict: Decision) -> None:
        """Send a verdict; one for a trial that has ended is dropped."""
        self._tell(WorkerMessage(number, verdict))

    def stop(self, number: int) -> None:
        """End a trial at the next iteration; the others of its stack go on."""
        self._tell(stop_order(number))

    def _tell(self, told: WorkerMessage) -> None:
        for worker in self._workers.values():
            if told.number in worker.tasks:
                _send(worker, told)

    def wait(self, timeout_s: float) -> list[Event]:
        """Return messages and exits; see ``Executor``."""
        by_source: dict[Any, int] = {}
        for index, worker in self._workers.items():
            by_source[worker.process.sentinel] = index
            by_source[worker.connection] = index
        if not by_source:
            time.sleep(timeout_s)
            return []
        ready = {by_source[source] for source in connection.wait(list(by_source), timeout_s)}
        return [event for index in sorted(ready) for event in self._read(index)]

    def _read(self, index: int) -> list[Event]:
        worker = self._workers[index]
        # Asked first: what is in the pipe by then is all that a process which has ended ever sent.
        has_ended = not worker.process.is_alive()
        events: list[Event] = []
        try:
            while worker.connection.poll():
                events.append(self._heard(worker, worker.connection.recv()))
        except (EOFError, ConnectionResetError):
            has_ended = True
        if has_ended:
            events += self._bury(index)
        return events

    def _heard(self, worker: _Worker, event: Event) -> Event:
        if isinstance(event, Exited):
            del worker.tasks[event.number], self._slots[event.number]
        return event

    def _bury(self, index: int) -> list[Event]:
        """Return the exits of the trials that a worker had when it died."""
        worker = self._workers.pop(index)
        worker.process.join()
        exit_code = worker.process.exitcode
        assert exit_code is not None
        worker.connection.close()
        worker.process.close()
        for number in worker.tasks:
            del self._slots[number]
        return [Exited(number, exit_code) for number in worker.tasks]

    def close(self) -> None:
        """Send SIGTERM to every worker, SIGKILL after ten seconds, and wait until it is gone."""
        for worker in self._workers.values():
            worker.process.terminate()
        deadline_s = time.monotonic() + _GRACE_S
        while self._workers:
            self.wait(0.2)
            if time.monotonic() > deadline_s:
                deadline_s = math.inf
                for worker in self._workers.values():
                    worker.process.kill()


def _send(worker: _Worker, message: Task | GridJob | WorkerMessage) -> None:
    """Send to a worker; if it ends in this moment, the exits of its trials are the next events."""
    try:
        worker.connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        return


def _forked(connection: Connection, max_lanes: int, log_file: Path, devices: str | None) -> None:
    """Run in the new process."""
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices  # CUDA has not been touched in this process
    worker_main(connection, max_lanes, log_file)
