"""The plan of a study: its settings, checked before anything is created."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from sqlalchemy.engine import URL

from ppo_lab.config.checkpoint import CheckpointConfig
from ppo_lab.config.composer import Composer
from ppo_lab.config.run import Config
from ppo_lab.config.settings import ABOUT_A_RUN, settings_of
from ppo_lab.config.study import StudyConfig
from ppo_lab.studies.definition.base_run import BaseRun
from ppo_lab.studies.definition.objective import (
    Constraint,
    Objective,
    check_measured,
    forecast_limit_gib,
    is_forecast,
    parse_constraints,
    parse_objectives,
)
from ppo_lab.studies.definition.parameter import Choice, Point
from ppo_lab.studies.definition.samplers import check_pruner, check_sampler, grid_total
from ppo_lab.studies.definition.space import Space, read_space, split_overrides
from ppo_lab.studies.definition.storage_url import storage_url
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import flat, to_jsonable

__all__ = ["ATTRIBUTE", "Plan", "differences", "make_plan"]

_STUDIES = Path("outputs") / "studies"
_MOST_NAME_CHARS = 80
_NO_PRUNER = "optuna.pruners.NopPruner"
_PRUNED_SHARE = 0.5  # of all steps, where trials are pruned (benchmarks/results/pruning.md)
_OF_STUDY = ("sweep", "study")
_NOT_IN_NAME = (*_OF_STUDY, "hydra", "tracking", "num_threads", "device", "report")
# Keys that change where and how a run is computed and shown, not its numbers.
_NOT_IN_FINGERPRINT = {*ABOUT_A_RUN, "device", "checkpoint"}
_MOST_LINES = 12
_SEEDS_APART = 10_000  # between repeats of a point: more than a search and its confirmation use

ATTRIBUTE = "fingerprint"
"""User attribute of the study that holds its fingerprint."""


@dataclass(frozen=True)
class Plan:
    """A checked study."""

    study: StudyConfig
    name: str
    folder: Path
    url: URL
    """Storage of the trials. It may hold a password, so it is never written out."""
    base: BaseRun
    config: Config
    """The base run."""
    space: Space
    starts: tuple[Point | None, ...]
    """Parameters of the first trials: the defaults (None if outside the space), then those of
    ``study.enqueue``, where missing ones are sampled."""
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    overrides: tuple[str, ...]
    """The command line's overrides that hold for every trial."""
    confirms: Path | None = None
    """Folder of the study whose best trials this one runs again."""

    @property
    def quantities(self) -> list[str]:
        """The keys of the objectives, then of the constraints."""
        return [o.key for o in self.objectives] + [c.key for c in self.constraints]

    @property
    def marks(self) -> tuple[int, ...]:
        """Environment steps at which trials report, without the last.

        Empty where the objective is not ``final_return``: a report must compare with the objective.
        """
        if not self._is_of_returns:
            return ()
        num_reports, total_steps = self.study.num_reports, self.config.total_steps
        return tuple(math.ceil(total_steps * i / num_reports) for i in range(1, num_reports))

    @property
    def _is_of_returns(self) -> bool:
        return [objective.key for objective in self.objectives] == ["final_return"]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The settings that make trials comparable, as JSON values with their digest."""
        run = settings_of(self.config)
        run = {key: value for key, value in run.items() if key not in _NOT_IN_FINGERPRINT}
        del run["env"]["timeout_s"]
        # Studies of before it was an option have none, so the default has no key.
        if (steps := self.config.checkpoint.boundary_steps) != CheckpointConfig().boundary_steps:
            run["checkpoint"] = {"boundary_steps": steps}
        content = {
            "space": self.space.texts(),
            "when": {  # the old name of study.conditions: kept, so that stored studies resume
                p.key: [f"{c.key}={','.join(map(str, c.values))}" for c in p.conditions]
                for p in self.space.parameters
                if p.conditions
            },
            "objectives": [f"{goal.direction} {goal.key}" for goal in self.objectives],
            "aggregate": self.objectives[0].aggregate,
            "constraints": [constraint.text for constraint in self.constraints],
            "num_seeds": self.study.num_seeds,
            "marks": self.marks,
            "run": run,
        }
        parts: dict[str, Any] = to_jsonable(content)
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return {"sha256": digest[:16]} | parts

    @property
    def is_forecast(self) -> bool:
        """Whether an objective or a constraint is about forecast memory."""
        return any(map(is_forecast, self.quantities))

    def refuse_change(self, stored: Mapping[str, Any]) -> None:
        """Raise ``ConfigError`` if new trials would not be comparable with the stored ones.

        ``stored`` is the fingerprint of the study's first start; the message lists the changes.
        """
        current = self.fingerprint
        if self.study.allow_change or stored.get("sha256") == current["sha256"]:
            return
        lines = differences(stored, current)
        shown = "".join(f"\n  {line}" for line in lines[:_MOST_LINES])
        rest = f"\n  and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
        allowed = (
            "began with other settings; restore them, choose another study.name, "
            f"or mix unlike trials with study.allow_change=true:{shown}{rest}"
        )
        raise ConfigError("study.name", self.name, allowed)

    def trial_configs(self, params: Mapping[str, Choice], repeat: int = 0) -> tuple[Config, ...]:
        """Return a trial's runs, one per seed.

        Every trial has the same seeds, unless ``repeat`` trials before it had the same ``params``:
        then it has seeds of its own, since the same ones would only give the same results.
        A limit on forecast memory becomes their budget, so that a run above it is refused.
        """
        config = self.base.config(self.space.overrides(params))
        if (limit := forecast_limit_gib(self.constraints)) is not None:
            budget = config.vram_budget_gib
            limit = min(budget, limit) if isinstance(budget, float) else limit
            config = replace(config, vram_budget_gib=limit)
        first = config.seed + repeat * _SEEDS_APART
        return tuple(replace(config, seed=first + i) for i in range(self.study.num_seeds))

    def planned_steps(self, configs: Sequence[Config]) -> int:
        """Return the expected environment steps of a study whose trials are like ``configs``."""
        most = self.study.num_trials * sum(config.total_steps for config in configs)
        return most if self.study.pruner["_target_"] == _NO_PRUNER else int(_PRUNED_SHARE * most)

    def trial_overrides(self, params: Mapping[str, Choice]) -> tuple[str, ...]:
        """Return the overrides of a trial's runs: the command line's, then the trial's own."""
        return (*self.overrides, *self.space.overrides(params))

    def check(self) -> None:
        """Raise ``ConfigError`` unless every trial could start; takes a second or so.

        Checks the confirmation, the sampler, the pruner, and the runs at the corners of the space.
        """
        study, num_objectives = self.study, len(self.objectives)
        if study.confirm.top and num_objectives > 1:
            allowed = "a study of several objectives has a front, not a best trial; must be 0"
            raise ConfigError("study.confirm.top", study.confirm.top, allowed)
        if (text := self.space.texts().get("seed")) is not None:
            raise ConfigError("seed", text, "is not searched but repeated over: study.num_seeds=3")
        check_measured(self.objectives, self.constraints, self.config)
        check_sampler(study, self.space, self.starts, num_objectives)
        check_pruner(study, self.config.total_steps, num_objectives)
        if not self._is_of_returns and study.pruner["_target_"] != _NO_PRUNER:
            allowed = "cannot be pruned by: only final_return can; use study/pruner=none"
            raise ConfigError("study.objective", study.objective, allowed)
        self.space.check(self.base)


def make_plan(command: DictConfig, loader: ConfigLoader) -> Plan:
    """Return the plan of a command that Hydra composed with ``loader``; create nothing."""
    study = OmegaConf.to_object(command.study)
    assert isinstance(study, StudyConfig)
    _check_launcher(command)
    fixed, searched = split_overrides(command.hydra.overrides.task)
    searched = {key.removeprefix("study.space."): text for key, text in searched.items()}
    texts = {key: str(text) for key, text in {**study.space, **searched}.items()}
    for override in fixed:
        texts.pop(_key(override), None)
    conditions = {key: when for key, when in study.conditions.items() if key in texts}
    replace(study, space=texts).check()

    base = BaseRun(Composer(loader, command), tuple(fixed))
    space = read_space(texts, conditions, base)
    name = study.name if study.name != "auto" else _auto_name(command, fixed)
    folder = _STUDIES / name
    starts = (space.defaults(base), *(space.read_point(point, base) for point in study.enqueue))
    return Plan(
        study=replace(study, num_trials=grid_total(study, space, starts)),
        name=name,
        folder=folder,
        url=storage_url(study.storage, folder),
        base=base,
        config=base.config(),
        space=space,
        starts=starts,
        objectives=parse_objectives(
            study.objective, study.direction, study.aggregate, study.num_seeds
        ),
        constraints=parse_constraints(study.constraints),
        overrides=tuple(text for text in fixed if not _key(text).startswith(_OF_STUDY)),
    )


def _check_launcher(command: DictConfig) -> None:
    launcher = str(command.hydra.runtime.choices["hydra/launcher"])
    allowed = (
        "is for grids: a study starts its own trials, as results come in. Start this command "
        "once on each machine, with study.storage=postgresql://..."
    )
    if launcher == "stacked":
        allowed = "is for grids; for a study use study.executor=stacked"
    if launcher != "basic":
        raise ConfigError("hydra/launcher", launcher, allowed)


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _auto_name(command: DictConfig, fixed: Sequence[str]) -> str:
    """Return the name of the sweep and the fixed overrides, as a file name."""
    parts = [str(command.hydra.runtime.choices["sweep"] or "study")]
    parts += [text.lstrip("+~") for text in fixed if not _key(text).startswith(_NOT_IN_NAME)]
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "-", ",".join(parts))
    if len(name) > _MOST_NAME_CHARS:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_MOST_NAME_CHARS]}-{digest}"
    return name


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that changed: ``space.epsilon: old -> new``."""
    old, new = (
        {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat(values)}
        for values in (stored, current)
    )
    keys = [key for key in old | new if key != "sha256"]
    pairs = [(key, old.get(key, "(none)"), new.get(key, "(none)")) for key in keys]
    return [f"{key}: {before} -> {after}" for key, before, after in pairs if before != after]
