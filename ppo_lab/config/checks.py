"""Checks of single values, shared by the configurations of a run and of a study."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ppo_lab.utils.errors import ConfigError

__all__ = ["check_fits", "check_whole", "nested_keys"]


def check_whole(
    key: str, value: object, *, at_least: int = 1, at_most: int | None = None, auto: bool = False
) -> None:
    """Raise ``ConfigError`` unless ``value`` is a whole number in range, or may be auto."""
    if auto and value == "auto":
        return
    is_whole = isinstance(value, int) and not isinstance(value, bool) and value >= at_least
    if not is_whole or (at_most is not None and value > at_most):  # type: ignore[operator]
        either = "auto or " if auto else ""
        limit = "" if at_most is None else f" and <= {at_most:,}"
        raise ConfigError(key, value, f"must be {either}a whole number >= {at_least}{limit}")


def nested_keys(values: Mapping[Any, Any]) -> Iterator[str]:
    """Yield every key of nested dictionaries, dotted."""
    for key, value in values.items():
        yield str(key)
        if isinstance(value, dict):
            yield from (f"{key}.{below}" for below in nested_keys(value))


def check_fits(key: str, value: object, num_bytes: int) -> None:
    """Raise ``ConfigError`` if what ``key=value`` needs at least exceeds this machine's memory."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > total:
        needs, has = (f"{size / 2**30:,.1f} GiB" for size in (num_bytes, total))
        raise ConfigError(key, value, f"needs {needs} of memory or more; this machine has {has}")
