"""Events of a running study, and the interface of what observes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class StudyOpened:
    """The study was created or resumed."""

    name: str
    folder: Path
    counts: Counts
    num_slots: int


@dataclass(frozen=True)
class TrialStarted:
    """An attempt at a trial started."""

    number: int
    attempt: int
    slot: int
    role: str
    """baseline, start or search."""
    params: Mapping[str, Any]
    seeds: Sequence[int]
    total_steps: int


@dataclass(frozen=True)
class TrialNoted:
    """A trial sent its progress."""

    number: int
    note: TrialProgress


@dataclass(frozen=True)
class TrialReported:
    """A trial reported its returns at a step where it may be pruned."""

    number: int
    mark: TrialReport
    stop: str | None
    """Why it is pruned; None if it continues."""


@dataclass(frozen=True)
class TrialEnded:
    """A trial's outcome was stored."""

    number: int
    role: str
    params: Mapping[str, Any]
    outcome: TrialOutcome
    counts: Counts


@dataclass(frozen=True)
class TrialRetried:
    """An attempt crashed; another follows."""

    number: int
    reason: str
    num_crashes: int
    max_retries: int


@dataclass(frozen=True)
class StorageAway:
    """The storage is unavailable; running trials continue."""

    what: str
    waited_s: float


@dataclass(frozen=True)
class StudyEnded:
    """The study ended on this machine."""

    reason: str
    """complete, stopped, interrupted or storage lost."""
    counts: Counts


StudyEvent = (
    StudyOpened
    | TrialStarted
    | TrialNoted
    | TrialReported
    | TrialEnded
    | TrialRetried
    | StorageAway
    | StudyEnded
)


class StudyObserver:
    """Base of what observes a study; called from the scheduler's loop, so it must be quick."""

    def handle(self, event: StudyEvent) -> None:
        """Handle one event."""

    def tick(self) -> None:
        """Refresh; called about twice a second."""

    def close(self) -> None:
        """Restore the screen; called after an error too, without ``StudyEnded``."""
