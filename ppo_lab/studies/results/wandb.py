"""The study as a W&B run beside those of its trials: table, figures, report and the result.

Logged once the study has ended and through ``SafeSink``, so that W&B can neither stop nor slow it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.study import Study
from optuna.trial import FrozenTrial

from ppo_lab.studies.results.files import space_of
from ppo_lab.studies.results.study_result import StudyResult
from ppo_lab.studies.results.trial_table import count_labels, trial_table
from ppo_lab.tracking import RunInfo, SafeSink, WandbSink
from ppo_lab.utils.json_files import to_jsonable

if TYPE_CHECKING:
    import wandb

__all__ = ["track_study"]

_REPORT_FILE = "report.html"


class _StudySink(WandbSink):
    """Logs the table of trials, the importances, parallel coordinates, and the study's report."""

    def __init__(self, result: StudyResult, study: Study) -> None:
        super().__init__(result.plan.config.tracking, Path("outputs"))
        self._result, self._study = result, study

    def _log_results(self, run: wandb.Run) -> None:
        import wandb

        if table := trial_table(self._result.plan, self._result.trials):
            data = [[to_jsonable(value) for value in row.values()] for row in table]
            run.log({"trials": wandb.Table(columns=[*table[0]], data=data)})
        for objective, shares in self._result.importances.items():
            if shares:
                bars = wandb.Table(columns=["parameter", "importance"], data=[*shares.items()])
                title = f"importance for {objective}"
                chart = wandb.plot.bar(bars, "parameter", "importance", title=title)
                run.log({f"study/importance_{objective}": chart})
        if any(trial.label == "kept" for trial in self._result.trials):
            run.log(self._parallel_coordinates())
        self._log_artifact(run, "report", _REPORT_FILE)

    def _parallel_coordinates(self) -> dict[str, Any]:
        """Return a Plotly figure for each objective."""
        from optuna.visualization import plot_parallel_coordinate

        names = [objective.key for objective in self._result.plan.objectives]
        return {
            f"study/parallel_{name}": plot_parallel_coordinate(
                self._study, target=partial(_value, number), target_name=name
            )
            for number, name in enumerate(names)
        }


def _value(number: int, trial: FrozenTrial) -> float:
    return trial.values[number]


def track_study(result: StudyResult, study: Study) -> str | None:
    """Log the study to W&B unless disabled; return its page, or the command to upload it.

    Later ends of the study resume the same run.
    """
    plan, best = result.plan, result.best
    sink = _StudySink(result, study)
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
