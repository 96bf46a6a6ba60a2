"""The study as a W&B run beside those of its trials: the table of trials and the result.

Logged once the study has ended and through ``SafeSink``, so that W&B can neither stop nor slow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_lab.studies.results.files import space_of
from ppo_lab.studies.results.study_result import StudyResult
from ppo_lab.studies.results.trial_table import count_labels, trial_table
from ppo_lab.tracking import RunInfo, SafeSink, WandbSink
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["track_study"]


class _StudySink(WandbSink):
    """Logs the table of trials before it closes the run."""

    def __init__(self, result: StudyResult) -> None:
        super().__init__(result.plan.config.tracking, Path("outputs"))
        self._table = trial_table(result.plan, result.trials)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        if self._run is not None and self._table:
            import wandb

            columns: list[str | int] = list(self._table[0])
            data = [[to_jsonable(value) for value in row.values()] for row in self._table]
            self._run.log({"trials": wandb.Table(columns=columns, data=data)})
        super().finish(summary, exit_code)


def track_study(result: StudyResult) -> str | None:
    """Log the study to W&B unless disabled; return its page, or the command to upload it.

    Later ends of the study resume the same run.
    """
    plan, best = result.plan, result.best
    sink = _StudySink(result)
    guarded = SafeSink(sink)
    guarded.start(
        RunInfo(
            folder=plan.folder,
            id=result.run_id,
            name=plan.name,
            group=plan.name,
            tags=("study", plan.config.env.id),
            total_steps=0,
            config=space_of(plan) | {"run": plan.config.as_dict()},
            job_type="study",
        )
    )
    summary: dict[str, Any] = {"trials_by_outcome": count_labels(result.trials)}
    if best is not None:
        summary["best"] = {"trial": best.number, "value": best.values[0], **best.params}
    if result.confirmed is not None and result.confirmed.winner is not None:
        winner = result.confirmed.winner.as_dict()
        kept = {key: winner[key] for key in ("trial", "value", "gain")}
        summary["winner"] = kept | winner["params"]
    summary["importance"] = dict(result.importances)
    guarded.finish(summary, exit_code=int(result.is_failure))
    return sink.link
