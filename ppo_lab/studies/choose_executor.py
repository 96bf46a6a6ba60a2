"""Choose the worker pool of a study and its size."""

from __future__ import annotations

from ppo_lab.config.study import Executor
from ppo_lab.forecasting.budget import resolve_memory
from ppo_lab.studies.definition.objective import is_measured
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.display.log_lines import print_line
from ppo_lab.workers.base import WorkerPool
from ppo_lab.workers.processes import ProcessPool
from ppo_lab.workers.resources import choose_num_workers
from ppo_lab.workers.stacked import StackedPool

__all__ = ["choose_executor", "why_not_stacked"]


def choose_executor(plan: Plan) -> WorkerPool:
    """Return the pool for ``study.executor``; print the reason if it is another."""
    study = plan.study
    if study.executor is Executor.stacked:
        if (reason := why_not_stacked(plan)) is None:
            return StackedPool(
                plan.config, plan.folder,
                num_workers=study.num_workers, max_lanes=study.max_lanes,
                num_tasks=study.num_trials, num_seeds=study.num_seeds, num_ahead=1,
            )  # fmt: skip
        print_line(f"study.executor=stacked runs as processes here: {reason}")
    return ProcessPool(*choose_num_workers(study.num_workers, plan.config))


def why_not_stacked(plan: Plan) -> str | None:
    """Return why the trials of ``plan`` cannot be lanes of stacks; None if they can."""
    if "memory" in plan.space.texts():
        return "memory is varied, and not every strategy can train several lanes"
    if (limit := resolve_memory(plan.config).lane_limit) is not None:
        return f"{limit[0]}={limit[1]} trains {limit[2]} lane"
    if measured := next(filter(is_measured, plan.quantities), None):
        return f"{measured} is measured of a process, and lanes share one"
    return None
