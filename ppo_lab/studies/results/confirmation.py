"""Whether the best trials are as good as the search thinks: run once more, with fresh seeds.

The best of many trials is partly the luckiest. So the best few run again beside the config's
defaults, with seeds that the search has not seen, and only these runs decide. They are a study of
their own in the same storage: booked, retried, resumed and shared among machines as trials are.
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
from ppo_lab.studies.definition.space import EnqueuedPoint
from ppo_lab.studies.results import statistics as analysis
from ppo_lab.studies.results.statistics import CONFIDENCE
from ppo_lab.studies.results.trial_table import TrialRow, best_row, finished_trials
from ppo_lab.studies.store.database import Database
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import write_json

__all__ = [
    "CONFIRM_FILE",
    "Candidate",
    "Confirmed",
    "check_confirmation",
    "confirmation_plan",
    "read_confirmation",
]

CONFIRM_FILE = "confirm.json"
_RANDOM = {"_target_": "optuna.samplers.RandomSampler"}  # every trial has its values beforehand
_NO_PRUNER = {"_target_": "optuna.pruners.NopPruner"}


@dataclass(frozen=True)
class Candidate:
    """One setting over the fresh seeds."""

    trial: int | None
    """Its number in the search; None where the search has none that ended well."""
    params: Mapping[str, Any]
    found: float | None
    """Its value in the search."""
    status: str
    values: tuple[float | None, ...]
    """One per fresh seed."""
    value: float | None
    half_width: float | None
    gain: analysis.Gain | None
    """Over the defaults, positive where better; None for the defaults themselves."""


@dataclass(frozen=True)
class Confirmed:
    """What the fresh seeds say."""

    seeds: tuple[int, ...]
    default: Candidate
    candidates: tuple[Candidate, ...]
    """Best gain first; the unknown ones last."""
    winner: Candidate | None
    """The defaults themselves where no candidate has a better mean; None where nothing ran well."""
    num_searched: int
    """Trials that the search had finished by then."""

    def write(self, plan: Plan) -> None:
        """Write confirm.json into the study's folder."""
        content = {
            "objective": plan.objectives[0].key,
            "confidence": CONFIDENCE,
            "interval_of_gain": "Welch's t at 1 - (1 - confidence) / candidates",
            "seeds": self.seeds,
            "trials_searched": self.num_searched,
            "winner": None if self.winner is None else _plain(self.winner),
            "default": _plain(self.default),
            "candidates": [_plain(candidate) for candidate in self.candidates],
        }
        write_json(plan.folder / CONFIRM_FILE, content)


def check_confirmation(plan: Plan) -> None:
    """Check that a study can be confirmed as it asks to be.

    Raises:
        ConfigError: it has no single best trial, or its trials have seeds of their own.
    """
    if plan.study.confirm.top and len(plan.objectives) > 1:
        allowed = "a study of several objectives has a front, not a best trial; must be 0"
        raise ConfigError("study.confirm.top", plan.study.confirm.top, allowed)
    if (text := plan.space.texts().get("seed")) is not None:
        allowed = "is not searched but repeated over: study.num_seeds=3"
        raise ConfigError("seed", text, allowed)


def confirmation_plan(plan: Plan, study: Study, database: Database) -> Plan | None:
    """Return the plan that runs the best trials of ``study`` again; None if there is none.

    Settings that a confirmation of this study has run already stay in it, so that a search which
    went on adds to them.
    """
    num_top, num_seeds = plan.study.confirm.top, plan.study.confirm.seeds
    if not num_top:
        return None
    default = plan.starts[0]
    chosen: list[Mapping[str, Any]] = []
    for trial in analysis.best_trials(study, len(study.trials)):
        is_default = default.is_inside and trial.params == default.params
        if not is_default and trial.params not in chosen and len(chosen) < num_top:
            chosen.append(trial.params)
    # Seeds of the search are seed, seed + 1, ...; these follow them.
    base = plan.base.fixing(f"seed={plan.config.seed + plan.study.num_seeds}")
    confirm = replace(
        plan.study,
        num_seeds=num_seeds,
        sampler=_RANDOM,
        pruner=_NO_PRUNER,
        confirm=ConfirmConfig(),
    )
    fresh = replace(plan, study=confirm, base=base, config=base.config(), confirms=plan.folder)
    # A search that was allowed to change is confirmed anew: the runs of before do not compare.
    digest = fresh.fingerprint["sha256"][:4]
    name = f"{plan.name}.confirm-{num_seeds}-{digest}"
    stored = _stored_params(database, name)
    points = [*stored, *(point for point in chosen if point not in stored)]
    if not points:
        return None
    return replace(
        fresh,
        study=replace(confirm, num_trials=1 + len(points)),
        name=name,
        folder=plan.folder / "confirm" / f"{num_seeds}_seeds-{digest}",
        starts=(default, *(EnqueuedPoint(dict(point), is_inside=True) for point in points)),
    )


def read_confirmation(plan: Plan, study: Study, confirming: Plan, fresh: Study) -> Confirmed | None:
    """Return what the finished runs of ``fresh`` say; None while the defaults have not run."""
    rows = finished_trials(fresh, plan.objectives)
    default = next((row for row in rows if row.role == "baseline"), None)
    if default is None:
        return None
    others = {row.number: row for row in rows if row.role != "baseline"}
    said = analysis.confirm(
        {number: _returns(row, {"kept"}) for number, row in others.items()},
        _returns(default, {"kept", "over limit"}),
        is_maximised=plan.objectives[0].direction == "maximize",
        confidence=CONFIDENCE,
    )
    searched = finished_trials(study, plan.objectives)
    candidates = {
        number: _candidate(row, searched, said.gains[number]) for number, row in others.items()
    }
    baseline = _candidate(default, searched, None)
    winner: Candidate | None = baseline if said.winner is None else candidates[said.winner]
    if default.label != "kept":  # then any candidate that is within limits is better
        best = best_row(list(others.values()), plan.objectives[0])
        winner = candidates[best.number] if best else None
    first = confirming.config.seed
    return Confirmed(
        seeds=tuple(range(first, first + confirming.study.num_seeds)),
        default=baseline,
        candidates=tuple(sorted(candidates.values(), key=_rank)),
        winner=winner,
        num_searched=len(searched),
    )


def _stored_params(database: Database, name: str) -> list[Mapping[str, Any]]:
    """Return the settings that a confirmation has begun with, in their order."""
    if name not in database.study_names():
        return []
    fresh = optuna.load_study(study_name=name, storage=database.storage)
    return [
        trial.system_attrs["fixed_params"]  # what it was queued with, run or not
        for trial in fresh.get_trials(deepcopy=False)
        if trial.user_attrs.get("role") == "start"
    ]


def _returns(row: TrialRow, labels: set[str]) -> tuple[float | None, ...]:
    """Return a value per seed; none for a setting that came to something else than ``labels``."""
    return row.seed_values[0] if row.label in labels else (None,)


def _candidate(
    row: TrialRow, searched: Sequence[TrialRow], gain: analysis.Gain | None
) -> Candidate:
    same = [
        found
        for found in searched
        if found.label == "kept"
        and (found.role == "baseline" if row.role == "baseline" else found.params == row.params)
    ]
    found = same[0] if same else None
    return Candidate(
        trial=found.number if found else None,
        params=row.params,
        found=found.values[0] if found else None,
        status=row.label,
        values=row.seed_values[0],
        value=row.values[0],
        half_width=row.half_width,
        gain=gain,
    )


def _rank(candidate: Candidate) -> float:
    return math.inf if candidate.gain is None else -candidate.gain.mean


def _plain(candidate: Candidate) -> dict[str, Any]:
    values = asdict(candidate)
    values["gain"] = None if candidate.gain is None else candidate.gain._asdict()
    return values
