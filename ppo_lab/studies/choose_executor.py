"""Which executor a study gets, and how large a one."""

from __future__ import annotations

import math
from collections.abc import Callable

from ppo_lab.config.study import Executor as Choice
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.studies.definition.objective import is_measured
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.workers.base import Executor
from ppo_lab.workers.processes import ProcessExecutor
from ppo_lab.workers.slots import choose_lanes, choose_num_workers
from ppo_lab.workers.stacked import StackedExecutor

__all__ = ["choose_executor", "why_not_stacked"]


def choose_executor(plan: Plan, tell: Callable[[str], None]) -> Executor:
    """Return the executor that ``plan`` asks for; ``tell`` why, if that is another."""
    study = plan.study
    num_slots, devices = choose_num_workers(study.num_workers, plan.config)
    if study.executor is Choice.processes:
        return ProcessExecutor(num_slots, devices)
    if (reason := why_not_stacked(plan)) is not None:
        tell(f"study.executor=stacked runs as processes here: {reason}")
        return ProcessExecutor(num_slots, devices)
    needed = math.ceil(study.num_trials / num_slots) * study.num_seeds
    num_sharing = math.ceil(num_slots / len(devices)) if devices else 1
    num_seeds = study.num_seeds
    most = choose_lanes(study.max_lanes, plan.config, num_sharing=num_sharing, num_seeds=num_seeds)
    lanes = min(most, needed)
    return StackedExecutor(num_slots, lanes, plan.folder, num_seeds=num_seeds, devices=devices)


def why_not_stacked(plan: Plan) -> str | None:
    """Return why the trials of ``plan`` cannot be lanes of stacks; None if they can."""
    if "memory" in plan.space.texts():
        return "memory is varied, and not every strategy holds several lanes"
    strategy = resolve_memory(plan.config).memory
    if strategy.max_lanes is not None:
        return f"memory={strategy.name} trains {strategy.max_lanes} lane"
    keys = [objective.key for objective in plan.objectives]
    keys += [constraint.key for constraint in plan.constraints]
    if measured := next(filter(is_measured, keys), None):
        return f"{measured} is measured of a process, and a lane has none of its own"
    return None
