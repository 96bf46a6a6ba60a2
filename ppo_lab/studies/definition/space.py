"""The search space of a study, read from a sweep file and the command line.

Dimensions are written in Hydra's override grammar. Before a study starts the runs at the corners of
its space are composed and checked, so that no trial is refused later.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from optuna.trial import BaseTrial

from ppo_lab.studies.definition.base_run import BaseRun
from ppo_lab.studies.definition.parameter import (
    Choice,
    Condition,
    Parameter,
    parse_override,
    read_conditions,
    read_parameter,
    values_of,
)
from ppo_lab.utils.errors import ConfigError, closest_match

__all__ = ["EnqueuedPoint", "Space", "read_space", "split_overrides"]

_MOST_CORNERS = 64  # checked before a study: about a second


class EnqueuedPoint(NamedTuple):
    """A point of the space to run before any is sampled."""

    params: dict[str, Choice]
    """For ``study.enqueue_trial``; missing parameters are sampled."""
    is_inside: bool
    """Whether the point lies in the space. If not, the trial is kept from samplers."""


@dataclass(frozen=True)
class Space:
    """The parameters of a study, each after those that its conditions depend on."""

    parameters: tuple[Parameter, ...]

    def __getitem__(self, key: str) -> Parameter:
        """Return the parameter ``key``."""
        return next(parameter for parameter in self.parameters if parameter.key == key)

    def sample(self, trial: BaseTrial) -> dict[str, Choice]:
        """Return the parameters of ``trial``, sampled where they are not fixed yet."""
        params: dict[str, Choice] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                params[parameter.key] = parameter.suggest(trial)
        return params

    def overrides(self, params: Mapping[str, Choice]) -> list[str]:
        """Return the Hydra overrides of a trial with ``params``."""
        return [p.override(params[p.key]) for p in self.parameters if p.key in params]

    def texts(self) -> dict[str, str]:
        """Return the text of each dimension, without spaces."""
        return {p.key: p.text.replace(" ", "") for p in self.parameters}

    @property
    def num_points(self) -> int | None:
        """Points of the full grid; None if a parameter has infinitely many values."""
        grids = [parameter.grid() for parameter in self.parameters]
        return None if None in grids else math.prod(len(grid) for grid in grids if grid)

    def defaults(self, base: BaseRun) -> EnqueuedPoint:
        """Return the point of the base run's own values."""
        params: dict[str, Choice] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                value = parameter.match(base.value(parameter.key))
                if value is None:
                    return EnqueuedPoint({}, is_inside=False)
                params[parameter.key] = value
        return EnqueuedPoint(params, is_inside=True)

    def read_point(self, point: Mapping[str, object], base: BaseRun) -> EnqueuedPoint:
        """Return an entry of ``study.enqueue``: values as on a command line; keys may be missing.

        Raises:
            ConfigError: a key or value is outside the space, or such a run could not start.
        """
        known = {parameter.key: parameter for parameter in self.parameters}
        params: dict[str, Choice] = {}
        for key, raw in point.items():
            if key not in known:
                close = closest_match(key, known)
                hint = f"; did you mean {close}?" if close else ""
                raise ConfigError(f"study.enqueue.{key}", raw, f"is not in the search space{hint}")
            text = "none" if raw is None else str(raw)
            (typed, *_), _ = values_of(parse_override(key, text)._value)
            value = known[key].match(typed)
            if value is None:
                raise ConfigError(f"study.enqueue.{key}", raw, f"must lie in {known[key].text}")
            params[key] = value
        for key, value in params.items():
            if any(c.key in params and not c.holds(params) for c in known[key].conditions):
                allowed = "has no effect where its condition does not hold; see study.conditions"
                raise ConfigError(f"study.enqueue.{key}", value, allowed)
        self._compose(self._complete(params, lambda p: _default(p, base)), base)
        return EnqueuedPoint(params, is_inside=True)

    def check(self, base: BaseRun) -> None:
        """Compose and check the runs at the corners of the space.

        Of more than 64 corners a sample: every end and every choice, not every combination.

        Raises:
            ConfigError: one of them could not start.
        """
        for params in self._corners():
            self._compose(params, base)

    def _compose(self, params: Mapping[str, Choice], base: BaseRun) -> None:
        overrides = self.overrides(params)
        try:
            base.config(overrides)
        except ConfigError as error:
            allowed = f"{error.allowed} (in the search space at {' '.join(overrides)})"
            raise ConfigError(error.key, str(error.value), allowed) from None

    def _corners(self) -> list[dict[str, Choice]]:
        if math.prod(len(p.probes()) for p in self.parameters) <= _MOST_CORNERS:
            corners: list[dict[str, Choice]] = [{}]
            for p in self.parameters:
                corners = [
                    corner | ({p.key: value} if value is not None else {})
                    for corner in corners
                    for value in (p.probes() if p.is_active(corner) else (None,))
                ]
            return corners
        pick = random.Random(0)  # the same corners each time
        forced = [
            self.required(p.conditions) | {p.key: v} for p in self.parameters for v in p.probes()
        ]
        others: list[dict[str, Choice]] = [{}] * max(_MOST_CORNERS - len(forced), 0)
        return [
            self._complete(params, lambda p: pick.choice(p.probes()))
            for params in itertools.chain(forced, others)
        ]

    def _complete(
        self, params: Mapping[str, Choice], choose: Callable[[Parameter], Choice]
    ) -> dict[str, Choice]:
        """Return ``params`` with a value for every other active parameter."""
        complete: dict[str, Choice] = {}
        for p in self.parameters:
            if p.is_active(complete):
                complete[p.key] = params[p.key] if p.key in params else choose(p)
        return complete

    def required(self, conditions: Sequence[Condition]) -> dict[str, Choice]:
        """Return values under which ``conditions`` hold."""
        required: dict[str, Choice] = {}
        for condition in conditions:
            required |= self.required(self[condition.key].conditions)
            required[condition.key] = condition.values[0]
        return required


def _default(parameter: Parameter, base: BaseRun) -> Choice:
    """Return the base run's value if it lies in the dimension, else the dimension's first."""
    value = None if parameter.conditions else parameter.match(base.value(parameter.key))
    return parameter.probes()[0] if value is None else value


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Split overrides into those fixed for every trial and the dimensions of the search space."""
    fixed, searched = [], {}
    for override in overrides:
        key, _, text = override.partition("=")
        if parse_override(key, text).is_sweep_override():
            searched[key] = text
        else:
            fixed.append(override)
    return fixed, searched


def read_space(
    space: Mapping[str, str], when: Mapping[str, str | Sequence[str]], base: BaseRun
) -> Space:
    """Return the search space, its keys and types checked against ``base``.

    Args:
        space: Key to dimension, such as ``interval(0.1, 0.3)``.
        when: Key to ``other=value`` or a list of such conditions.
        base: The run that trials vary.

    Raises:
        ConfigError: a key does not exist, or a dimension or a condition cannot be used.
    """
    if not space:
        raise ConfigError(
            "study.space", "{}", "must hold a key to vary: epsilon=interval(0.05, 0.5)"
        )
    if stray := next((key for key in when if key not in space), None):
        raise ConfigError(f"study.conditions.{stray}", when[stray], "is not in the search space")
    conditions = {key: read_conditions(key, when.get(key, ())) for key in space}
    parameters: dict[str, Parameter] = {}
    waiting = dict(space)
    while waiting:
        ready = [key for key in waiting if all(c.key in parameters for c in conditions[key])]
        if not ready:
            key = next(iter(waiting))
            missing = next(c.key for c in conditions[key] if c.key not in parameters)
            allowed = f"{missing} is not in the search space, or depends on this key itself"
            raise ConfigError(f"study.conditions.{key}", when[key], allowed)
        for key in ready:
            text, earlier = str(waiting.pop(key)), Space(tuple(parameters.values()))
            parameters[key] = _read(key, text, conditions[key], earlier, base)
    return Space(tuple(parameters.values()))


def _read(
    key: str, text: str, conditions: tuple[Condition, ...], earlier: Space, base: BaseRun
) -> Parameter:
    for condition in conditions:
        other = earlier[condition.key]
        if stray := [value for value in condition.values if other.match(value) is None]:
            allowed = f"can never hold: {condition.key} is searched in {other.text}"
            raise ConfigError(f"study.conditions.{key}", f"{condition.key}={stray[0]}", allowed)
    required = earlier.required(conditions)
    groups = [text for text in earlier.overrides(required) if base.is_group(text.partition("=")[0])]
    return read_parameter(key, text, base.value(key, groups), conditions)
