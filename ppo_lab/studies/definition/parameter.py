"""One dimension of a search space, from Hydra's override grammar to an Optuna distribution.

An interval's type is that of the key's default value: ``interval(0, 1)`` is real for ``gae_lambda``
and whole for ``num_envs``, however the ends are written. Both ends of an interval belong to it; a
range ends before its stop, as in Hydra and Python.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    ChoiceSweep,
    IntervalSweep,
    Override,
    QuotedString,
    RangeSweep,
)
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import BaseTrial

from ppo_lab.utils.errors import ConfigError

__all__ = [
    "Choice",
    "Condition",
    "Parameter",
    "choices_of",
    "parse_override",
    "read_conditions",
    "read_parameter",
]


Choice = bool | int | float | str
"""A value that Optuna's storages keep as it is."""


@dataclass(frozen=True)
class Condition:
    """Holds where the parameter ``key`` has one of ``values``."""

    key: str
    values: tuple[Choice, ...]

    def holds(self, params: Mapping[str, Choice]) -> bool:
        """Return whether ``params`` fulfil it; a key that is itself absent fulfils nothing."""
        return self.key in params and params[self.key] in self.values


@functools.lru_cache(maxsize=1024)  # a parse takes 2 ms, and corners of a space repeat each value
def parse_override(key: str, text: str) -> Override:
    """Return ``key=text`` as Hydra reads it; not to be changed, it is kept.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return OverridesParser.create().parse_override(f"{key}={text}")
    except HydraException as error:
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(key, text, f"cannot be read by Hydra's grammar: {first}") from None


def choices_of(parsed: Any) -> tuple[tuple[Choice, ...], tuple[str, ...]]:  # noqa: ANN401 - Hydra's
    """Return the values of a parsed choice, or of one element, and how Hydra writes each.

    Lists, dictionaries and null, which Optuna cannot keep, stand for themselves as text.
    """
    elements: list[Any] = parsed.list if isinstance(parsed, ChoiceSweep) else [parsed]
    texts = tuple(Override._get_value_element_as_str(element) for element in elements)
    values = (
        element.text
        if isinstance(element, QuotedString)
        else element
        if isinstance(element, bool | int | float | str)
        else text
        for element, text in zip(elements, texts)
    )
    return tuple(values), texts


def read_conditions(key: str, when: str | Sequence[str]) -> tuple[Condition, ...]:
    """Return the conditions of the parameter ``key``; all of them must hold.

    Each is ``other=value`` or ``other=value,value``: any of those.

    Raises:
        ConfigError: one is not of that form.
    """
    return tuple(_read_condition(key, text) for text in ([when] if isinstance(when, str) else when))


def _read_condition(key: str, text: str) -> Condition:
    allowed = "must be key=value or key=value,value of another key of the search space"
    other, equals, value = text.partition("=")
    if not equals or not value.strip():
        raise ConfigError(f"study.conditions.{key}", text, allowed)
    override = parse_override(other.strip(), value.strip())
    if override.is_range_sweep() or override.is_interval_sweep():
        raise ConfigError(f"study.conditions.{key}", text, allowed)
    return Condition(other.strip(), choices_of(override._value)[0])


_MOST_VALUES = 16  # of an integer parameter that are all tried before a study; of more, both ends


@dataclass(frozen=True)
class Parameter:
    """A key that trials vary."""

    key: str
    text: str
    """The dimension as it was written."""
    distribution: BaseDistribution
    choice_texts: tuple[str, ...] = ()
    """How Hydra writes each choice of a categorical parameter."""
    conditions: tuple[Condition, ...] = ()
    """All must hold, or the key is not part of the trial."""

    def is_active(self, params: Mapping[str, Choice]) -> bool:
        """Return whether a trial with ``params`` (of the parameters before this) has the key."""
        return all(condition.holds(params) for condition in self.conditions)

    def suggest(self, trial: BaseTrial) -> Choice:
        """Return the trial's value, sampled if it has none yet."""
        match self.distribution:
            case FloatDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_float(self.key, low, high, step=step, log=log)
            case IntDistribution(low=low, high=high, log=log, step=step):
                return trial.suggest_int(self.key, low, high, step=step, log=log)
            case CategoricalDistribution(choices=choices):
                return cast(Choice, trial.suggest_categorical(self.key, choices))
        raise AssertionError(self.distribution)

    def override(self, value: Choice) -> str:
        """Return ``key=value`` for Hydra."""
        if isinstance(self.distribution, CategoricalDistribution):
            return f"{self.key}={self.choice_texts[self.distribution.choices.index(value)]}"
        return f"{self.key}={value!r}"

    def nearest(self, value: Choice) -> Choice | None:
        """Return the parameter's own value that equals ``value``, None if it has none such."""
        distribution, is_bool = self.distribution, isinstance(value, bool)
        if isinstance(distribution, CategoricalDistribution):
            same = (
                c for c in distribution.choices if c == value and isinstance(c, bool) == is_bool
            )
            return next(same, None)
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        if isinstance(value, str | bool) or not distribution.low <= value <= distribution.high:
            return None
        if distribution.step is not None:
            num_steps = (value - distribution.low) / distribution.step
            if not math.isclose(num_steps, round(num_steps), abs_tol=1e-8):
                return None
        return int(value) if isinstance(distribution, IntDistribution) else float(value)

    def grid(self) -> tuple[Choice, ...] | None:
        """Return every value; None for an interval of real numbers or on a log scale."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return cast("tuple[Choice, ...]", choices)
            case IntDistribution(low=low, high=high, step=step, log=False):
                return tuple(range(low, high + 1, step))
            case FloatDistribution(low=low, high=high, step=float(step)):
                num_values = round((high - low) / step) + 1
                return tuple(
                    float(Decimal(repr(low)) + i * Decimal(repr(step))) for i in range(num_values)
                )
        return None

    def probes(self) -> tuple[Choice, ...]:
        """Return the values to try before a study: every choice, all of few integers, both ends."""
        match self.distribution:
            case CategoricalDistribution(choices=choices):
                return cast("tuple[Choice, ...]", choices)
            case IntDistribution(low=low, high=high, step=step):
                values = range(low, high + 1, step)
                return tuple(values) if len(values) <= _MOST_VALUES else (low, high)
            case FloatDistribution(low=low, high=high):
                return (low, high)
        raise AssertionError(self.distribution)


def read_parameter(
    key: str, text: str, default: Choice, conditions: tuple[Condition, ...] = ()
) -> Parameter:
    """Return the dimension ``key: text``; ``default`` is the key's value outside the study.

    Raises:
        ConfigError: it is no search space, or not one for a key of this kind.
    """
    parsed = _parse(key, text)
    if isinstance(parsed, ChoiceSweep):
        return _choice(key, text, parsed, conditions)
    is_whole = isinstance(default, int) and not isinstance(default, bool)
    if not (is_whole or isinstance(default, float) or default == "none"):
        allowed = f"is no number by default ({default}); list what to try in choice(...)"
        raise ConfigError(key, text, allowed)
    if isinstance(parsed, RangeSweep):
        distribution = _range(key, text, parsed, is_whole=is_whole)
    else:
        assert isinstance(parsed, IntervalSweep)
        distribution = _interval(key, text, parsed, is_whole=is_whole)
    return Parameter(key, text, distribution, conditions=conditions)


def _parse(key: str, text: str) -> ChoiceSweep | RangeSweep | IntervalSweep:
    """Return the sweep that ``text`` is, its tags checked."""
    is_interval = text.replace(" ", "").startswith(("interval(", "tag(log,interval("))
    if is_interval and "none" in text.lower():
        allowed = "an interval cannot hold none; write choice(0.1, 0.2, none)"
        raise ConfigError(key, text, allowed)
    parsed = parse_override(key, text)._value
    is_shuffled = isinstance(parsed, ChoiceSweep | RangeSweep) and parsed.shuffle
    if not isinstance(parsed, ChoiceSweep | RangeSweep | IntervalSweep) or is_shuffled:
        allowed = (
            "must be choice(a, b), range(start, stop), interval(low, high) "
            "or tag(log, interval(low, high))"
        )
        raise ConfigError(key, text, allowed)
    if unknown := parsed.tags - {"log"}:
        raise ConfigError(key, text, f"the tag {min(unknown)} means nothing here; log does")
    if parsed.tags and not isinstance(parsed, IntervalSweep):
        allowed = "has steps or no order; a log scale needs tag(log, interval(low, high))"
        raise ConfigError(key, text, allowed)
    return parsed


def _choice(
    key: str, text: str, parsed: ChoiceSweep, conditions: tuple[Condition, ...]
) -> Parameter:
    values, texts = choices_of(parsed)
    if len(set(texts)) < max(len(texts), 2):
        raise ConfigError(key, text, "must hold two different choices or more, each once")
    return Parameter(key, text, CategoricalDistribution(values), texts, conditions)


def _range(key: str, text: str, parsed: RangeSweep, *, is_whole: bool) -> BaseDistribution:
    assert parsed.start is not None
    assert parsed.stop is not None
    # In decimals as written: in Hydra's sum of binary fractions range(0.1, 0.4, 0.1) holds 0.4.
    start, stop, step = (Decimal(repr(x)) for x in (parsed.start, parsed.stop, parsed.step))
    num_values = math.ceil((stop - start) / step) if step else 0
    if num_values < 2:
        raise ConfigError(key, text, "must hold two values or more; a range ends before its stop")
    low, high = sorted((start, start + (num_values - 1) * step))
    if not is_whole:
        return FloatDistribution(float(low), float(high), step=float(abs(step)))
    if low != int(low) or step != int(step):
        raise ConfigError(key, text, "must hold whole numbers: the key's value is one")
    return IntDistribution(int(low), int(high), step=int(abs(step)))


def _interval(key: str, text: str, parsed: IntervalSweep, *, is_whole: bool) -> BaseDistribution:
    low, high, log = parsed.start, parsed.end, "log" in parsed.tags
    assert low is not None
    assert high is not None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(key, text, "must go from a smaller to a larger number")
    if log and (low <= 0 or (is_whole and low < 1)):
        raise ConfigError(key, text, "must begin above 0 on a log scale")
    if not is_whole:
        return FloatDistribution(low, high, log=log)
    if low != int(low) or high != int(high):
        raise ConfigError(key, text, "must have whole numbers as ends: the key's value is one")
    return IntDistribution(int(low), int(high), log=log)
