"""What a study found, read from its storage once; the files, the panel and W&B are views of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from optuna.study import Study
from optuna.trial import FrozenTrial

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.results.confirmation import Confirmed
from ppo_lab.studies.results.statistics import importance, pareto
from ppo_lab.studies.results.trial_table import TrialSummary, best_trial, finished_trials
from ppo_lab.studies.store.trial_store import CLAIMED, run_id_stem

__all__ = ["StudyResult", "importances", "read_study"]

_RAN = {"kept", "over limit", "pruned"}
"""Labels of trials that ran as they should."""


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
    """Time in which a trial ran, on any machine; without the pauses between starts."""
    run_id: str
    """Of the study itself in trackers."""
    confirmed: Confirmed | None

    @property
    def is_failure(self) -> bool:
        """Whether trials have ended, and none of them as it should."""
        return bool(self.trials) and not _RAN & {trial.label for trial in self.trials}


def importances(plan: Plan, study: Study) -> dict[str, dict[str, float] | None]:
    """Return the parameters' importances for each objective; see ``statistics.importance``."""
    return {o.key: importance(study, i) for i, o in enumerate(plan.objectives)}


def read_study(
    plan: Plan,
    study: Study,
    shares: Mapping[str, dict[str, float] | None],
    confirmed: Confirmed | None,
) -> StudyResult:
    """Read the result of ``study``, whose ``importances`` are ``shares``.

    ``confirmed`` is None unless the study was confirmed as it is now.
    """
    trials = finished_trials(study, plan.objectives)
    front = pareto(study) if len(plan.objectives) > 1 else []
    by_number = {trial.number: trial for trial in trials}
    return StudyResult(
        plan=plan,
        trials=trials,
        best=best_trial(trials, plan.objectives),
        front=[by_number[trial.number] for trial in front],
        importances=shares,
        took_s=_took_s(study),
        run_id=f"{run_id_stem(study)}-study",
        confirmed=confirmed,
    )


def _took_s(study: Study) -> float:
    """Return the length of the union of the times in which trials ran, each in its last attempt."""
    spans = [
        (_begun(t), t.datetime_complete)
        for t in study.get_trials(deepcopy=False)
        if t.datetime_start and t.datetime_complete
    ]
    took_s, until = 0.0, datetime.min
    for begun, ended in sorted(spans):
        took_s += max((ended - max(begun, until)).total_seconds(), 0.0)  # a clock may be set back
        until = max(until, ended)
    return took_s


def _begun(trial: FrozenTrial) -> datetime:
    claimed = trial.user_attrs.get(CLAIMED)  # trials of older studies have none
    begun = datetime.fromisoformat(claimed) if claimed else trial.datetime_start
    assert begun is not None
    return begun
