"""Numbers as strictly valid JSON, and back.

JSON has no NaN and no infinity. ``null`` would blur a diverged loss (NaN) with an overflowing one
(Infinity), so they are written as the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``, as
W&B stores them, and ``restore`` turns exactly these strings into floats again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

__all__ = ["restore", "strict"]

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return ``value`` as JSON types only; what has no JSON form becomes its ``str``."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [strict(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy's arrays and scalars, tensors
        return strict(value.tolist())
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _strict_float(float(value))
    return str(value)


def _strict_float(number: float) -> float | str:
    if math.isfinite(number):
        return number
    if math.isnan(number):
        return "NaN"
    return "Infinity" if number > 0 else "-Infinity"


def restore(value: Any) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """Return parsed JSON with the non-finite numbers that ``strict`` wrote as strings."""
    if isinstance(value, dict):
        return {key: restore(item) for key, item in value.items()}
    if isinstance(value, list):
        return [restore(item) for item in value]
    if isinstance(value, str):
        return _NON_FINITE.get(value, value)
    return value
