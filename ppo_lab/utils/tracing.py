"""Whether what runs now is being traced into a program, which has its own way of some things."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["is_tracing", "tracing"]

_TRACES: list[None] = []  # one for each that runs


def is_tracing() -> bool:
    """Return whether a trace runs."""
    return bool(_TRACES)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Say that what runs inside is traced."""
    _TRACES.append(None)
    try:
        yield
    finally:
        _TRACES.pop()
