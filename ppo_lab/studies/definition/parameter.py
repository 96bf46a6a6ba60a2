"""One dimension of a search space: Hydra's override grammar as an Optuna distribution.

The key's default value decides between real and whole numbers: ``interval(0, 1)`` is real for
``gae_lambda`` and whole for ``num_envs``. Both ends of an interval belong to it; a range excludes
its stop, as in Hydra and Python.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import BaseTrial

from ppo_lab.config.composer import parse
from ppo_lab.utils.errors import ConfigError

__all__ = ["Choice", "Condition", "Parameter", "Point"]
__all__ += ["parse_override", "read_conditions", "read_parameter", "values_of"]

Choice = bool | int | float | str
"""A parameter's value, of a type that Optuna's storages keep."""
Point = dict[str, Choice]
"""Values of parameters, by key."""
Distribution = CategoricalDistribution | IntDistribution | FloatDistribution

_MOST_VALUES = 16  # an integer with more is checked at both ends only before a study


@dataclass(frozen=True)
class Condition:
    """A condition that the parameter ``key`` has one of ``values``."""

    key: str
    values: tuple[Choice, ...]

    def holds(self, params: Mapping[str, Choice]) -> bool:
        """Return whether ``params`` meet the condition; they do not where ``key`` is absent."""
        return self.key in params and params[self.key] in self.values


@dataclass(frozen=True)
class Parameter:
    """A key that trials vary."""

    key: str
    text: str
    """The dimension as it was written."""
    distribution: Distribution
    conditions: tuple[Condition, ...] = ()
    """A trial has the parameter only where all of them hold."""

    def is_active(self, params: Mapping[str, Choice]) -> bool:
        """Return whether a trial has this parameter, given ``params`` of those before it."""
        return all(condition.holds(params) for condition in self.conditions)

    def suggest(self, trial: BaseTrial) -> Choice:
        """Return the trial's value; Optuna samples it where it is not fixed yet."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return cast(Choice, trial.suggest_categorical(self.key, d.choices))
        if isinstance(d, IntDistribution):
            return trial.suggest_int(self.key, d.low, d.high, step=d.step, log=d.log)
        return trial.suggest_float(self.key, d.low, d.high, step=d.step, log=d.log)

    def override(self, value: Choice) -> str:
        """Return the Hydra override ``key=value``."""
        text = repr(value)
        if isinstance(self.distribution, CategoricalDistribution):
            _, texts = values_of(parse_override(self.key, self.text)._value)
            text = texts[self.distribution.choices.index(value)]
        return f"{self.key}={text}"

    def match(self, value: Choice) -> Choice | None:
        """Return ``value`` as a value of this parameter; None if it is outside the dimension."""
        d, is_bool = self.distribution, isinstance(value, bool)
        if isinstance(d, CategoricalDistribution):
            same = (c for c in d.choices if c == value and isinstance(c, bool) == is_bool)
            return next(same, None)
        if isinstance(value, str | bool) or not d.low <= value <= d.high:
            return None
        num_steps = 0.0 if d.step is None else (value - d.low) / d.step
        if not math.isclose(num_steps, round(num_steps), abs_tol=1e-8):
            return None
        return int(value) if isinstance(d, IntDistribution) else float(value)

    @property
    def num_values(self) -> int | None:
        """Number of values; None for an interval of real numbers or on a log scale."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return len(d.choices)
        return None if d.log or d.step is None else round((d.high - d.low) / d.step) + 1

    def grid(self) -> tuple[Choice, ...] | None:
        """Return all values; None for an interval of real numbers or on a log scale."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return cast("tuple[Choice, ...]", d.choices)
        if (num_values := self.num_values) is None:
            return None
        if isinstance(d, IntDistribution):
            return tuple(range(d.low, d.high + 1, d.step))
        low, step = Decimal(repr(d.low)), Decimal(repr(d.step))
        return tuple(float(low + i * step) for i in range(num_values))

    def probes(self) -> tuple[Choice, ...]:
        """Return values to check before a study: all choices, all of few integers, or the ends."""
        d = self.distribution
        if isinstance(d, CategoricalDistribution):
            return cast("tuple[Choice, ...]", d.choices)
        if isinstance(d, IntDistribution) and len(range(d.low, d.high + 1, d.step)) <= _MOST_VALUES:
            return tuple(range(d.low, d.high + 1, d.step))
        return d.low, d.high


def parse_override(key: str, text: str) -> Override:
    """Return ``key=text`` as Hydra reads it; ``ConfigError`` if it cannot."""
    try:
        return parse(f"{key}={text}")
    except HydraException as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(key, text, f"cannot be read by Hydra's grammar: {first}") from None


def values_of(parsed: Any) -> tuple[tuple[Choice, ...], tuple[str, ...]]:  # noqa: ANN401 - Hydra's
    """Return the values of a parsed choice or single element, and each one's text in Hydra.

    The value of a list, dictionary or null is its text, since Optuna cannot store it.
    """
    elements: list[Any] = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    texts = tuple(map(Override._get_value_element_as_str, elements))
    plain = (e.text if isinstance(e, QuotedString) else e for e in elements)
    return tuple(e if isinstance(e, Choice) else text for e, text in zip(plain, texts)), texts


def read_conditions(key: str, texts: str | Sequence[str]) -> tuple[Condition, ...]:
    """Return the conditions of the parameter ``key``; all must hold.

    Each is ``other=value``, or ``other=value,value`` where any of the values will do.
    """
    conditions = []
    for text in [texts] if isinstance(texts, str) else texts:
        other, _, value = (part.strip() for part in text.partition("="))
        parsed = parse_override(other, value) if value else None
        if parsed is None or parsed.is_range_sweep() or parsed.is_interval_sweep():
            allowed = "must be key=value or key=value,value of another key of the search space"
            raise ConfigError(f"study.conditions.{key}", text, allowed)
        conditions.append(Condition(other, values_of(parsed._value)[0]))
    return tuple(conditions)


def read_parameter(
    key: str, text: str, default: Choice, conditions: tuple[Condition, ...] = ()
) -> Parameter:
    """Return the dimension ``key: text``; ``default`` is the key's value in the base run."""
    is_interval = text.replace(" ", "").startswith(("interval(", "tag(log,interval("))
    if is_interval and "none" in text.lower():
        allowed = "an interval cannot hold none; write choice(0.1, 0.2, none)"
        raise ConfigError(key, text, allowed)
    parsed = parse_override(key, text)._value
    try:
        return Parameter(key, text, _distribution(parsed, default), conditions)
    except ValueError as error:
        raise ConfigError(key, text, str(error)) from None


def _distribution(parsed: Any, default: Choice) -> Distribution:  # noqa: ANN401 - Hydra's
    is_interval = isinstance(parsed, IntervalSweep)
    is_list = isinstance(parsed, ChoiceSweep | RangeSweep) and not parsed.shuffle
    if not (is_interval or is_list):
        kinds = "choice(a, b), range(start, stop), interval(low, high)"
        raise ValueError(f"must be {kinds} or tag(log, interval(low, high))")
    if unknown := parsed.tags - {"log"}:
        raise ValueError(f"has an unknown tag, {min(unknown)}; the only one is log")
    if parsed.tags and not is_interval:
        scale = "a log scale needs tag(log, interval(low, high))"
        raise ValueError(f"cannot be on a log scale; {scale}")
    if isinstance(parsed, ChoiceSweep):
        values, texts = values_of(parsed)
        if len(set(texts)) < max(len(texts), 2):
            raise ValueError("must hold two different choices or more, each once")
        return CategoricalDistribution(values)
    is_whole = isinstance(default, int) and not isinstance(default, bool)
    if not (is_whole or isinstance(default, float) or default == "none"):
        raise ValueError(f"is no number by default ({default}); list its values in choice(...)")
    return (_interval if is_interval else _range)(parsed, is_whole=is_whole)


def _range(parsed: RangeSweep, *, is_whole: bool) -> Distribution:
    # Decimal, because summed in binary fractions range(0.1, 0.4, 0.1) would include 0.4.
    start, stop, step = (Decimal(repr(x)) for x in (parsed.start, parsed.stop, parsed.step))
    num_values = math.ceil((stop - start) / step) if step else 0
    if num_values < 2:
        raise ValueError("must hold two values or more; a range excludes its stop")
    low, high = sorted((start, start + (num_values - 1) * step))
    if not is_whole:
        return FloatDistribution(float(low), float(high), step=float(abs(step)))
    if low != int(low) or step != int(step):
        raise ValueError("must hold whole numbers, as the key's default is one")
    return IntDistribution(int(low), int(high), step=int(abs(step)))


def _interval(parsed: Any, *, is_whole: bool) -> Distribution:  # noqa: ANN401 - Hydra's
    low, high, log = parsed.start, parsed.end, "log" in parsed.tags
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError("must go from a smaller to a larger number")
    if log and (low <= 0 or (is_whole and low < 1)):
        raise ValueError("must begin above 0 on a log scale")
    if not is_whole:
        return FloatDistribution(low, high, log=log)
    if low != int(low) or high != int(high):
        raise ValueError("must have whole numbers as ends, as the key's default is one")
    return IntDistribution(int(low), int(high), log=log)
