"""Interface between the trainer and the places where its metrics are recorded.

A *record* holds one lane's metrics of one iteration; a *sink* writes records somewhere. A failing
sink never stops a run: see ``SafeSink``.
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
    """Metrics of one lane after one iteration."""

    global_step: int  # environment steps this lane has taken
    iteration: int  # iterations finished, counted from 1
    metrics: Mapping[str, float]
    """Values by name (``family/name``, as in the README's table); unavailable ones are absent."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)


@dataclass(frozen=True)
class RunInfo:
    """Identity and config of a run; the same for every sink."""

    folder: Path  # exists already
    id: str  # unique, readable, at most 64 characters of [A-Za-z0-9._=-]
    name: str  # {env}__{memory}__eps{epsilon}__s{seed}
    group: str | None  # the grid or study this run belongs to
    tags: tuple[str, ...]  # at most 64 characters each: environment, memory strategy, commit
    total_steps: int  # environment steps the run will take
    config: Mapping[str, Any]  # resolved, plus versions and overrides; contains no secrets
    job_type: str = "train"  # or trial for a run of a study, study for the study itself


class Sink(ABC):
    """A destination of records; the trainer's thread calls the methods in this order."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open whatever ``run`` needs."""

    @abstractmethod
    def record(self, record: Record) -> None:
        """Write one iteration's metrics."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the run's summary and close; ``exit_code`` is 0 when the run ended well."""
