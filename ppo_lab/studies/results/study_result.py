"""What a study found, read from its storage once; the files, the panel and W&B are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from optuna.study import Study

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.results.confirmation import Confirmed
from ppo_lab.studies.results.statistics import importance, pareto
from ppo_lab.studies.results.trial_table import TrialSummary, best_trial, finished_trials
from ppo_lab.studies.store.trial_store import run_id_stem

__all__ = ["StudyResult", "read_study"]


@dataclass(frozen=True)
class StudyResult:
    """The trials of a study and what follows from them."""

    plan: Plan
    trials: Sequence[TrialSummary]
    """Those that have finished."""
    best: TrialSummary | None
    """Of one objective, among trials within limits."""
    front: Sequence[TrialSummary]
    """Of several objectives, the Pareto front, best in the first objective first."""
    importances: Mapping[str, dict[str, float] | None]
    """By objective; see ``statistics.importance``."""
    took_s: float
    """From the first trial's start to the last one's end, pauses included."""
    run_id: str
    """Of the study itself in trackers."""
    confirmed: Confirmed | None


def read_study(plan: Plan, study: Study, confirmed: Confirmed | None) -> StudyResult:
    """Read the result of ``study``; ``confirmed`` is None unless it was confirmed as it is now."""
    trials = finished_trials(study, plan.objectives)
    front = pareto(study) if len(plan.objectives) > 1 else []
    by_number = {trial.number: trial for trial in trials}
    return StudyResult(
        plan=plan,
        trials=trials,
        best=best_trial(trials, plan.objectives),
        front=[by_number[trial.number] for trial in front],
        importances={o.key: importance(study, i) for i, o in enumerate(plan.objectives)},
        took_s=_took_s(study),
        run_id=f"{run_id_stem(study)}-study",
        confirmed=confirmed,
    )


def _took_s(study: Study) -> float:
    trials = study.get_trials(deepcopy=False)
    begun = [trial.datetime_start for trial in trials if trial.datetime_start]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    if not (begun and ended):
        return 0.0
    return max((max(ended) - min(begun)).total_seconds(), 0.0)  # the clock may be set back
