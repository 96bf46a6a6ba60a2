"""A grid whose jobs are lanes of stacks: what ``hydra/launcher=stacked`` does."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from ppo_lab.config.compose import Composer, load
from ppo_lab.config.run import Config
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.runner.run_record import Status
from ppo_lab.tracking import Terminal, read_summary
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import write_json
from ppo_lab.workers import Exited
from ppo_lab.workers.base import GridJob
from ppo_lab.workers.slots import choose_lanes, choose_num_workers
from ppo_lab.workers.stacked import StackedExecutor

__all__ = ["run_stacked_grid"]

_TICK_S = 0.5
_LINE_INTERVAL_S = 10.0


def run_stacked_grid(
    context: HydraContext,
    config: DictConfig,
    job_overrides: Sequence[Sequence[str]],
    first_number: int,
    *,
    num_workers: int | str,
    max_lanes: int | str,
) -> list[JobReturn]:
    """Train every job as a lane of a worker's stack; return each one's final return, in order.

    Hydra makes each job's folder, and calls its callbacks, when the job is handed to a worker.
    """
    compose = _Composer(context, config)
    waiting = deque(enumerate(job_overrides, first_number))
    head = compose.job(*waiting[0])  # its folder is the grid's first
    shared = head.job.config
    workers, devices = choose_num_workers(num_workers, shared)
    num_sharing = math.ceil(workers / len(devices)) if devices else 1
    most = choose_lanes(max_lanes, shared, num_sharing=num_sharing)
    lanes = min(most, math.ceil(len(job_overrides) / workers))
    # All of a stack may end at once, and nothing is learnt from one job for the next.
    executor = StackedExecutor(
        workers, lanes, head.job.folder.parent, num_ahead=lanes, devices=devices
    )
    line = _Line(shared, len(job_overrides))
    grid = _Grid(executor, compose, waiting, line, num_jobs=len(job_overrides))
    grid.prepared.append(head)
    waiting.popleft()
    try:
        return grid.run()
    finally:
        executor.close()


@dataclass
class _Prepared:
    job: GridJob
    returned: JobReturn


class _Composer:
    """Composes jobs as Hydra's own launcher does, and leaves the training to others."""

    def __init__(self, context: HydraContext, config: DictConfig) -> None:
        self._context = context
        self._composer = Composer(context.config_loader, config)

    def job(self, number: int, overrides: Sequence[str]) -> _Prepared:
        """Make a job's folder, with its config in it."""
        cfg = self._composer.job(overrides)
        with open_dict(cfg):
            cfg.hydra.job.id = cfg.hydra.job.num = number
        jobs: list[GridJob] = []

        def keep(task: DictConfig) -> None:
            hydra = HydraConfig.get()
            folder = Path(hydra.runtime.output_dir)
            if (folder / METRICS_FILE).exists():
                raise ConfigError("hydra.sweep.dir", folder, "holds a run already; choose another")
            typed = tuple(hydra.overrides.task)
            group = folder.parent.name
            jobs.append(GridJob(number, folder, load(task), typed, group, num_left=0))

        returned = run_job(
            keep,
            cfg,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
            hydra_context=self._context,
            configure_logging=False,  # the worker has a log of its own
        )
        if not jobs:
            _ = returned.return_value  # raises what went wrong
        return _Prepared(jobs[0], returned)


@dataclass
class _Grid:
    """The jobs: those that wait, those that a worker has, and what has come of them."""

    executor: StackedExecutor
    compose: _Composer
    waiting: deque[tuple[int, Sequence[str]]]
    line: _Line
    num_jobs: int
    prepared: deque[_Prepared] = field(default_factory=deque)
    running: dict[int, _Prepared] = field(default_factory=dict)
    returned: dict[int, JobReturn] = field(default_factory=dict)

    def run(self) -> list[JobReturn]:
        """Return what every job came to, in order of their numbers."""
        while self.prepared or self.waiting or self.running:
            self._start_some()
            for event in self.executor.wait(_TICK_S):
                if isinstance(event, Exited):
                    self._end(event)
            self.line.show(len(self.returned), len(self.running))
        return [self.returned[number] for number in sorted(self.returned)]

    def _start_some(self) -> None:
        while (self.prepared or self.waiting) and len(self.running) < self.executor.num_slots:
            if not self.prepared:
                self.prepared.append(self.compose.job(*self.waiting.popleft()))
            chosen = self.prepared.popleft()
            self.line.tell_why_alone(chosen.job.config)
            num_left = len(self.prepared) + len(self.waiting)
            planned_steps = self.num_jobs * chosen.job.config.total_steps
            job = replace(chosen.job, num_left=num_left, planned_steps=planned_steps)
            self.executor.start(job)
            self.running[chosen.job.number] = chosen

    def _end(self, event: Exited) -> None:
        ended = self.running.pop(event.number)
        path = ended.job.folder / SUMMARY_FILE
        if not path.is_file():  # its worker died before the end
            write_json(path, _lost(ended.job, event.exit_code))
        summary = read_summary(path)
        ended.returned.return_value = summary.get("final_return")
        self.returned[event.number] = ended.returned


def _lost(job: GridJob, exit_code: int) -> dict[str, Any]:
    """Return the summary of a job whose worker came to no good end."""
    how = f"ended with status {exit_code}"
    if exit_code < 0:
        how = f"was killed by {signal.Signals(-exit_code).name}"
    return {
        "status": Status.failed.value,
        "reason": f"the process that trained it {how}",
        "env": job.config.env.id,
        "seed": job.config.seed,
        "overrides": list(job.overrides),
        "folder": str(job.folder),
    }


class _Line:
    """Says now and then on stderr how far the grid is."""

    def __init__(self, config: Config, num_jobs: int) -> None:
        self._is_silent = config.tracking.terminal is Terminal.none
        self._num_jobs, self._shown_s = num_jobs, time.monotonic()
        self._num_shown = 0
        self._told: set[str] = set()

    def show(self, num_ended: int, num_running: int) -> None:
        """Print a line when one is due: after ten seconds, and at the end."""
        now_s = time.monotonic()
        is_last = num_ended == self._num_jobs
        if num_ended == self._num_shown or not (
            is_last or now_s - self._shown_s >= _LINE_INTERVAL_S
        ):
            return
        self._shown_s, self._num_shown = now_s, num_ended
        self._print(f"{num_ended} of {self._num_jobs} jobs ended, {num_running} at work")

    def tell_why_alone(self, config: Config) -> None:
        """Say once of a memory strategy that it cannot be stacked."""
        strategy = resolve_memory(config).memory
        if strategy.max_lanes is not None and strategy.name not in self._told:
            self._told.add(strategy.name)
            one = f"trains {strategy.max_lanes} lane"
            self._print(f"memory={strategy.name} {one}: its jobs run one at a time in each worker")

    def _print(self, line: str) -> None:
        if not self._is_silent:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - what the command says
