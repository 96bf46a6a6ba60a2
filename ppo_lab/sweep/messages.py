"""What a parent and its trials tell each other over a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config

__all__ = ["GridJob", "Mark", "Note", "Task", "Verdict"]


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
class Note:
    """Trial to parent, now and then: how it stands."""

    step: int
    """Environment steps of the seed that is furthest behind."""
    returns: tuple[float | None, ...]
    """Latest mean return of each seed; None where no episode has ended."""
    env_steps_per_s: float | None
    vram_gib: float | None


@dataclass(frozen=True)
class Mark:
    """Trial to parent: every seed has passed the mark ``step``."""

    step: int
    returns: tuple[float | None, ...]


@dataclass(frozen=True)
class Verdict:
    """Parent to trial: whether to go on after the mark ``step``."""

    step: int
    stop: str | None
    """The reason to end here; None to go on."""
