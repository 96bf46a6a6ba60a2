"""Pool whose workers each keep one stack of lanes full with many tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from ppo_lab.config.run import Config
from ppo_lab.workers.base import Cancel, Task
from ppo_lab.workers.processes import ProcessPool
from ppo_lab.workers.resources import choose_lanes, choose_num_workers

__all__ = ["StackedPool", "make_stacked_pool"]


class StackedPool(ProcessPool):
    """Long-lived workers, each given more tasks than it has lanes, so that the next one is ready.

    If a worker is killed, its tasks exit with it; the next task starts another worker.
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
        """Give each worker tasks for ``max_lanes`` lanes and ``num_ahead`` more.

        A task takes ``num_seeds`` lanes. The workers' logs are in ``folder``.
        """
        super().__init__(num_workers, devices)
        self._max_lanes, self._folder = max(max_lanes, num_seeds), folder
        self._tasks_each = self._max_lanes // num_seeds + num_ahead

    def _start_worker(self, index: int, task: Task) -> None:  # noqa: ARG002
        log_file = self._folder.absolute() / f"worker_{index}.log"
        self._fork(index, log_file, self._max_lanes, is_single=False)

    def stop(self, number: int) -> None:
        """Stop a task after the current iteration; the others of its stack continue."""
        self.send(Cancel(number))


def make_stacked_pool(
    config: Config,
    folder: Path,
    *,
    num_workers: int | str,
    max_lanes: int | str,
    num_tasks: int,
    num_seeds: int = 1,
    num_ahead: int | None = None,
) -> StackedPool:
    """Return a pool for ``num_tasks`` tasks like ``config``, with no more lanes than they need.

    ``num_workers`` and ``max_lanes`` may be ``auto``; by default ``num_ahead`` is a full stack.
    """
    workers, devices = choose_num_workers(num_workers, config)
    num_sharing = math.ceil(workers / len(devices)) if devices else 1
    most = choose_lanes(max_lanes, config, num_sharing=num_sharing, num_seeds=num_seeds)
    lanes = min(most, math.ceil(num_tasks / workers) * num_seeds)
    ahead = lanes if num_ahead is None else num_ahead
    return StackedPool(
        workers, lanes, folder, num_seeds=num_seeds, num_ahead=ahead, devices=devices
    )
