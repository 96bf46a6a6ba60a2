"""When a conditional parameter of a search space exists: ``memory=offloaded_optimizer``."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, QuotedString
from hydra.errors import HydraException

from ppo_lab.errors import ConfigError

__all__ = ["Choice", "Condition", "choices_of", "parse_override", "read_conditions"]

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
        raise ConfigError(f"when.{key}", text, allowed)
    override = parse_override(other.strip(), value.strip())
    if override.is_range_sweep() or override.is_interval_sweep():
        raise ConfigError(f"when.{key}", text, allowed)
    return Condition(other.strip(), choices_of(override._value)[0])
