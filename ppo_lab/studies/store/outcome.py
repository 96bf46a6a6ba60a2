"""Map a trial's result to an Optuna state, and to the attribute that all tables read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from ppo_lab.runner.result import Result
from ppo_lab.studies.definition.objective import quantity
from ppo_lab.studies.definition.plan import Plan

__all__ = ["OUTCOME", "Counts", "TrialOutcome", "to_outcome"]

OUTCOME = "outcome"
"""User attribute of a finished trial."""
_RAN = "ran"
"""Constraint broken by trials that could not finish, so that samplers rank them last."""
_NOT_RUNNABLE = {"diverged", "out_of_memory", "over_budget", "refused", "no_result"}
_SEED_KEYS = ("seed", "status", "env_steps", "wandb", "folder")
_MEASURED = ("env_steps_per_s", "wall_time_s", "peak_vram_gib", "forecast_vram_gib")
_LABELS = {
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "OOM",
    "over_budget": "over budget",
    "no_result": "no result",
    "failed": "failed",
}


@dataclass(frozen=True)
class TrialOutcome:
    """How a trial ended."""

    state: TrialState
    status: str
    """One of ``run.Status``, ``refused`` or ``no_result``."""
    reason: str | None
    """Why it did not finish."""
    values: Sequence[float] | None
    """One per objective; Optuna receives them only if the state is COMPLETE."""
    violations: Mapping[str, float]
    """By constraint, as far as known; <= 0 is satisfied."""
    seeds: Sequence[Mapping[str, Any]] = ()
    """Per seed: status, final return, objectives, folder."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Of the first seed: machine, versions, throughput, memory."""

    @classmethod
    def read(cls, trial: FrozenTrial) -> TrialOutcome:
        """Return the outcome that ``trial`` was stored with."""
        stored = trial.user_attrs.get(OUTCOME, {})
        return cls(
            state=trial.state,
            status=stored.get("status", "failed"),
            reason=stored.get("reason"),
            values=trial.values or stored.get("values"),
            violations=trial.constraints,
            seeds=stored.get("seeds", ()),
            measured=stored,
        )

    def as_attribute(self) -> dict[str, Any]:
        """Return what ``read`` needs, as JSON types."""
        return {
            "status": self.status,
            "reason": self.reason,
            "values": list(self.values) if self.values else None,
            "seeds": list(self.seeds),
            **self.measured,
        }

    @property
    def label(self) -> str:
        """The outcome in a word or two, as tables show it."""
        if self.status == "finished":
            return "over limit" if self._broken else "kept"
        return _LABELS.get(self.status, self.state.name.lower())

    @property
    def explanation(self) -> str | None:
        """Why the trial did not finish, or which limits it broke."""
        return self.reason or (f"{', '.join(self._broken)} is broken" if self._broken else None)

    @property
    def _broken(self) -> list[str]:
        return [name for name, violation in self.violations.items() if violation > 0]


def to_outcome(plan: Plan, result: Result, *, is_inside: bool) -> TrialOutcome:
    """Map a trial's result to its outcome; ``is_inside`` is false for a point outside the space.

    A trial that its own parameters kept from finishing (NaN, memory) is PRUNED and breaks the
    constraint ``ran``, so that samplers rank it below every trial that finished. They ignore FAIL,
    and would sample such parameters again and again.
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
    if status == "failed" or not is_inside:  # samplers cannot place a point outside the space
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
    measured = {key: first.get(key) for key in ("machine", "versions")}
    measured |= {key: quantity(first, key) for key in _MEASURED}
    return TrialOutcome(state, status, reason, known or None, violations, seeds, measured)


@dataclass(frozen=True)
class Counts:
    """Progress of a study over all machines, in trials."""

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
