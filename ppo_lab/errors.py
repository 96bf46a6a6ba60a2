"""The one error a user sees for a wrong setting."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["HIDDEN", "ConfigError", "nearest"]

HIDDEN = "..."
"""Stands for a value that must not be repeated."""


class ConfigError(ValueError):
    """A setting that cannot be used: the key as typed, its value, and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        """Say that ``key=value`` is wrong and that ``allowed`` would be right."""
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{key}={value}: {allowed}")


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """Return the valid name most like ``name``, or None when nothing is close."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.6)
    return matches[0] if matches else None
