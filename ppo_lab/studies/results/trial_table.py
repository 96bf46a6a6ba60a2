"""A study's trials as its storage has them: what the tables and files at its end are made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ppo_lab.studies.definition.objective import Objective
from ppo_lab.studies.results.statistics import half_width

__all__ = ["TrialRow", "best_row", "finished_trials", "label_of", "labels"]


@dataclass(frozen=True)
class TrialRow:
    """A finished trial."""

    number: int
    label: str
    """What became of it in a word or two, as on the screen."""
    role: str
    """baseline, start or search."""
    params: Mapping[str, Any]
    values: tuple[float | None, ...]
    """The objectives'."""
    seed_values: tuple[tuple[float | None, ...], ...]
    """Of each objective, one per seed."""
    half_width: float | None
    """Of the first objective's interval over seeds."""
    constraints: Mapping[str, float]
    """Name to violation; <= 0 is kept."""
    outcome: Mapping[str, Any]
    attempts: int
    host: str | None
    folder: str | None

    @property
    def reason(self) -> str | None:
        """Why it did not run to its end, or which limit it broke."""
        broken = [name for name, violation in self.constraints.items() if violation > 0]
        stored: str | None = self.outcome.get("reason")
        return stored or (f"{', '.join(broken)} is broken" if broken else None)


def finished_trials(study: Study, objectives: Sequence[Objective]) -> list[TrialRow]:
    """Return the trials that count, in order of their numbers."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [_row(trial, objectives) for trial in study.get_trials(deepcopy=False, states=states)]


def labels(rows: Sequence[TrialRow]) -> dict[str, int]:
    """Return how many trials came to what, the good ones first."""
    names = [row.label for row in rows]
    return {name: names.count(name) for name in sorted(set(names), key=lambda n: (n != "kept", n))}


def best_row(rows: Sequence[TrialRow], objective: Objective) -> TrialRow | None:
    """Return the best trial within limits by ``objective``, None if there is none."""
    sign = 1.0 if objective.direction == "maximize" else -1.0
    scores = {row.number: sign * row.values[0] for row in rows if row.values[0] is not None}
    kept = [row for row in rows if row.label == "kept" and row.number in scores]
    return max(kept, key=lambda row: scores[row.number], default=None)


def _row(trial: FrozenTrial, objectives: Sequence[Objective]) -> TrialRow:
    attrs = trial.user_attrs
    outcome = attrs.get("outcome", {})
    stored = trial.values or outcome.get("values") or [None] * len(objectives)
    seeds = outcome.get("seeds", [])
    seed_values = tuple(
        tuple(seed.get(objective.key) for seed in seeds) for objective in objectives
    )
    is_within = all(violation <= 0 for violation in trial.constraints.values())
    status = outcome.get("status", "failed")
    return TrialRow(
        number=trial.number,
        label=label_of(trial.state.name, status, is_within_limits=is_within),
        role=attrs.get("role", "search"),
        params=trial.params,
        values=tuple(stored),
        seed_values=seed_values,
        half_width=half_width(seed_values[0], objectives[0].aggregate),
        constraints=trial.constraints,
        outcome=outcome,
        attempts=attrs.get("attempt", 1),
        host=(attrs.get("owner") or {}).get("host"),
        folder=attrs.get("folder"),
    )


_LABELS = {
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "OOM",
    "over_budget": "over budget",
    "no_result": "no result",
    "failed": "failed",
}


def label_of(state: str, status: str, *, is_within_limits: bool) -> str:
    """Return in a word or two what became of a trial."""
    if status == "finished":
        return "kept" if is_within_limits else "over limit"
    return _LABELS.get(status, state.lower())
