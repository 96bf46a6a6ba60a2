"""The contract between a study's parent and whatever runs its trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config

__all__ = [
    "Decision",
    "Event",
    "Executor",
    "Exited",
    "GridJob",
    "Reported",
    "Task",
    "TrialProgress",
    "TrialReport",
]


@dataclass(frozen=True)
class Reported:
    """A running trial said something."""

    number: int
    message: TrialReport | TrialProgress


@dataclass(frozen=True)
class Exited:
    """A trial runs no longer; its result, if it came to one, is in its folder."""

    number: int
    exit_code: int
    """Negative: killed by that signal."""


Event = Reported | Exited


class Executor(ABC):
    """Runs trials, as many at a time as it has slots; trials are known by their number."""

    @property
    @abstractmethod
    def num_slots(self) -> int:
        """Trials that can run at a time."""

    @abstractmethod
    def slots(self) -> dict[int, int]:
        """Return each running trial's slot."""

    @abstractmethod
    def start(self, task: Task) -> None:
        """Start ``task`` in a free slot; there must be one."""

    @abstractmethod
    def tell(self, number: int, verdict: Decision) -> None:
        """Pass a verdict on; a trial that has ended meanwhile needs none."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Event]:
        """Return what has happened, as soon as something has; nothing after ``timeout_s``.

        A trial's reports come before its exit.
        """

    @abstractmethod
    def stop(self, number: int) -> None:
        """Ask a trial to end now; its exit follows, unless it has been told, within seconds."""

    @abstractmethod
    def close(self) -> None:
        """End all that still runs and wait until it is gone."""


@dataclass(frozen=True)
class Task:
    """One attempt at a trial, all that its process needs to know."""

    number: int
    """Of the trial in its study."""
    folder: Path
    """This attempt's own; exists already."""
    configs: tuple[Config, ...]
    """One per seed."""
    overrides: tuple[str, ...]
    marks: tuple[int, ...] = ()
    """Environment steps at which the trial reports, ascending."""
    group: str | None = None
    """What trackers group runs by: the study."""
    run_id: str = "trial"
    """What trackers know the attempt by; a seed is added to it."""
    is_forecast: bool = False
    """Whether the study asks for forecast memory, on whatever device it runs."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Added to each seed's summary."""
    planned_steps: int | None = None
    """Environment steps of all trials of the study; None for those of this one."""


@dataclass(frozen=True)
class GridJob:
    """One job of a grid, all that the process which runs it needs to know."""

    number: int
    """Of the job in its grid."""
    folder: Path
    """Its own; exists already."""
    config: Config
    overrides: tuple[str, ...]
    group: str
    """What trackers group runs by: the grid."""
    num_left: int
    """Jobs of the grid that nobody has yet."""
    planned_steps: int | None = None
    """Environment steps of all jobs of the grid; None for those of this one."""

    @property
    def configs(self) -> tuple[Config]:
        """Its only run."""
        return (self.config,)


@dataclass(frozen=True)
class TrialProgress:
    """Trial to parent, now and then: how it stands."""

    step: int
    """Environment steps of the seed that is furthest behind."""
    returns: tuple[float | None, ...]
    """Latest mean return of each seed; None where no episode has ended."""
    env_steps_per_s: float | None
    vram_gib: float | None


@dataclass(frozen=True)
class TrialReport:
    """Trial to parent: every seed has passed the mark ``step``."""

    step: int
    returns: tuple[float | None, ...]


@dataclass(frozen=True)
class Decision:
    """Parent to trial: whether to go on after the mark ``step``."""

    step: int
    stop: str | None
    """The reason to end here; None to go on."""
