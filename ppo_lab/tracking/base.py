"""What the trainer emits, and what a sink does with it.

A *record* is one lane's iteration in numbers. Sinks write records where a person will look. They
can neither stop nor slow a run: whatever a sink raises is counted and reported once, not raised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Histogram", "Record", "RunInfo", "Sink"]


@dataclass(frozen=True)
class Histogram:
    """Counts between bin edges; ``len(edges) == len(counts) + 1``."""

    counts: Sequence[float]
    edges: Sequence[float]


@dataclass(frozen=True)
class Record:
    """One lane's numbers after one iteration."""

    global_step: int
    """Environment steps this lane has taken."""
    iteration: int
    """Iterations finished, counted from 1."""
    metrics: Mapping[str, float]
    """Name (``family/name``, as in the README's table) to value; absent: not measurable here."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """What identifies a run; the same for every sink."""

    folder: Path
    """The run's own folder; exists already."""
    id: str
    """Unique, readable, at most 64 characters of ``[A-Za-z0-9._=-]``."""
    name: str
    """``{env}__{memory}__eps{epsilon}__s{seed}``."""
    group: str | None
    """The grid or study this run belongs to."""
    tags: tuple[str, ...]
    """Short atoms, each at most 64 characters: environment, memory strategy, commit."""
    total_steps: int
    """Environment steps the run will take, for progress and time left."""
    config: Mapping[str, Any]
    """The resolved config, plus versions and overrides; holds no secrets."""
    job_type: str = "train"
    """train; trial for a run of a study; study for the study itself."""


class Sink(ABC):
    """Where records go. Methods are called from the trainer's thread, in this order."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open what is needed for ``run``."""

    @abstractmethod
    def record(self, record: Record) -> None:
        """Take one iteration's numbers."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Take the run's summary and close; ``exit_code`` is 0 when the run ended well."""
