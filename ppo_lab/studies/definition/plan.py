"""The plan of a study: its settings, checked before anything is created."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from sqlalchemy.engine import URL

from ppo_lab.config.compose import Composer
from ppo_lab.config.run import Config
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
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.studies.definition.samplers import check_pruner, check_sampler
from ppo_lab.studies.definition.space import EnqueuedPoint, Space, read_space, split_overrides
from ppo_lab.studies.definition.storage_url import storage_url
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import to_jsonable

__all__ = ["ATTRIBUTE", "Plan", "differences", "fingerprint", "make_plan", "refuse_change"]

_STUDIES = Path("outputs") / "studies"
_MOST_NAME_CHARS = 80
_NO_PRUNER = "optuna.pruners.NopPruner"
_PRUNED_SHARE = 0.5  # of all steps, where trials are pruned (benchmarks/results/pruning.md)
_NOT_IN_NAME = ("sweep", "study", "study/", "study.", "hydra", "tracking", "num_threads", "device")


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
    starts: tuple[EnqueuedPoint, ...]
    """Points run before any is sampled: the defaults, then those of ``study.enqueue``."""
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    overrides: tuple[str, ...]
    """The command line's overrides that hold for every trial."""
    confirms: Path | None = None
    """Folder of the study whose best trials this one runs again."""

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
        """The settings that make trials of this study comparable."""
        return fingerprint(
            self.config,
            self.space,
            self.objectives,
            self.constraints,
            num_seeds=self.study.num_seeds,
            marks=self.marks,
        )

    @property
    def is_forecast(self) -> bool:
        """Whether an objective or a constraint is about forecast memory."""
        keys = [o.key for o in self.objectives] + [c.key for c in self.constraints]
        return any(map(is_forecast, keys))

    def trial_configs(self, params: Mapping[str, Choice]) -> tuple[Config, ...]:
        """Return a trial's runs, one per seed; every trial has the same seeds.

        A limit on forecast memory becomes their budget, so that a run above it is refused.
        """
        config = self.base.config(self.space.overrides(params))
        limit = forecast_limit_gib(self.constraints)
        if limit is not None:
            is_number = isinstance(config.vram_budget_gib, float)
            budget = min(config.vram_budget_gib, limit) if is_number else limit
            config = replace(config, vram_budget_gib=budget)
        return tuple(replace(config, seed=config.seed + i) for i in range(self.study.num_seeds))

    def planned_steps(self, configs: Sequence[Config]) -> int:
        """Return the expected environment steps of a study whose trials are like ``configs``."""
        most = self.study.num_trials * sum(config.total_steps for config in configs)
        return most if self.study.pruner["_target_"] == _NO_PRUNER else int(_PRUNED_SHARE * most)

    def trial_overrides(self, params: Mapping[str, Choice]) -> tuple[str, ...]:
        """Return the overrides of a trial's runs: the command line's, then the trial's own."""
        return (*self.overrides, *self.space.overrides(params))

    def check(self) -> None:
        """Check the sampler, the pruner and every corner of the space, in a second or so.

        Raises:
            ConfigError: a trial could not start, or the sampler or pruner does not suit the study.
        """
        study, num_objectives = self.study, len(self.objectives)
        check_sampler(
            study.sampler,
            self.space,
            num_trials=study.num_trials,
            starts=self.starts,
            num_objectives=num_objectives,
        )
        check_pruner(
            study.pruner,
            confidence=study.prune_confidence,
            total_steps=self.config.total_steps,
            num_objectives=num_objectives,
        )
        if not self._is_of_returns and study.pruner["_target_"] != _NO_PRUNER:
            allowed = "cannot be pruned by: only final_return can; use study/pruner=none"
            raise ConfigError("study.objective", study.objective, allowed)
        is_cuda = self.config.torch_device.type == "cuda"
        check_measured(self.objectives, self.constraints, is_cuda=is_cuda)
        self.space.check(self.base)


def make_plan(command: DictConfig, loader: ConfigLoader) -> Plan:
    """Return the plan of a command that Hydra composed with ``loader``. Creates nothing.

    Raises:
        ConfigError: a value cannot be used.
    """
    study = OmegaConf.to_object(command.study)
    assert isinstance(study, StudyConfig)
    _check_launcher(command)
    typed = list(command.hydra.overrides.task)
    fixed, searched = split_overrides(typed)
    searched = {key.removeprefix("study.space."): text for key, text in searched.items()}
    keys_fixed = {override.partition("=")[0].lstrip("+~") for override in fixed}
    texts = {key: str(text) for key, text in {**study.space, **searched}.items()}
    texts = {key: text for key, text in texts.items() if key not in keys_fixed}
    when = {key: condition for key, condition in study.conditions.items() if key in texts}
    replace(study, space=texts).check()

    base = BaseRun(Composer(loader, command), fixed)
    space = read_space(texts, when, base)
    name = study.name if study.name != "auto" else _auto_name(command, fixed)
    folder = _STUDIES / name
    starts = [space.read_point(point, base) for point in study.enqueue]
    objectives = parse_objectives(
        study.objective, study.direction, study.aggregate, study.num_seeds
    )
    return Plan(
        study=study,
        name=name,
        folder=folder,
        url=storage_url(study.storage, folder),
        base=base,
        config=base.config(),
        space=space,
        starts=(space.defaults(base), *starts),
        objectives=objectives,
        constraints=parse_constraints(study.constraints),
        overrides=tuple(override for override in fixed if not _is_of_study(override)),
    )


def _check_launcher(command: DictConfig) -> None:
    launcher = str(command.hydra.runtime.choices["hydra/launcher"])
    if launcher == "stacked":
        allowed = "is for grids; for a study use study.executor=stacked"
        raise ConfigError("hydra/launcher", launcher, allowed)
    if launcher != "basic":
        allowed = (
            "is for grids: a study starts its own trials, as results come in. Start this command "
            "once on each machine, with study.storage=postgresql://..."
        )
        raise ConfigError("hydra/launcher", launcher, allowed)


def _is_of_study(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return key in ("sweep", "study") or key.startswith(("study.", "study/"))


def _auto_name(command: DictConfig, fixed: Sequence[str]) -> str:
    """Return the name of the sweep and the fixed overrides, as a file name."""
    parts = [str(command.hydra.runtime.choices["sweep"] or "study")]
    for override in fixed:
        key = override.partition("=")[0].lstrip("+~")
        if not key.startswith(_NOT_IN_NAME):
            parts.append(override.lstrip("+~"))
    name = re.sub(r"[^A-Za-z0-9._=,+-]", "-", ",".join(parts))
    if len(name) > _MOST_NAME_CHARS:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name[:_MOST_NAME_CHARS]}-{digest}"
    return name


ATTRIBUTE = "fingerprint"
"""User attribute of the study that holds its fingerprint."""

# Keys that change where and how a run is computed and shown, not its numbers.
_FREE = {
    "tracking", "name", "device", "num_threads", "forecast", "forecast_format", "profile",
    "vram_budget_gib", "vram_limit_gib",
}  # fmt: skip
_MOST_LINES = 12


def fingerprint(
    base: Config,
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    *,
    num_seeds: int,
    marks: Sequence[int],
) -> dict[str, Any]:
    """Return the settings that make trials comparable, as JSON values with their digest."""
    run = {key: value for key, value in base.as_dict().items() if key not in _FREE}
    parts: dict[str, Any] = to_jsonable(
        {
            "space": space.texts(),
            "when": {  # the old name of study.conditions: kept, so that stored studies resume
                p.key: [f"{c.key}={','.join(map(str, c.values))}" for c in p.conditions]
                for p in space.parameters
                if p.conditions
            },
            "objectives": [f"{objective.direction} {objective.key}" for objective in objectives],
            "aggregate": objectives[0].aggregate,
            "constraints": [constraint.text for constraint in constraints],
            "num_seeds": num_seeds,
            "marks": list(marks),
            "run": run,
        }
    )
    parts = json.loads(json.dumps(parts, default=str))  # as a storage returns it
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"sha256": digest[:16]} | parts


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that changed: ``space.epsilon: old -> new``."""
    old, new = dict(_flat(stored)), dict(_flat(current))
    return [
        f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}"
        for key in [*old, *(key for key in new if key not in old)]
        if key != "sha256" and old.get(key, "(none)") != new.get(key, "(none)")
    ]


def refuse_change(
    study: str, stored: Mapping[str, Any], current: Mapping[str, Any], *, allow: bool
) -> None:
    """Refuse to resume a study whose new trials would not be comparable with the stored ones.

    Raises:
        ConfigError: a setting changed and ``allow`` is not set; the message lists the changes.
    """
    if allow or stored.get("sha256") == current["sha256"]:
        return
    lines = differences(stored, current)
    shown = "".join(f"\n  {line}" for line in lines[:_MOST_LINES])
    rest = f"\n  and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
    allowed = (
        "began with other settings; restore them, choose another study.name, "
        f"or mix unlike trials with study.allow_change=true:{shown}{rest}"
    )
    raise ConfigError("study.name", study, allowed)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if not isinstance(value, str) else value
