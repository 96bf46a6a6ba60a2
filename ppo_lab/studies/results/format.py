"""Format numbers, intervals and parameters of a study as short text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

__all__ = ["number_text", "params_text", "score_text"]


def number_text(value: float, like: float | None = None) -> str:
    """Return ``value`` with thousands separators and three or four digits, or those of ``like``.

    Example:
        >>> number_text(12345.6), number_text(9.876), number_text(9.876, like=12.0)
        ('12,346', '9.88', '9.9')
    """
    size = abs(value if like is None else like)
    if size >= 1000 or size == 0:
        num_decimals = 0
    else:
        num_decimals = 1 if size >= 10 else 2 - math.floor(math.log10(size))
    return f"{value:,.{num_decimals}f}" if num_decimals <= 5 else f"{value:.3g}"


def score_text(value: float | None, half_width: float | None) -> str:
    """Return ``value ± half_width`` with the same decimals, ``-`` for an unknown value."""
    if value is None:
        return "-"
    text = number_text(value)
    return text if half_width is None else f"{text} ± {number_text(half_width, like=value)}"


def params_text(params: Mapping[str, Any]) -> str:
    """Return ``epsilon=0.153 lr=0.00031``: keys without their groups."""
    return " ".join(
        f"{key.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in params.items()
    )
