"""The files that a study leaves in its folder, each written atomically at every end."""

from __future__ import annotations

import csv
import io
from typing import Any

from omegaconf import OmegaConf

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.results.best_config import write_best
from ppo_lab.studies.results.confirmation import CONFIRM_FILE
from ppo_lab.studies.results.study_result import StudyResult
from ppo_lab.studies.results.trial_table import TrialSummary, trial_table
from ppo_lab.utils.json_files import atomic_write, to_jsonable, write_json

__all__ = ["space_of", "write_outputs"]


def write_outputs(result: StudyResult) -> None:
    """Write trials.csv, space.yaml, importance.json, best.yaml and, if there is one, confirm.json.

    ``best.yaml`` is the confirmation's winner, else the search's best trial: of several objectives,
    the best in the first.
    """
    plan, confirmed = result.plan, result.confirmed
    table = trial_table(plan, result.trials)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else ["trial"])
    writer.writeheader()
    writer.writerows(table)
    atomic_write(plan.folder / "trials.csv", text.getvalue().encode())
    atomic_write(plan.folder / "space.yaml", OmegaConf.to_yaml(space_of(plan)).encode())
    write_json(plan.folder / "importance.json", result.importances)
    if confirmed is not None:
        confirmed.write(plan)
    else:
        (plan.folder / CONFIRM_FILE).unlink(missing_ok=True)
    if confirmed is not None and (winner := confirmed.winner) is not None:
        name = "The defaults" if winner is confirmed.default else f"Trial {winner.number}"
        seeds = f" over {len(confirmed.seeds)} fresh seeds"
        write_best(plan, winner.fresh.params, f"{name} {_scores(plan, winner.fresh)}{seeds}.")
    elif best := result.best or next(iter(result.front), None):
        seeds = f" over {plan.study.num_seeds} seeds" if plan.study.num_seeds > 1 else ""
        write_best(plan, best.params, f"Trial {best.number} {_scores(plan, best)}{seeds}.")


def _scores(plan: Plan, trial: TrialSummary) -> str:
    scores = [f"{objective.key} {score}" for objective, score in zip(plan.objectives, trial.scores)]
    return f"of study {plan.name}: {', '.join(scores)}"


def space_of(plan: Plan) -> dict[str, Any]:
    """Return what was searched and how, as JSON types."""
    study = plan.study
    content = {
        "name": plan.name,
        "storage": masked(plan.url),
        "objectives": {objective.key: objective.direction for objective in plan.objectives},
        "aggregate": study.aggregate,
        "constraints": [constraint.text for constraint in plan.constraints],
        "num_trials": study.num_trials,
        "num_seeds": study.num_seeds,
        "space": plan.space.texts(),
        "conditions": study.conditions,
        "enqueue": study.enqueue,
        "sampler": study.sampler,
        "pruner": study.pruner,
        "overrides": list(plan.overrides),
        "fingerprint": plan.fingerprint["sha256"],
    }
    values: dict[str, Any] = to_jsonable(content)
    return values
