"""Confirmation: the best trials run again with fresh seeds, beside the config's defaults.

The best of many trials is partly the luckiest. So only runs with seeds that the search has not used
decide. They form a study of their own in the same storage, so that they are retried, resumed and
shared among machines like any trials.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import optuna
from optuna.study import Study

from ppo_lab.config.study import ConfirmConfig
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.results.statistics import CONFIDENCE, Gain, compare_with_default
from ppo_lab.studies.results.trial_table import (
    TrialSummary,
    best_trial,
    finished_trials,
    rank_trials,
)
from ppo_lab.studies.store.database import Database
from ppo_lab.utils.json_files import write_json

__all__ = ["CONFIRM_FILE", "Candidate", "Confirmed", "confirmation_plan", "read_confirmation"]

CONFIRM_FILE = "confirm.json"
_RANDOM = {"_target_": "optuna.samplers.RandomSampler"}  # every trial is enqueued with its values
_NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}


@dataclass(frozen=True)
class Candidate:
    """One setting over the fresh seeds."""

    fresh: TrialSummary
    """Over the fresh seeds."""
    found: TrialSummary | None
    """In the search; None if it has no such trial within limits."""
    gain: Gain | None
    """Over the defaults; None for the defaults themselves."""

    @property
    def number(self) -> int | None:
        """Its number in the search."""
        return self.found.number if self.found else None

    def as_dict(self) -> dict[str, Any]:
        """Return the candidate as it stands in confirm.json."""
        return {
            "trial": self.number,
            "params": self.fresh.params,
            "found": self.found.values[0] if self.found else None,
            "status": self.fresh.label,
            "values": self.fresh.seed_values,
            "value": self.fresh.values[0],
            "half_width": self.fresh.half_width,
            "gain": asdict(self.gain) if self.gain else None,
        }


@dataclass(frozen=True)
class Confirmed:
    """The result of a confirmation."""

    seeds: tuple[int, ...]
    default: Candidate
    candidates: tuple[Candidate, ...]
    """Best gain first; those without one last."""
    winner: Candidate | None
    """The defaults themselves if no candidate has a better mean; None if nothing ran well."""
    num_searched: int
    """Finished trials of the search at that time."""

    def write(self, plan: Plan) -> None:
        """Write confirm.json into the study's folder."""
        content = {
            "objective": plan.objectives[0].key,
            "confidence": CONFIDENCE,
            "interval_of_gain": "Welch's t at 1 - (1 - confidence) / candidates",
            "seeds": self.seeds,
            "trials_searched": self.num_searched,
            "winner": self.winner.as_dict() if self.winner else None,
            "default": self.default.as_dict(),
            "candidates": [candidate.as_dict() for candidate in self.candidates],
        }
        write_json(plan.folder / CONFIRM_FILE, content)


def confirmation_plan(plan: Plan, study: Study, database: Database) -> Plan | None:
    """Return the plan that runs the best trials of ``study`` again; None if there are none.

    Settings of an earlier confirmation of this study stay in it, so that a search which was resumed
    adds to them.
    """
    num_top, num_seeds = plan.study.confirm.top, plan.study.confirm.seeds
    if not num_top:
        return None
    default = plan.starts[0]
    chosen: list[Mapping[str, Any]] = []
    for trial in rank_trials(finished_trials(study, plan.objectives), plan.objectives[0]):
        if trial.params not in (default or {}, *chosen):
            chosen.append(trial.params)
    # Seeds of the search are seed, seed + 1, ...; these follow them.
    seed = f"seed={plan.config.seed + plan.study.num_seeds}"
    base = replace(plan.base, fixed=(*plan.base.fixed, seed))
    confirm = replace(
        plan.study, num_seeds=num_seeds, sampler=_RANDOM, pruner=_NO_PRUNER, confirm=ConfirmConfig()
    )
    fresh = replace(plan, study=confirm, base=base, config=base.config(), confirms=plan.folder)
    # A search that was allowed to change is confirmed anew: earlier runs do not compare.
    digest = fresh.fingerprint["sha256"][:4]
    name = f"{plan.name}.confirm-{num_seeds}-{digest}"
    stored = _stored_params(database, name)
    points = [*stored, *(point for point in chosen[:num_top] if point not in stored)]
    if not points:
        return None
    return replace(
        fresh,
        study=replace(confirm, num_trials=1 + len(points)),
        name=name,
        folder=plan.folder / "confirm" / f"{num_seeds}_seeds-{digest}",
        starts=(default, *map(dict, points)),
    )


def _stored_params(database: Database, name: str) -> list[Mapping[str, Any]]:
    """Return the settings enqueued in an earlier confirmation, in their order."""
    if name not in optuna.get_all_study_names(database.storage):
        return []
    fresh = optuna.load_study(study_name=name, storage=database.storage)
    return [
        trial.system_attrs["fixed_params"]  # set whether it has run or not
        for trial in fresh.get_trials(deepcopy=False)
        if trial.user_attrs.get("role") == "start"
    ]


def read_confirmation(plan: Plan, study: Study, confirming: Plan, fresh: Study) -> Confirmed | None:
    """Return the result of the finished study ``fresh``; None if the defaults have not run."""
    trials = finished_trials(fresh, plan.objectives)
    default = next((trial for trial in trials if trial.role == "baseline"), None)
    if default is None:
        return None
    others = [trial for trial in trials if trial is not default]
    gains = compare_with_default(
        {trial.number: _returns(trial, "kept") for trial in others},
        _returns(default, "kept", "over limit"),
        is_maximised=plan.objectives[0].direction == "maximize",
    )
    searched = finished_trials(study, plan.objectives)
    ranked = rank_trials(searched, plan.objectives[0])
    candidates = [Candidate(t, _find(t, ranked), gains[t.number]) for t in others]
    candidates.sort(key=_rank)
    baseline = Candidate(default, _find(default, ranked), None)
    winner: Candidate | None = baseline
    if default.label != "kept":  # then any candidate that is within limits is better
        best = best_trial(others, plan.objectives)
        winner = next((c for c in candidates if c.fresh is best), None)
    elif candidates and _rank(candidates[0]) < 0:
        winner = candidates[0]
    first = confirming.config.seed
    return Confirmed(
        seeds=tuple(range(first, first + confirming.study.num_seeds)),
        default=baseline,
        candidates=tuple(candidates),
        winner=winner,
        num_searched=len(searched),
    )


def _returns(trial: TrialSummary, *labels: str) -> Sequence[float | None]:
    """Return a value per seed, none of a trial whose label is not among ``labels``."""
    return trial.seed_values if trial.label in labels else (None,)


def _find(trial: TrialSummary, ranked: Sequence[TrialSummary]) -> TrialSummary | None:
    """Return the search's best trial within limits that has the setting of ``trial``."""
    is_baseline = trial.role == "baseline"  # its parameters may lie outside the space
    for found in ranked:
        if found.role == "baseline" if is_baseline else found.params == trial.params:
            return found
    return None


def _rank(candidate: Candidate) -> float:
    return math.inf if candidate.gain is None else -candidate.gain.mean
