"""Pool whose workers each keep one stack of lanes full with many tasks."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from ppo_lab.config.run import Config
from ppo_lab.workers.base import Cancel, Exited, Task, WorkerEvent
from ppo_lab.workers.processes import ProcessPool, Running
from ppo_lab.workers.resources import choose_lanes, choose_num_workers

__all__ = ["StackedPool"]

log = logging.getLogger(__name__)


class StackedPool(ProcessPool):
    """Long-lived workers, each given more tasks than it has lanes, so that the next one is ready.

    If a worker dies, one of its tasks is to blame, and nobody knows which. They go on in halves,
    each in a worker that takes no others, until one task has died alone: that is its exit.
    """

    def __init__(
        self,
        config: Config,
        folder: Path,
        *,
        num_workers: int | str,
        max_lanes: int | str,
        num_tasks: int,
        num_seeds: int = 1,
        num_ahead: int | None = None,
    ) -> None:
        """Use no more lanes than ``num_tasks`` tasks like ``config`` need, each for ``num_seeds``.

        ``num_workers`` and ``max_lanes`` may be ``auto``. Each worker is given ``num_ahead`` tasks
        beyond its lanes, by default a full stack. The workers' logs are in ``folder``.
        """
        workers, devices = choose_num_workers(num_workers, config)
        super().__init__(workers, devices)
        num_sharing = math.ceil(workers / len(devices)) if devices else 1
        most = choose_lanes(max_lanes, config, num_sharing=num_sharing, num_seeds=num_seeds)
        lanes = max(num_seeds, min(most, math.ceil(num_tasks / workers) * num_seeds))
        self._max_lanes, self._folder = lanes, folder
        self._tasks_each = lanes // num_seeds + (lanes if num_ahead is None else num_ahead)
        self._halves: deque[list[Running]] = deque()
        """Tasks of workers that died, to be sent to one of their own."""
        self._cancelled: list[WorkerEvent] = []

    def _start_worker(self, index: int, task: Task) -> None:  # noqa: ARG002
        log_file = self._folder.absolute() / f"worker_{index}.log"
        self._fork(index, log_file, self._max_lanes, exits_after_task=False)

    def stop(self, number: int) -> None:
        """Stop a task after the current iteration; the others of its stack continue."""
        for half in self._halves:
            for running in [running for running in half if running.task.number == number]:
                half.remove(running)
                self._cancelled.append(Exited(number, 0))
        self.send(Cancel(number))

    def wait(self, timeout_s: float) -> list[WorkerEvent]:
        """Return messages and exits; see ``WorkerPool``."""
        self._send_halves()
        cancelled, self._cancelled = self._cancelled, []
        return cancelled or super().wait(timeout_s)

    def close(self) -> None:
        """See ``WorkerPool``."""
        self._halves.clear()
        super().close()

    def _all_running(self) -> Iterator[Running]:
        yield from super()._all_running()
        yield from itertools.chain(*self._halves)

    def _assign(self, running: Running) -> None:
        if self._is_full(self._choose(running.key)):  # while tasks that died run apart
            self._halves.append([running])
        else:
            super()._assign(running)

    def _remove(self, index: int) -> list[WorkerEvent]:
        """Remove a worker that has ended; its exits, unless its tasks go on in halves."""
        worker = self._workers[index]
        exits = super()._remove(index)
        tasks = list(worker.tasks.values())
        if len(tasks) < 2 or worker.kill_s < math.inf:
            return exits
        log.warning("a worker died with %d tasks; they go on in halves", len(tasks))
        middle = (len(tasks) + 1) // 2
        self._halves += [tasks[:middle], tasks[middle:]]
        return []

    def _send_halves(self) -> None:
        """Send tasks of workers that died to workers that have none."""
        for index in range(self._num_workers):
            worker = self._workers.get(index)
            if worker is not None and worker.tasks:
                continue
            half = next(filter(None, self._halves), [])
            self._halves = deque(other for other in self._halves if other and other is not half)
            for num_left, running in reversed(list(enumerate(reversed(half)))):
                task = dataclasses.replace(running.task, num_left=num_left)
                self._send_to(index, running._replace(task=task))
            if index in self._workers:
                self._workers[index].is_apart = bool(half)
