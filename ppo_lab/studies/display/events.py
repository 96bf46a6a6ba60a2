"""What a study's parent tells those who watch it: the live table, the log, a tracker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ppo_lab.studies.store.outcome import Counts
from ppo_lab.workers.base import TrialProgress, TrialReport

__all__ = [
    "Event",
    "StorageAway",
    "StudyEnded",
    "StudyOpened",
    "TrialEnded",
    "TrialNoted",
    "TrialReported",
    "TrialRetried",
    "TrialStarted",
    "Watcher",
]


@dataclass(frozen=True)
class StudyOpened:
    """The study was created, or goes on."""

    name: str
    folder: Path
    storage: str
    """Without a password."""
    counts: Counts
    max_running: int


@dataclass(frozen=True)
class TrialStarted:
    """An attempt began."""

    number: int
    attempt: int
    slot: int
    role: str
    """baseline, start or search."""
    params: Mapping[str, Any]
    overrides: Sequence[str]
    seeds: Sequence[int]
    total_steps: int
    folder: Path


@dataclass(frozen=True)
class TrialNoted:
    """A trial stands there."""

    number: int
    note: TrialProgress


@dataclass(frozen=True)
class TrialReported:
    """A trial passed a mark."""

    number: int
    mark: TrialReport
    mean: float | None
    standard_error: float | None
    """Of the mean; None with one seed."""
    stop: str | None
    """The reason it was told to end; None if it goes on."""


@dataclass(frozen=True)
class TrialEnded:
    """A trial is told: COMPLETE, PRUNED or FAIL."""

    number: int
    role: str
    params: Mapping[str, Any]
    state: str
    status: str
    reason: str | None
    values: Sequence[float] | None
    summaries: Sequence[Mapping[str, Any]]
    counts: Counts


@dataclass(frozen=True)
class TrialRetried:
    """An attempt died; another follows."""

    number: int
    reason: str
    num_crashes: int
    max_retries: int


@dataclass(frozen=True)
class StorageAway:
    """The storage does not answer; trials go on meanwhile."""

    what: str
    waited_s: float


@dataclass(frozen=True)
class StudyEnded:
    """The parent stops."""

    reason: str
    """complete, stop file, interrupted, storage lost."""
    counts: Counts


Event = (
    StudyOpened
    | TrialStarted
    | TrialNoted
    | TrialReported
    | TrialEnded
    | TrialRetried
    | StorageAway
    | StudyEnded
)


class Watcher(Protocol):
    """Sees a study go on; called from the parent's loop, so it must be quick."""

    def handle(self, event: Event) -> None:
        """Take one event."""

    def tick(self) -> None:
        """Draw, perhaps; called about twice a second."""

    def close(self) -> None:
        """Leave the screen as it was; also after an error, without ``StudyEnded``."""
