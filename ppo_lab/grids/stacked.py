"""Run a grid's jobs as lanes of stacks: the implementation of ``hydra/launcher=stacked``."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, run_job
from hydra.types import HydraContext
from omegaconf import DictConfig, open_dict

from ppo_lab.config.compose import load
from ppo_lab.config.run import Config
from ppo_lab.forecasting.budget import resolve_memory
from ppo_lab.grids.progress import GridProgress
from ppo_lab.runner.run_record import RunOutput, Status
from ppo_lab.tracking import read_summary
from ppo_lab.tracking.local import SUMMARY_FILE
from ppo_lab.tracking.tables import overridden_keys
from ppo_lab.utils.json_files import write_json
from ppo_lab.workers.base import Exited, Task, TrialProgress, WorkerPool
from ppo_lab.workers.stacked import StackedPool

__all__ = ["run_stacked_grid"]

_TICK_S = 0.5


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
    named = dict(enumerate(job_overrides, first_number))
    with closing(pool), GridProgress(folder.name, named, shared.tracking.terminal) as progress:
        return _run_jobs(pool, itertools.chain([first], jobs), progress, num_jobs)


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


def _run_jobs(
    pool: WorkerPool, jobs: Iterator[JobReturn], progress: GridProgress, num_jobs: int
) -> list[JobReturn]:
    """Run all jobs; return them in order, each with its final return in place of its task."""
    running: dict[int, JobReturn] = {}
    ended: dict[int, JobReturn] = {}
    num_left, unstackable = num_jobs, set[str]()
    while num_left or running:
        for job in itertools.islice(jobs, pool.max_running - len(running)):
            task: Task = job.return_value  # raises what went wrong
            (config,) = task.configs
            if (line := _unstackable(config)) and line not in unstackable:
                unstackable.add(line)
                progress.print(line)
            num_left -= 1
            planned_steps = num_jobs * config.total_steps
            pool.start(replace(task, num_left=num_left, planned_steps=planned_steps))
            progress.start(task.number, config.total_steps)
            running[task.number] = job
        for event in pool.wait(_TICK_S):
            if isinstance(event, Exited):
                job = ended[event.number] = running.pop(event.number)
                summary = _final_summary(job.return_value, event.exit_code)
                progress.end(event.number, summary)
                job.return_value = summary.get("final_return")
            elif isinstance(event, TrialProgress):
                progress.advance(event)
        progress.tick()
    return [ended[number] for number in sorted(ended)]


def _unstackable(config: Config) -> str:
    """Return a line about a memory strategy or network that cannot train several lanes."""
    if (limit := resolve_memory(config).lane_limit) is None:
        return ""
    key, name, most = limit
    return f"{key}={name} trains {most} lane: its jobs run one at a time in each worker"


def _final_summary(task: Task, exit_code: int) -> dict[str, Any]:
    """Return the job's summary; write that of a job whose worker died."""
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
    return read_summary(path)
