"""The search space of a study, read from a sweep file and the command line.

Dimensions are written in Hydra's override grammar. Before a study starts the runs at the corners of
its space are composed and checked, so that no trial is refused later.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import BaseTrial

from ppo_lab.studies.definition.base_run import BaseRun
from ppo_lab.studies.definition.parameter import (
    Choice,
    Condition,
    Parameter,
    Point,
    parse_override,
    read_conditions,
    read_parameter,
    values_of,
)
from ppo_lab.utils.errors import ConfigError, did_you_mean

__all__ = ["Space", "read_space", "split_overrides"]

_MOST_CORNERS = 64  # checked before a study: about a second


@dataclass(frozen=True)
class Space:
    """The parameters of a study, each after those that its conditions depend on."""

    parameters: tuple[Parameter, ...]

    def __getitem__(self, key: str) -> Parameter:
        """Return the parameter ``key``."""
        return next(parameter for parameter in self.parameters if parameter.key == key)

    def sample(self, trial: BaseTrial) -> Point:
        """Return the parameters of ``trial``, sampled where they are not fixed yet."""
        return self._choose(lambda parameter: parameter.suggest(trial))

    def overrides(self, params: Mapping[str, Choice]) -> list[str]:
        """Return the Hydra overrides of a trial with ``params``."""
        return [p.override(params[p.key]) for p in self.parameters if p.key in params]

    def texts(self) -> dict[str, str]:
        """Return the text of each dimension, without spaces."""
        return {p.key: p.text.replace(" ", "") for p in self.parameters}

    def defaults(self, base: BaseRun) -> Point | None:
        """Return the parameters of the base run itself; None if it lies outside the space."""
        params = self._choose(lambda parameter: parameter.match(base.value(parameter.key)))
        return None if None in params.values() else params

    def read_point(self, point: Mapping[str, object], base: BaseRun) -> Point:
        """Return an entry of ``study.enqueue``, checked; values as typed, keys may be missing."""
        known = {parameter.key: parameter for parameter in self.parameters}
        params: Point = {}
        for key, raw in point.items():
            if key not in known:
                allowed = f"is not in the search space{did_you_mean(key, known)}"
                raise ConfigError(f"study.enqueue.{key}", raw, allowed)
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
        return params

    def check(self, base: BaseRun) -> None:
        """Raise ``ConfigError`` unless the runs at the corners of the space could start.

        Of more than 64 corners a sample: every end and every choice, not every combination.
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

    def _corners(self) -> list[Point]:
        if math.prod(len(p.probes()) for p in self.parameters) <= _MOST_CORNERS:
            corners: list[Point] = [{}]
            for p in self.parameters:
                corners = [
                    corner | added
                    for corner in corners
                    for added in ([{p.key: v} for v in p.probes()] if p.is_active(corner) else [{}])
                ]
            return corners
        pick = random.Random(0)  # the same corners each time
        forced = [
            self.required(p.conditions) | {p.key: v} for p in self.parameters for v in p.probes()
        ]
        forced += [{}] * (_MOST_CORNERS - len(forced))
        return [self._complete(params, lambda p: pick.choice(p.probes())) for params in forced]

    def _complete(self, params: Point, choose: Callable[[Parameter], Choice]) -> Point:
        """Return ``params`` with a value for every other active parameter."""
        return self._choose(lambda p: params[p.key] if p.key in params else choose(p))

    def _choose(self, value_of: Callable[[Parameter], Choice | None]) -> dict[str, Any]:
        """Return a value for each parameter that is active given the values before it."""
        params: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                params[parameter.key] = value_of(parameter)
        return params

    def required(self, conditions: Sequence[Condition]) -> Point:
        """Return values under which ``conditions`` hold."""
        required: Point = {}
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

    ``space`` maps a key to its dimension, such as ``interval(0.1, 0.3)``; ``when`` maps a key to
    ``other=value`` or a list of such conditions.
    """
    if stray := next((key for key in when if key not in space), None):
        raise ConfigError(f"study.conditions.{stray}", when[stray], "is not in the search space")
    conditions = {key: read_conditions(key, when.get(key, ())) for key in space}
    parameters: dict[str, Parameter] = {}
    while len(parameters) < len(space):
        waiting = [key for key in space if key not in parameters]
        ready = [key for key in waiting if all(c.key in parameters for c in conditions[key])]
        if not ready:
            key = waiting[0]
            missing = next(c.key for c in conditions[key] if c.key not in parameters)
            allowed = f"{missing} is not in the search space, or depends on this key itself"
            raise ConfigError(f"study.conditions.{key}", when[key], allowed)
        for key in ready:
            earlier = Space(tuple(parameters.values()))
            parameters[key] = _read(key, str(space[key]), conditions[key], earlier, base)
    return Space(tuple(parameters.values()))


def _read(
    key: str, text: str, conditions: tuple[Condition, ...], earlier: Space, base: BaseRun
) -> Parameter:
    for condition in conditions:
        other = earlier[condition.key]
        if stray := [value for value in condition.values if other.match(value) is None]:
            allowed = f"can never hold: {condition.key} is searched in {other.text}"
            raise ConfigError(f"study.conditions.{key}", f"{condition.key}={stray[0]}", allowed)
    required, groups = earlier.required(conditions), base.choices()
    chosen = [text for text in earlier.overrides(required) if text.partition("=")[0] in groups]
    return read_parameter(key, text, base.value(key, chosen), conditions)
