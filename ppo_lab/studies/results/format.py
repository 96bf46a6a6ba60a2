"""Format numbers, intervals and parameters of a study as short text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

__all__ = ["number_text", "params_text", "plain_table", "score_text"]


def number_text(value: float) -> str:
    """Return ``value`` with three or four digits and thousands separators.

    Example:
        >>> number_text(12345.6), number_text(9.876)
        ('12,346', '9.88')
    """
    return _with_decimals(value, _num_decimals(value))


def score_text(value: float | None, half_width: float | None) -> str:
    """Return ``value ± half_width`` with the same decimals, ``-`` for an unknown value."""
    if value is None:
        return "-"
    num_decimals = _num_decimals(value)
    text = _with_decimals(value, num_decimals)
    return text if half_width is None else f"{text} ± {_with_decimals(half_width, num_decimals)}"


def _num_decimals(value: float) -> int:
    """Return the decimals that leave about three digits: 0 from 1000 on, 1 from 10 on."""
    size = abs(value)
    if size >= 1000 or size == 0:
        return 0
    return 1 if size >= 10 else 2 - math.floor(math.log10(size))


def _with_decimals(value: float, num_decimals: int) -> str:
    return f"{value:,.{num_decimals}f}" if num_decimals <= 5 else f"{value:.3g}"


def params_text(params: Mapping[str, Any]) -> str:
    """Return ``epsilon=0.153 lr=0.00031``: keys without their groups."""
    return " ".join(
        f"{key.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in params.items()
    )


def plain_table(title: str | None = None) -> Table:
    """Return an empty table in the project's style."""
    return Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
