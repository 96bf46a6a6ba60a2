"""Parameters of a study as short text; numbers and intervals: ``utils.format``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_lab.utils.format import number_text, score_text

__all__ = ["number_text", "params_text", "score_text"]


def params_text(params: Mapping[str, Any]) -> str:
    """Return ``epsilon=0.153 lr=0.00031``: keys without their groups."""
    return " ".join(
        f"{key.rpartition('.')[2]}={f'{value:.3g}' if isinstance(value, float) else value}"
        for key, value in params.items()
    )
