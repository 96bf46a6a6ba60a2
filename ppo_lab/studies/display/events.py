"""Events of a running study, and the interface of what observes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.outcome import Counts, TrialOutcome
from ppo_lab.workers.base import TrialProgress, TrialReport

__all__ = [
    "StorageAway",
    "StudyEnded",
    "StudyEvent",
    "StudyObserver",
    "StudyOpened",
    "TrialEnded",
    "TrialNoted",
    "TrialReported",
    "TrialRetried",
    "TrialStarted",
]


class StudyEvent:
    """Base of all events."""


@dataclass(frozen=True)
class StudyOpened(StudyEvent):
    """The study was created or resumed."""

    name: str
    folder: Path
    counts: Counts
    max_running: int


@dataclass(frozen=True)
class TrialStarted(StudyEvent):
    """An attempt at a trial started."""

    trial: TrialSummary
    attempt: int


@dataclass(frozen=True)
class TrialNoted(StudyEvent):
    """A trial sent its progress."""

    number: int
    note: TrialProgress


@dataclass(frozen=True)
class TrialReported(StudyEvent):
    """A trial reported its returns at a step where it may be pruned."""

    number: int
    mark: TrialReport
    stop: str | None
    """Why it is pruned; None if it continues."""


@dataclass(frozen=True)
class TrialEnded(StudyEvent):
    """A trial's outcome was stored."""

    number: int
    role: str
    params: Mapping[str, Any]
    outcome: TrialOutcome
    counts: Counts


@dataclass(frozen=True)
class TrialRetried(StudyEvent):
    """An attempt crashed; another follows."""

    number: int
    reason: str
    num_crashes: int
    max_retries: int


@dataclass(frozen=True)
class StorageAway(StudyEvent):
    """The storage is unavailable; running trials continue."""

    what: str
    waited_s: float


@dataclass(frozen=True)
class StudyEnded(StudyEvent):
    """The study ended on this machine."""

    reason: str
    """complete, stopped, interrupted or storage lost."""
    counts: Counts


class StudyObserver:
    """Base of what observes a study; called from the scheduler's loop, so it must be quick."""

    def handle(self, event: StudyEvent) -> None:
        """Handle one event."""

    def tick(self) -> None:
        """Refresh; called about twice a second."""

    def close(self) -> None:
        """Restore the screen; called after an error too, without ``StudyEnded``."""
