"""The study itself as a W&B run, beside those of its trials: the table of trials and the result.

Opened only at the end, through the same guarded sink as any run's: W&B can neither stop nor slow
the trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from optuna.study import Study

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.results.confirmation import Confirmed
from ppo_lab.studies.results.files import importances, space_of, trial_table
from ppo_lab.studies.results.trial_table import best_row, finished_trials, labels
from ppo_lab.studies.store.trial_store import run_id_stem
from ppo_lab.tracking import RunInfo, SafeSink, WandbSink
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["track_study"]


class _StudySink(WandbSink):
    """Logs a table before it closes the run."""

    def __init__(self, plan: Plan, table: Sequence[Mapping[str, Any]]) -> None:
        super().__init__(plan.config.tracking, Path("outputs"))
        self._table = table

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        if self._run is not None and self._table:
            import wandb

            columns: list[str | int] = list(self._table[0])
            data = [[to_jsonable(row[str(column)]) for column in columns] for row in self._table]
            self._run.log({"trials": wandb.Table(columns=columns, data=data)})
        super().finish(summary, exit_code)


def track_study(plan: Plan, study: Study, confirmed: Confirmed | None) -> str | None:
    """Record the study in W&B unless disabled; return its page, or the command to upload it.

    Every end of a study resumes the same run.
    """
    rows = finished_trials(study, plan.objectives)
    sink = _StudySink(plan, trial_table(plan, rows))
    guarded = SafeSink(sink)
    guarded.start(
        RunInfo(
            folder=plan.folder,
            id=f"{run_id_stem(study)}-study",
            name=plan.name,
            group=plan.name,
            tags=("study", plan.config.env.id),
            total_steps=0,
            config=space_of(plan) | {"run": plan.config.as_dict()},
            job_type="study",
        )
    )
    summary: dict[str, Any] = {"trials_by_outcome": labels(rows)}
    best = best_row(rows, plan.objectives[0]) if len(plan.objectives) == 1 else None
    if best is not None:
        summary["best"] = {"trial": best.number, "value": best.values[0], **best.params}
    if confirmed is not None and confirmed.winner is not None:
        winner = confirmed.winner
        gain = None if winner.gain is None else winner.gain._asdict()
        params = dict(winner.params)
        summary["winner"] = {"trial": winner.trial, "value": winner.value, "gain": gain, **params}
    summary["importance"] = importances(plan, study)
    guarded.finish(summary, exit_code=0)
    return sink.link
