"""When a stack writes its next checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["CheckpointPace"]

_LARGEST_FRAC = 0.02
"""Share of a run's time that checkpoints may take; slow disks get fewer of them."""


class CheckpointPace:
    """A checkpoint every ``every_s`` seconds, by a clock that does not jump; 0 for none."""

    def __init__(self, every_s: float) -> None:
        """Count from now on."""
        self._every_s = every_s
        self._written_s, self._pause_s = time.monotonic(), every_s

    @property
    def is_due(self) -> bool:
        """Whether the time has come."""
        return self._every_s > 0 and time.monotonic() - self._written_s >= self._pause_s

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Measure how long the writing takes, and plan the next."""
        begin_s = time.monotonic()
        yield
        self._written_s = time.monotonic()
        cost_s = self._written_s - begin_s
        self._pause_s = max(self._every_s, cost_s / _LARGEST_FRAC)
