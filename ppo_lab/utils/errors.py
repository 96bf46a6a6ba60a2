"""The errors that a user can cause, and helpers that check settings."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from operator import ge, gt, le
from typing import Any

from ppo_lab.utils.redaction import REDACTED, mask

__all__ = ["REDACTED", "ConfigError", "EnvironmentFault", "check_number", "did_you_mean"]

_SMALLEST, _LARGEST = 1e-37, 1e38  # numbers that float32 holds at full precision


class ConfigError(ValueError):
    """A setting that cannot be used.

    Example:
        >>> str(ConfigError("gamma", 2, "must be a number <= 1"))
        'gamma=2: must be a number <= 1'
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        """Report ``key=value`` and which values are ``allowed``."""
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(mask(f"{key}={value}: {allowed}"))


class EnvironmentFault(RuntimeError):  # noqa: N818 - a fault of the user's environment
    """What an environment did wrong, in one line with its number, the step and the cause."""

    def __init__(self, message: str, lane: int = 0) -> None:
        """Report ``message`` about an environment of ``lane``, whose run alone must fail."""
        super().__init__(message)
        self.lane = lane


def did_you_mean(name: str, valid: Iterable[str], *, prefix: str = "") -> str:
    """Return ``; did you mean NAME?`` with the most similar of the ``valid`` names, else nothing.

    Example:
        >>> did_you_mean("epslon", ["epsilon", "gamma"])
        '; did you mean epsilon?'
    """
    close = difflib.get_close_matches(name, list(valid), n=1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def check_number(
    key: str,
    value: Any,  # noqa: ANN401 - user input
    *,
    above: float | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    off: bool = False,
) -> float | None:
    """Return a finite number in range, or None for ``none``, which ``off`` allows.

    Raises:
        ConfigError: It is neither.
    """
    if off and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    limits = [
        (sign, bound, holds)
        for sign, bound, holds in ((">", above, gt), (">=", at_least, ge), ("<=", at_most, le))
        if bound is not None
    ]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    is_finite = is_number and math.isfinite(value)
    if not (is_finite and all(holds(value, bound) for _, bound, holds in limits)):
        bounds = " and ".join(f"{sign} {bound:g}" for sign, bound, _ in limits)
        raise ConfigError(key, value, f"must be a number {bounds}" + (", or none" if off else ""))
    if value and not _SMALLEST <= abs(value) <= _LARGEST:
        allowed = f"must be between {_SMALLEST:g} and {_LARGEST:g} in size, the numbers of float32"
        raise ConfigError(key, value, allowed)
    return float(value)
