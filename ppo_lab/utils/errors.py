"""The error for a wrong setting, and helpers that check settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from typing import Any

__all__ = ["REDACTED", "ConfigError", "check_number", "closest_match"]

REDACTED = "..."
"""Replaces a value that must not be printed."""


class ConfigError(ValueError):
    """A setting that cannot be used.

    Example:
        >>> str(ConfigError("gamma", 2, "must be a number <= 1"))
        'gamma=2: must be a number <= 1'
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        """Report ``key=value`` and which values are ``allowed``."""
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={value}: {allowed}")


def closest_match(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most similar to ``name``, or None if none is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None


def check_number(
    key: str,
    value: Any,  # noqa: ANN401 - user input
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    off: bool = False,
) -> float | None:
    """Check a number from the config.

    Returns:
        The number; None for ``none``, which ``off`` allows.

    Raises:
        ConfigError: Not a finite number, or out of range.
    """
    if off and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    bounds = [
        f"{sign} {bound:g}"
        for sign, bound in ((">", above), (">=", at_least), ("<=", at_most))
        if bound is not None
    ]
    allowed = f"must be a number {' and '.join(bounds)}" + (", or none" if off else "")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not is_number
        or not math.isfinite(value)
        or (above is not None and value <= above)
        or (at_least is not None and value < at_least)
        or (at_most is not None and value > at_most)
    ):
        raise ConfigError(key, value, allowed)
    return float(value)
