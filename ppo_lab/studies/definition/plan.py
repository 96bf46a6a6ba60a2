"""All that a study decides before anything is created."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict
from sqlalchemy.engine import URL

from ppo_lab.config.run import Config
from ppo_lab.config.study import StudyConfig
from ppo_lab.studies.definition.base_run import BaseRun, Composed
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
_PRUNED_SHARE = 0.5  # of its steps that a pruned study makes (benchmarks/results/pruning.md)
_NOT_IN_NAME = ("sweep", "study", "study/", "study.", "hydra", "tracking", "num_threads", "device")


@dataclass(frozen=True)
class Plan:
    """A study as it was asked for, checked."""

    study: StudyConfig
    name: str
    folder: Path
    url: URL
    """Where trials are stored; holds a password perhaps, so it is never written."""
    base: BaseRun
    config: Config
    """The base run."""
    space: Space
    starts: tuple[EnqueuedPoint, ...]
    """Tried first; the defaults are the first of them."""
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    overrides: tuple[str, ...]
    """What the command line fixed for every trial."""
    confirms: Path | None = None
    """Folder of the study whose best trials this one runs again."""

    @property
    def marks(self) -> tuple[int, ...]:
        """Environment steps at which trials report, the last step not among them.

        None where the objective is no return: what is reported must compare with it.
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
        """What the trials of this study have in common."""
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
        """Return a trial's runs, one per seed: the same seeds for every trial.

        A limit on forecast memory is their budget: what is above it is told, not trained.
        """
        config = self.base.config(self.space.overrides(params))
        limit = forecast_limit_gib(self.constraints)
        if limit is not None:
            is_number = isinstance(config.vram_budget_gib, float)
            budget = min(config.vram_budget_gib, limit) if is_number else limit
            config = replace(config, vram_budget_gib=budget)
        return tuple(replace(config, seed=config.seed + i) for i in range(self.study.num_seeds))

    def planned_steps(self, configs: Sequence[Config]) -> int:
        """Return the environment steps that all trials like ``configs`` are likely to make."""
        most = self.study.num_trials * sum(config.total_steps for config in configs)
        return most if self.study.pruner["_target_"] == _NO_PRUNER else int(_PRUNED_SHARE * most)

    def trial_overrides(self, params: Mapping[str, Choice]) -> tuple[str, ...]:
        """Return what distinguishes a trial's runs from the default one, as one would type it."""
        return (*self.overrides, *self.space.overrides(params))

    def check(self) -> None:
        """Check all that takes a while: every corner of the space, sampler and pruner.

        Raises:
            ConfigError: a trial could not start, or sampler or pruner do not suit the study.
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
            allowed = "prunes by the return on the way to final_return; use study/pruner=none"
            raise ConfigError("study.objective", study.objective, allowed)
        is_cuda = self.config.torch_device.type == "cuda"
        check_measured(self.objectives, self.constraints, is_cuda=is_cuda)
        self.space.check(self.base)


def make_plan(command: DictConfig, loader: ConfigLoader) -> Plan:
    """Return the plan of a command that Hydra composed with ``loader``; nothing is created.

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

    def compose(overrides: Sequence[str]) -> Composed:
        assert isinstance(loader, ConfigLoaderImpl)
        cfg = loader.load_sweep_config(command, [*fixed, *overrides])
        choices = {key: str(name) for key, name in cfg.hydra.runtime.choices.items()}
        with open_dict(cfg):
            del cfg["hydra"]
        return Composed(cfg, choices)

    base = BaseRun(compose)
    space = read_space(texts, when, base)
    name = study.name if study.name != "auto" else _auto_name(command, fixed)
    folder = _STUDIES / name
    starts = [space.start(point, base) for point in study.enqueue]
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
        allowed = "belongs to grids; a study's own is study.executor=stacked"
        raise ConfigError("hydra/launcher", launcher, allowed)
    if launcher != "basic":
        allowed = (
            "belongs to grids: a study starts its trials itself, as results come in. Start this "
            "command once on each machine, with study.storage=postgresql://..."
        )
        raise ConfigError("hydra/launcher", launcher, allowed)


def _is_of_study(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return key in ("sweep", "study") or key.startswith(("study.", "study/"))


def _auto_name(command: DictConfig, fixed: Sequence[str]) -> str:
    """Return the sweep and what was fixed beside it, as a file name."""
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
"""User attribute of the study."""

# Where and how a run is computed and shown, not what it computes.
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
    """Return what the trials of a study have in common, as JSON can hold it."""
    run = {key: value for key, value in base.as_dict().items() if key not in _FREE}
    parts: dict[str, Any] = to_jsonable(
        {
            "space": space.texts(),
            "when": {
                parameter.key: [
                    f"{condition.key}={','.join(map(str, condition.values))}"
                    for condition in parameter.conditions
                ]
                for parameter in space.parameters
                if parameter.conditions
            },
            "objectives": [f"{objective.direction} {objective.key}" for objective in objectives],
            "aggregate": objectives[0].aggregate,
            "constraints": [constraint.text for constraint in constraints],
            "num_seeds": num_seeds,
            "marks": list(marks),
            "run": run,
        }
    )
    parts = json.loads(json.dumps(parts, default=str))  # as a storage will give it back
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
    """Refuse to go on with a study whose trials would not compare with those it has.

    Raises:
        ConfigError: something changed, and ``allow`` is not set; the message lists what.
    """
    if allow or stored.get("sha256") == current["sha256"]:
        return
    lines = differences(stored, current)
    shown = "".join(f"\n  {line}" for line in lines[:_MOST_LINES])
    rest = f"\n  and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
    allowed = (
        "began otherwise; go back to its settings, take another study.name, "
        f"or compare unlike trials with study.allow_change=true:{shown}{rest}"
    )
    raise ConfigError("study.name", study, allowed)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if not isinstance(value, str) else value
