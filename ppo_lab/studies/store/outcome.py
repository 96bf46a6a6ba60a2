"""Map a trial's result to an Optuna state, and to the attribute that all tables read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ppo_lab.runner.result import Result
from ppo_lab.studies.definition.objective import quantity
from ppo_lab.studies.definition.plan import Plan

__all__ = ["OUTCOME", "Counts", "to_outcome"]

OUTCOME = "outcome"
"""User attribute of a finished trial: status, reason, values, and what its seeds measured."""
_RAN = "ran"
"""Constraint broken by trials that could not finish, so that samplers rank them last."""
_NOT_RUNNABLE = {"diverged", "out_of_memory", "over_budget", "refused", "no_result"}
_SEED_KEYS = ("seed", "status", "env_steps", "wandb", "folder")
_MEASURED = ("env_steps_per_s", "wall_time_s", "peak_vram_gib", "forecast_vram_gib")


def to_outcome(
    plan: Plan, result: Result, *, is_inside: bool
) -> tuple[TrialState, dict[str, float], dict[str, Any]]:
    """Map a trial's result to its state, its violations by constraint, and its attribute.

    A trial that its own parameters kept from finishing (NaN, memory) is PRUNED and breaks the
    constraint ``ran``, so that samplers rank it below every trial that finished. They ignore FAIL,
    and would sample such parameters again and again. ``is_inside`` is false for a point outside the
    space; samplers cannot place it, so it is FAIL.
    """
    summaries, status, reason = result.summaries, result.status, result.reason
    values = {objective.key: objective.value(summaries) for objective in plan.objectives}
    limits = {limit.text: limit.violation(summaries) for limit in plan.constraints}
    missing = [key for key, value in values.items() if value is None]
    missing += [limit.key for limit in plan.constraints if limits[limit.text] is None]
    if status == "finished" and missing:
        status, reason = "no_result", f"a seed has no {missing[0]}"
    violations = {text: value for text, value in limits.items() if value is not None}
    if status in _NOT_RUNNABLE:
        violations[_RAN] = 1.0
    if status == "failed" or not is_inside:
        state = TrialState.FAIL
    else:
        state = TrialState.COMPLETE if status == "finished" else TrialState.PRUNED
    known = [value for value in values.values() if value is not None]
    if status == "failed" or state is TrialState.PRUNED:
        known = []
    first = summaries[0] if summaries else {}
    seeds = [
        {key: summary.get(key) for key in _SEED_KEYS}
        | {key: quantity(summary, key) for key in ("final_return", *values)}
        for summary in summaries
    ]
    attribute = {"status": status, "reason": reason, "values": known or None, "seeds": seeds}
    attribute |= {key: first.get(key) for key in ("machine", "versions")}
    return state, violations, attribute | {key: quantity(first, key) for key in _MEASURED}


@dataclass(frozen=True)
class Counts:
    """Progress of a study over all machines, in trials."""

    complete: int
    pruned: int
    failed: int
    running: int
    total: int
    """``study.num_trials``."""

    @classmethod
    def of(cls, trials: Sequence[FrozenTrial], total: int) -> Counts:
        """Count ``trials``; the defaults outside the space are stored as FAIL, but are complete."""
        states = Counter(trial.state.name for trial in trials)
        outcomes = [t.user_attrs.get(OUTCOME, {}) for t in trials if t.state is TrialState.FAIL]
        num_outside = sum(outcome.get("status") == "finished" for outcome in outcomes)
        complete, failed = states["COMPLETE"] + num_outside, states["FAIL"] - num_outside
        return cls(complete, states["PRUNED"], failed, states["RUNNING"], total)

    @property
    def finished(self) -> int:
        """Trials that count towards the total."""
        return self.complete + self.pruned + self.failed
