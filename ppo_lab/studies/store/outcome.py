"""How a trial's result enters its study: the state that Optuna learns, and what people read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import TrialState

from ppo_lab.studies.definition.objective import quantity
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.workers.result import Result

__all__ = ["Counts", "TrialOutcome", "outcome_of", "to_outcome"]

_RAN = "ran"
"""Constraint of a trial that could not end by itself; samplers rank it below all that could."""
_NOT_RUNNABLE = {"diverged", "out_of_memory", "over_budget", "refused", "no_result"}
_KEPT_OF_SEED = ("seed", "status", "env_steps", "wandb", "folder")
_MEASURED = ("env_steps_per_s", "wall_time_s", "peak_vram_gib", "forecast_vram_gib")


@dataclass(frozen=True)
class TrialOutcome:
    """What a trial came to."""

    state: TrialState
    status: str
    reason: str | None
    values: Sequence[float] | None
    """The objectives'; Optuna is told them where the state is COMPLETE."""
    violations: Mapping[str, float]
    """By constraint, as far as known; <= 0 is kept."""


def to_outcome(plan: Plan, result: Result, *, is_inside: bool) -> TrialOutcome:
    """Return what a trial came to; ``is_inside`` says whether it has a place in the space.

    What could not run to its end for a reason that lies in its parameters (NaN, memory) is PRUNED
    and breaks the constraint ``ran``: samplers then rank it below every trial that could. Told as
    FAIL they would ignore it and walk into it again and again.
    """
    status, reason = result.status, result.reason
    known = [objective.value(result.summaries) for objective in plan.objectives]
    values = [value for value in known if value is not None]
    limits = {c.text: c.violation(result.summaries) for c in plan.constraints}
    violations = {text: value for text, value in limits.items() if value is not None}
    if status == "finished" and (missing := _missing(plan, result)):
        status, reason = "no_result", f"a seed has no {missing}"
    if status in _NOT_RUNNABLE:
        violations[_RAN] = 1.0
    if status == "failed":
        return TrialOutcome(TrialState.FAIL, status, reason, None, violations)
    if not is_inside:
        # Its values are kept, but a point without coordinates would confuse every sampler.
        return TrialOutcome(TrialState.FAIL, status, reason, values or None, violations)
    if status == "finished":
        return TrialOutcome(TrialState.COMPLETE, status, reason, values, violations)
    return TrialOutcome(TrialState.PRUNED, status, reason, None, violations)


def _missing(plan: Plan, result: Result) -> str | None:
    """Return a number that a finished trial should have and has not; None if it has all."""
    for objective in plan.objectives:
        if objective.value(result.summaries) is None:
            return objective.key
    for constraint in plan.constraints:
        if constraint.violation(result.summaries) is None:
            return constraint.key
    return None


def outcome_of(plan: Plan, told: TrialOutcome, result: Result) -> dict[str, Any]:
    """Return a trial's attribute ``outcome``, for people and tables on whatever machine."""
    objectives = [objective.key for objective in plan.objectives]
    seeds = [
        {key: summary.get(key) for key in _KEPT_OF_SEED}
        | {key: quantity(summary, key) for key in ("final_return", *objectives)}
        for summary in result.summaries
    ]
    first = result.summaries[0] if result.summaries else {}
    return {
        "status": told.status,
        "reason": told.reason,
        "values": list(told.values) if told.values else None,
        "seeds": seeds,
        **{key: first.get(key) for key in ("machine", "versions")},
        **{key: quantity(first, key) for key in _MEASURED},
    }


@dataclass(frozen=True)
class Counts:
    """How far a study is, over all machines."""

    complete: int
    pruned: int
    failed: int
    running: int
    total: int
    """``study.num_trials``."""

    @property
    def finished(self) -> int:
        """Trials that count towards the total."""
        return self.complete + self.pruned + self.failed
