"""Run a grid's jobs as lanes of stacks: the implementation of ``hydra/launcher=stacked``."""

from __future__ import annotations

import itertools
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from ppo_lab.config.compose import load
from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import resolve_memory
from ppo_lab.runner.run_record import RunOutput, Status
from ppo_lab.tracking import Terminal, read_summary
from ppo_lab.tracking.local import SUMMARY_FILE
from ppo_lab.tracking.tables import overridden_keys
from ppo_lab.utils.json_files import write_json
from ppo_lab.workers.base import Exited, Task, WorkerPool
from ppo_lab.workers.stacked import StackedPool

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
    """Train every job as a lane of a worker's stack; return the final returns in order.

    Hydra makes each job's folder and runs its callbacks when the job is sent to a worker.
    """
    compose = context.config_loader.load_sweep_config
    numbered = enumerate(job_overrides, first_number)
    task = partial(_task, varying=overridden_keys(job_overrides))
    jobs = (_begin_job(context, compose(config, list(texts)), n, task) for n, texts in numbered)
    first = next(jobs)  # its folder is the first in the grid's
    (shared,) = first.return_value.configs
    num_jobs = len(job_overrides)
    # By default a full stack of jobs is ready ahead: all of a stack may end at once.
    folder = Path(config.hydra.sweep.dir)
    pool = StackedPool(
        shared, folder, num_workers=num_workers, max_lanes=max_lanes, num_tasks=num_jobs
    )
    try:
        return _run_jobs(pool, itertools.chain([first], jobs), _ProgressLine(shared, num_jobs))
    finally:
        pool.close()


def _begin_job(
    context: HydraContext, cfg: DictConfig, number: int, task: Callable[[DictConfig], Task]
) -> JobReturn:
    """Make a job's folder as Hydra's own launcher does; ``return_value`` is its ``task``."""
    with open_dict(cfg):
        cfg.hydra.job.id = cfg.hydra.job.num = number
    return run_job(
        task,
        cfg,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
        hydra_context=context,
        configure_logging=False,  # the worker has its own log
    )


def _task(cfg: DictConfig, varying: Sequence[str] | None) -> Task:
    """Return the task of the job that Hydra is running; ``varying`` are the grid's keys."""
    hydra = HydraConfig.get()
    group = Path(hydra.sweep.dir).name
    folder, overrides = Path(hydra.runtime.output_dir), list(hydra.overrides.task)
    output = RunOutput(folder, overrides, group, varying, resumes=True)
    return Task(hydra.job.num, (load(cfg),), output, is_job=True)


def _run_jobs(pool: WorkerPool, jobs: Iterator[JobReturn], line: _ProgressLine) -> list[JobReturn]:
    """Run all jobs; return them in order, each with its final return in place of its task."""
    running: dict[int, JobReturn] = {}
    ended: dict[int, JobReturn] = {}
    num_left = line.num_jobs
    while num_left or running:
        for job in itertools.islice(jobs, pool.max_running - len(running)):
            task: Task = job.return_value  # raises what went wrong
            (config,) = task.configs
            line.note_unstackable(config)
            num_left -= 1
            planned_steps = line.num_jobs * config.total_steps
            pool.start(replace(task, num_left=num_left, planned_steps=planned_steps))
            running[task.number] = job
        for event in pool.wait(_TICK_S):
            if isinstance(event, Exited):
                job = ended[event.number] = running.pop(event.number)
                job.return_value = _final_return(job.return_value, event.exit_code)
        line.show(len(ended), len(running))
    return [ended[number] for number in sorted(ended)]


def _final_return(task: Task, exit_code: int) -> float | None:
    """Return the job's final return; write the summary of a job whose worker died."""
    path = task.folder / SUMMARY_FILE
    if not path.is_file():
        how = f"ended with status {exit_code}"
        if exit_code < 0:
            how = f"was killed by {signal.Signals(-exit_code).name}"
        summary = {
            "status": Status.failed.value,
            "reason": f"the process that trained it {how}",
            "env": task.configs[0].env.id,
            "seed": task.configs[0].seed,
            "overrides": list(task.output.overrides),
            "folder": str(task.folder),
        }
        write_json(path, summary)
    final_return: float | None = read_summary(path).get("final_return")
    return final_return


class _ProgressLine:
    """Prints a line about the grid's progress to stderr now and then."""

    def __init__(self, config: Config, num_jobs: int) -> None:
        self.num_jobs = num_jobs
        self._is_silent = config.tracking.terminal is Terminal.none
        self._shown_s, self._num_shown = time.monotonic(), 0
        self._unstackable: set[str] = set()

    def show(self, num_ended: int, num_running: int) -> None:
        """Print a line if jobs have ended: at most every ten seconds, and at the end."""
        now_s = time.monotonic()
        is_due = num_ended == self.num_jobs or now_s - self._shown_s >= _LINE_INTERVAL_S
        if is_due and num_ended != self._num_shown:
            self._shown_s, self._num_shown = now_s, num_ended
            self._print(f"{num_ended} of {self.num_jobs} jobs ended, {num_running} running")

    def note_unstackable(self, config: Config) -> None:
        """Print once for each memory strategy or network that it cannot train several lanes."""
        limit = resolve_memory(config).lane_limit
        if limit is not None and limit[1] not in self._unstackable:
            key, name, most = limit
            self._unstackable.add(name)
            line = f"{key}={name} trains {most} lane: its jobs run one at a time in each worker"
            self._print(line)

    def _print(self, line: str) -> None:
        if not self._is_silent:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - output of the command
