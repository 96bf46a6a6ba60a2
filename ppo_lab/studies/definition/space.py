"""The search space of a study: what trials vary, and where.

It is read from a sweep file and from the command line, in Hydra's override grammar, and checked by
composing the runs at its ends: a study that starts does not fail on its own space.
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
    choices_of,
    parse_override,
    read_conditions,
    read_parameter,
)
from ppo_lab.utils.errors import ConfigError, closest_match

__all__ = ["EnqueuedPoint", "Space", "read_space", "split_overrides"]

_MOST_CORNERS = 64  # tried before a study: about a second


class EnqueuedPoint(NamedTuple):
    """A trial that is not sampled."""

    params: dict[str, Choice]
    """For ``study.enqueue_trial``; what is left out is sampled."""
    is_inside: bool
    """Whether every parameter has a place in the space. If not, samplers must not see the trial."""


@dataclass(frozen=True)
class Space:
    """The parameters of a study; a conditional one comes after those it depends on."""

    parameters: tuple[Parameter, ...]

    def __getitem__(self, key: str) -> Parameter:
        """Return the parameter ``key``."""
        return next(parameter for parameter in self.parameters if parameter.key == key)

    def sample(self, trial: BaseTrial) -> dict[str, Choice]:
        """Return the parameters of ``trial``: its own where it has them, else sampled."""
        params: dict[str, Choice] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                params[parameter.key] = parameter.suggest(trial)
        return params

    def overrides(self, params: Mapping[str, Choice]) -> list[str]:
        """Return Hydra's overrides for a trial of ``params``."""
        return [p.override(params[p.key]) for p in self.parameters if p.key in params]

    def texts(self) -> dict[str, str]:
        """Return each dimension as it was written, without spaces."""
        return {p.key: p.text.replace(" ", "") for p in self.parameters}

    @property
    def num_points(self) -> int | None:
        """Points of the full grid; None if a parameter has no finite number of values."""
        grids = [parameter.grid() for parameter in self.parameters]
        return None if None in grids else math.prod(len(grid) for grid in grids if grid)

    @property
    def is_conditional(self) -> bool:
        """Whether some trials have fewer parameters than others."""
        return any(parameter.conditions for parameter in self.parameters)

    def defaults(self, base: BaseRun) -> EnqueuedPoint:
        """Return the base config's own values, inside the space or not."""
        params: dict[str, Choice] = {}
        for parameter in self.parameters:
            if parameter.is_active(params):
                value = parameter.nearest(base.value(parameter.key))
                if value is None:
                    return EnqueuedPoint({}, is_inside=False)
                params[parameter.key] = value
        return EnqueuedPoint(params, is_inside=True)

    def start(self, point: Mapping[str, object], base: BaseRun) -> EnqueuedPoint:
        """Return the starting point ``point``, written as on a command line, perhaps in part.

        Raises:
            ConfigError: a key or value is not of the space, or such a run could not start.
        """
        known = {parameter.key: parameter for parameter in self.parameters}
        params: dict[str, Choice] = {}
        for key, raw in point.items():
            if key not in known:
                close = closest_match(key, known)
                hint = f"; did you mean {close}?" if close else ""
                raise ConfigError(f"study.enqueue.{key}", raw, f"is not in the search space{hint}")
            text = (
                "none" if raw is None else str(raw).lower() if isinstance(raw, bool) else str(raw)
            )
            (typed, *_), _ = choices_of(parse_override(key, text)._value)
            value = known[key].nearest(typed)
            if value is None:
                raise ConfigError(f"study.enqueue.{key}", raw, f"must lie in {known[key].text}")
            params[key] = value
        for parameter in self.parameters:
            given = {c.key: params[c.key] for c in parameter.conditions if c.key in params}
            if parameter.key in params and not parameter.is_active(
                self.required(parameter.conditions) | given
            ):
                allowed = (
                    "has no place in a trial whose condition does not hold; see study.conditions"
                )
                raise ConfigError(f"study.enqueue.{parameter.key}", params[parameter.key], allowed)
        self._try(self._complete(params, lambda p: _default(p, base)), base)
        return EnqueuedPoint(params, is_inside=True)

    def check(self, base: BaseRun) -> None:
        """Compose the runs at the corners of the space, of more than 64 a sample.

        The sample has every end and every choice in it, but not every combination of them.

        Raises:
            ConfigError: one of them could not start.
        """
        for params in self._corners():
            self._try(params, base)

    def _try(self, params: Mapping[str, Choice], base: BaseRun) -> None:
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
        pick = random.Random(0)  # the same corners at every start
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
    """Return the base's value where it is of the space, else the space's first."""
    value = None if parameter.conditions else parameter.nearest(base.value(parameter.key))
    return parameter.probes()[0] if value is None else value


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the overrides that hold for every trial, and the search space among them."""
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
    """Return the search space, its keys and types checked against ``base``; see ``Space.check``.

    Raises:
        ConfigError: a key does not exist, a dimension or a condition cannot be used.
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
        ready = [
            key
            for key in waiting
            if all(condition.key in parameters for condition in conditions[key])
        ]
        if not ready:
            key = next(iter(waiting))
            missing = next(c.key for c in conditions[key] if c.key not in parameters)
            allowed = f"{missing} is not in the search space, or depends on this key itself"
            raise ConfigError(f"study.conditions.{key}", when[key], allowed)
        for key in ready:
            earlier = Space(tuple(parameters.values()))
            text = str(waiting.pop(key))
            parameters[key] = _read(key, text, conditions[key], earlier, base)
    return Space(tuple(parameters.values()))


def _read(
    key: str, text: str, conditions: tuple[Condition, ...], earlier: Space, base: BaseRun
) -> Parameter:
    for condition in conditions:
        other = earlier[condition.key]
        if stray := [value for value in condition.values if other.nearest(value) is None]:
            allowed = f"can never hold: {condition.key} is searched in {other.text}"
            raise ConfigError(f"study.conditions.{key}", f"{condition.key}={stray[0]}", allowed)
    required = earlier.required(conditions)
    groups = [text for text in earlier.overrides(required) if base.is_group(text.partition("=")[0])]
    return read_parameter(key, text, base.value(key, groups), conditions)
