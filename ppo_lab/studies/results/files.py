"""The files that a study leaves in its folder, each written whole; made anew at every end."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf
from optuna.study import Study

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.results.best_config import write_best
from ppo_lab.studies.results.confirmation import CONFIRM_FILE, Confirmed
from ppo_lab.studies.results.format import score_text
from ppo_lab.studies.results.statistics import importance, pareto
from ppo_lab.studies.results.trial_table import TrialRow, best_row, finished_trials
from ppo_lab.utils.json_files import atomic_write, to_jsonable, write_json

__all__ = ["importances", "space_of", "trial_table", "write_outputs"]

_MEASURED = ("env_steps_per_s", "peak_vram_gib", "wall_time_s")


def write_outputs(plan: Plan, study: Study, confirmed: Confirmed | None) -> None:
    """Write trials.csv, space.yaml, importance.json, best.yaml and, if there is one, confirm.json.

    ``best.yaml`` is the confirmation's winner, or without one the search's best trial. A search
    that has gone on since its confirmation, and was not confirmed again, has none.
    """
    rows = finished_trials(study, plan.objectives)
    table = trial_table(plan, rows)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]) if table else ["trial"])
    writer.writeheader()
    writer.writerows(table)
    atomic_write(plan.folder / "trials.csv", text.getvalue().encode())
    atomic_write(plan.folder / "space.yaml", OmegaConf.to_yaml(space_of(plan)).encode())
    write_json(plan.folder / "importance.json", importances(plan, study))
    if confirmed is not None:
        confirmed.write(plan)
    else:
        (plan.folder / CONFIRM_FILE).unlink(missing_ok=True)
    if confirmed is not None and confirmed.winner is not None:
        write_best(plan, confirmed.winner.params, _winner_title(plan, confirmed))
    elif (best := _best_row(plan, study, rows)) is not None:
        write_best(plan, best.params, _title(plan, best))


def trial_table(plan: Plan, rows: Sequence[TrialRow]) -> list[dict[str, Any]]:
    """Return one flat row per trial, all with the same columns; None where there is nothing."""
    names = [objective.key for objective in plan.objectives]
    params = [parameter.key for parameter in plan.space.parameters]
    limits = list(dict.fromkeys(name for row in rows for name in row.constraints))
    table = []
    for row in rows:
        seeds = row.outcome.get("seeds", [])
        table.append(
            {"trial": row.number, "outcome": row.label, "reason": row.reason, "role": row.role}
            | dict(zip(names, row.values))
            | {f"{names[0]}_half_width": row.half_width, "num_seeds": len(seeds)}
            | {key: row.params.get(key) for key in params}
            | {key: row.outcome.get(key) for key in _MEASURED}
            | {f"violation of {name}": row.constraints.get(name) for name in limits}
            | {"attempts": row.attempts, "host": row.host, "folder": row.folder}
            | {"wandb": " ".join(str(seed["wandb"]) for seed in seeds if seed.get("wandb")) or None}
        )
    return table


def importances(plan: Plan, study: Study) -> dict[str, dict[str, float] | None]:
    """Return each objective's parameter importances, None where they cannot be told yet."""
    return {
        objective.key: importance(study, index) for index, objective in enumerate(plan.objectives)
    }


def _best_row(plan: Plan, study: Study, rows: Sequence[TrialRow]) -> TrialRow | None:
    """Return the best trial within limits; of several objectives, the best in the first."""
    if len(plan.objectives) > 1:
        front = pareto(study)
        return next((row for row in rows if front and row.number == front[0].number), None)
    return best_row(rows, plan.objectives[0])


def _title(plan: Plan, row: TrialRow) -> str:
    scores = [
        f"{objective.key} {score_text(value, row.half_width if index == 0 else None)}"
        for index, (objective, value) in enumerate(zip(plan.objectives, row.values))
    ]
    seeds = f" over {plan.study.num_seeds} seeds" if plan.study.num_seeds > 1 else ""
    return f"Trial {row.number} of study {plan.name}: {', '.join(scores)}{seeds}."


def _winner_title(plan: Plan, confirmed: Confirmed) -> str:
    winner = confirmed.winner
    assert winner is not None
    name = "The defaults" if winner is confirmed.default else f"Trial {winner.trial}"
    score = score_text(winner.value, winner.half_width)
    seeds = f"{len(confirmed.seeds)} fresh seeds"
    return f"{name} of study {plan.name}: {plan.objectives[0].key} {score} over {seeds}."


def space_of(plan: Plan) -> dict[str, Any]:
    """Return what was searched and how, as YAML and JSON hold it."""
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
