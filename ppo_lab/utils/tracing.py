"""Whether make_fx is tracing: a few functions then take another form."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

__all__ = ["is_tracing", "tracing"]

_TRACES: list[None] = []


def is_tracing() -> bool:
    """Return whether a function is being traced."""
    return bool(_TRACES)


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Mark the block as traced."""
    _TRACES.append(None)
    try:
        yield
    finally:
        _TRACES.pop()
