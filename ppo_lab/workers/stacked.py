"""Pool whose workers each keep one stack of lanes full with many tasks."""

from __future__ import annotations

import math
from pathlib import Path

from ppo_lab.config.run import Config
from ppo_lab.workers.base import Cancel, Task
from ppo_lab.workers.processes import ProcessPool
from ppo_lab.workers.resources import choose_lanes, choose_num_workers

__all__ = ["StackedPool"]


class StackedPool(ProcessPool):
    """Long-lived workers, each given more tasks than it has lanes, so that the next one is ready.

    If a worker is killed, its tasks exit with it; the next task starts another worker.
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

    def _start_worker(self, index: int, task: Task) -> None:  # noqa: ARG002
        log_file = self._folder.absolute() / f"worker_{index}.log"
        self._fork(index, log_file, self._max_lanes, exits_after_task=False)

    def stop(self, number: int) -> None:
        """Stop a task after the current iteration; the others of its stack continue."""
        self.send(Cancel(number))
