"""Build Optuna's samplers and pruners from YAML, and check that they suit a study.

YAML names a class by ``_target_``. A study's file may come from anywhere, so only public classes of
``optuna.samplers`` and ``optuna.pruners`` are built.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GPSampler, GridSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ppo_lab.config.study import StudyConfig
from ppo_lab.studies.definition.parameter import Point
from ppo_lab.studies.definition.pruning import ConfidencePruner
from ppo_lab.studies.definition.space import Space
from ppo_lab.utils.errors import ConfigError, did_you_mean

__all__ = ["build_pruner", "build_sampler", "check_pruner", "check_sampler", "grid_total"]
__all__ += ["mixed_seed"]

_SAMPLERS = "optuna.samplers."
_PRUNERS = "optuna.pruners."

_REFUSED = {
    "BruteForceSampler": "use study/sampler=grid",
    "PartialFixedSampler": "fix a key on the command line instead",
    "WilcoxonPruner": "compares seed by seed, and with 3 seeds cannot reach p < 0.1",
}

_MOST_POINTS = 100_000  # of a grid, listed in memory
_SHARED_SEED = {"GridSampler", "QMCSampler"}  # one sequence for all workers and restarts

_OF_RUN = {  # shares of a run in YAML, environment steps for Optuna
    "warmup_frac": "n_warmup_steps",
    "min_resource_frac": "min_resource",
    "max_resource_frac": "max_resource",
}


class _OnceGridSampler(GridSampler):
    """Optuna's grid without points that are enqueued, and without its call of ``study.stop``.

    Optuna runs a point of the grid again if it was enqueued, as our defaults are.
    """

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Give ``trial`` the next free point; the store's lock keeps others from taking it."""
        if {"grid_id", "fixed_params"} & trial.system_attrs.keys():
            return
        taken = set(map(self._point, study.get_trials(deepcopy=False)))
        ids = range(len(self._all_grids))
        free = (i for i in ids if i not in taken and self._all_grids[i] not in taken)
        study._storage.set_trial_system_attr(trial._trial_id, "search_space", self._search_space)
        grid_id = next(free, trial.number % len(ids))  # the same again only in a changed space
        study._storage.set_trial_system_attr(trial._trial_id, "grid_id", grid_id)

    def _point(self, trial: FrozenTrial) -> object:
        """Return the index of a trial's point in this grid, or its values if it was enqueued."""
        attrs = trial.system_attrs
        if "grid_id" in attrs:
            is_ours = self._same_search_space(attrs["search_space"])
            return attrs["grid_id"] if is_ours else None
        params = attrs.get("fixed_params", {})
        return tuple(params.get(name) for name in self._param_names)

    def after_trial(self, *_: object) -> None:
        """Do nothing: a study ends at its total of trials, see ``grid_total``."""


class _PrunedGpSampler(GPSampler):
    """Optuna's Gaussian process, fitted to pruned trials as well.

    Optuna's own is fitted to finished trials only: a region where every trial is pruned or runs out
    of memory stays uncertain, so it is sampled to the end of the study.
    """

    def _sample_relative_impl(
        self,
        study: Study,
        completed_trials: list[FrozenTrial],
        running_trials: list[FrozenTrial],
        search_space: dict[str, BaseDistribution],
    ) -> dict[str, Any]:
        trials = completed_trials + [
            _as_complete(trial, completed_trials, study.directions)
            for trial in study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
            if search_space.keys() <= trial.params.keys()
        ]
        return super()._sample_relative_impl(study, trials, running_trials, search_space)


_OWN = {"GPSampler": _PrunedGpSampler}
"""Ours in place of Optuna's class."""


def _as_complete(
    trial: FrozenTrial, complete: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> FrozenTrial:
    """Return a pruned trial as a finished one: its last value, or the worst one of ``complete``."""
    copied = copy.deepcopy(trial)
    if copied.values is None:
        copied.values = [
            (min if direction is StudyDirection.MAXIMIZE else max)(t.values[i] for t in complete)
            for i, direction in enumerate(directions)
        ]
    given = copied.constraints
    copied.system_attrs = {}  # GPSampler needs the same constraints of every trial
    for name in complete[0].constraints:
        copied.set_constraint(name, given.get(name, max(t.constraints[name] for t in complete)))
    return copied


def mixed_seed(seed: int, worker: str, num_trials: int) -> int:
    """Return a seed that differs for each worker and each number of trials so far.

    With a fixed seed a resumed study would repeat its first samples, and several machines would
    draw the same ones.
    """
    entropy = [seed, zlib.crc32(worker.encode()), num_trials]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def build_sampler(study: StudyConfig, space: Space, worker: str, num_trials: int) -> BaseSampler:
    """Return the sampler of ``worker``; ``num_trials`` is how many the study has so far."""
    node, seed = study.sampler, study.seed
    name = _class_name(node, "study.sampler", _SAMPLERS)
    if "seed" in node:
        raise ConfigError("study.sampler.seed", node["seed"], "is mixed from study.seed")
    if name not in _SHARED_SEED:
        seed = mixed_seed(seed, worker, num_trials)
    if name == "GridSampler":
        grid = {p.key: list(p.grid() or ()) for p in space.parameters}
        return _OnceGridSampler(grid, seed=seed)
    sampler: BaseSampler = _build(node, "study.sampler", _SAMPLERS, seed=seed)
    return sampler


def check_sampler(
    study: StudyConfig,
    space: Space,
    starts: Sequence[Point | None],
    num_objectives: int,
) -> None:
    """Raise ``ConfigError`` unless the sampler can search ``space`` after the points ``starts``."""
    node = study.sampler
    name = _class_name(node, "study.sampler", _SAMPLERS)
    if name == "CmaEsSampler":
        _check_cmaes(space, num_objectives)
    elif name == "GridSampler":
        _check_grid(space, starts)
    elif name in {"NSGAIISampler", "NSGAIIISampler"}:
        population = node.get("population_size", 50)
        if population >= study.num_trials:
            allowed = (
                f"all {study.num_trials} trials would be drawn at random; must be below num_trials"
            )
            raise ConfigError("study.sampler.population_size", population, allowed)
    build_sampler(study, space, worker="", num_trials=0)


def _check_cmaes(space: Space, num_objectives: int) -> None:
    refusal = partial(ConfigError, "study/sampler", "cmaes")
    if importlib.util.find_spec("cmaes") is None:
        raise refusal("needs a package: pip install 'ppo_lab[cmaes]'")
    if num_objectives > 1:
        raise refusal("has one objective only; take nsga2 or tpe")
    if sum(not isinstance(p.distribution, CategoricalDistribution) for p in space.parameters) < 2:
        raise refusal("needs two numbers to vary or more; take tpe")


def grid_total(study: StudyConfig, space: Space, starts: Sequence[Point | None]) -> int:
    """Return the number of trials after which a grid search has run every point; else num_trials.

    Of the points to run first, those outside the grid and repeated ones come on top.
    """
    nums = [parameter.num_values for parameter in space.parameters]
    if study.sampler.get("_target_") != f"{_SAMPLERS}GridSampler" or None in nums:
        return study.num_trials
    inside = {tuple(sorted(start.items())) for start in starts if start is not None}
    most = math.prod(num for num in nums if num is not None) + len(starts) - len(inside)
    return min(study.num_trials, most)


def _check_grid(space: Space, starts: Sequence[Point | None]) -> None:
    refusal, num_points = partial(ConfigError, "study/sampler", "grid"), 1
    for p in space.parameters:
        if p.num_values is None:
            raise refusal(f"{p.key}={p.text} has no grid; use choice or range")
        if p.conditions:
            raise refusal(f"{p.key} is conditional, and a grid is not; take tpe")
        num_points *= p.num_values
    if num_points > _MOST_POINTS:
        raise refusal(f"has {num_points:,} points; at most {_MOST_POINTS:,}, or take tpe")
    for start in starts:
        if start is not None and len(start) < len(space.parameters):
            allowed = "sampler grid needs every key of the space in an enqueued point"
            raise ConfigError("study.enqueue", start, allowed)


def build_pruner(node: Mapping[str, Any], *, confidence: float, total_steps: int) -> BasePruner:
    """Return the pruner of ``node``, given confidence bounds where it compares trials.

    ``PatientPruner`` compares a trial with itself, so it is given the means, and the pruner that it
    wraps the bounds.
    """
    name = _class_name(node, "study.pruner", _PRUNERS)
    if not 0.5 <= confidence < 1.0:
        allowed = "must be at least 0.5 and below 1; one-sided"
        raise ConfigError("study.prune_confidence", confidence, allowed)
    # Rounded down, since marks are rounded up: so a rung is decided at its own mark.
    rest, more = dict(node), dict[str, Any]()
    for key in _OF_RUN.keys() & node.keys():
        more[_OF_RUN[key]] = max(int(rest.pop(key) * total_steps), 1)
    if name == "PatientPruner":
        inner = rest.pop("wrapped_pruner", None)
        build = partial(build_pruner, confidence=confidence, total_steps=total_steps)
        more["wrapped_pruner"] = inner and build(inner)
    pruner: BasePruner = _build(rest, "study.pruner", _PRUNERS, **more)
    compares_itself = name in {"NopPruner", "PatientPruner"}
    return pruner if compares_itself else ConfidencePruner(pruner, confidence=confidence)


def check_pruner(study: StudyConfig, total_steps: int, num_objectives: int) -> None:
    """Raise ``ConfigError`` unless the pruner can serve a study of ``num_objectives``."""
    name = _class_name(study.pruner, "study.pruner", _PRUNERS)
    if num_objectives > 1 and name != "NopPruner":
        allowed = (
            "Optuna prunes by one objective only; use study/pruner=none, or make the others "
            "constraints: 'study.constraints=[\"peak_vram_gib <= 8\"]'"
        )
        raise ConfigError("study/pruner", name, allowed)
    build_pruner(study.pruner, confidence=study.prune_confidence, total_steps=total_steps)


def _class_name(node: Mapping[str, Any], key: str, package: str) -> str:
    """Return the class that ``node`` names, one of the public ones of ``package``."""
    target = str(node.get("_target_", ""))
    name = target.removeprefix(package)
    names = [n for n in importlib.import_module(package[:-1]).__all__ if not n.startswith("Base")]
    if name in _REFUSED:
        raise ConfigError(f"{key}._target_", target, _REFUSED[name])
    if not target.startswith(package) or name not in names:
        hint = did_you_mean(name, names, prefix=package)
        raise ConfigError(f"{key}._target_", target, f"must be a class of {package[:-1]}{hint}")
    return name


def _build(node: Mapping[str, Any], key: str, package: str, **more: object) -> Any:  # noqa: ANN401
    """Return what ``node`` describes, built with ``more`` arguments; one may be a node itself."""
    name = _class_name(node, key, package)
    arguments = {
        name: _build(value, f"{key}.{name}", package) if isinstance(value, Mapping) else value
        for name, value in node.items()
        if name != "_target_"
    }
    kind: Any = _OWN.get(name) or getattr(importlib.import_module(package[:-1]), name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return kind(**arguments, **more)
    except Exception as error:  # whatever a class of Optuna raises
        raise ConfigError(key, node["_target_"], str(error)) from error
