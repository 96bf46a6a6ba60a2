"""Numbers and their intervals as short text."""

from __future__ import annotations

import math

__all__ = ["CONFIDENCE", "number_text", "score_text", "t_half_width"]

CONFIDENCE = 0.95
"""Of every interval that is shown: ``±`` means the half-width of a t interval over seeds."""


def t_half_width(error: float, degrees: int) -> float:
    """Return half the t interval for a standard ``error`` with ``degrees`` of freedom.

    Example:
        >>> round(t_half_width(2.0, 1), 2)
        25.41
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, (1 + CONFIDENCE) / 2)) * error


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
