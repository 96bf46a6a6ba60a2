"""The contract between a study's parent and whatever runs its trials."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from ppo_lab.sweep.messages import Mark, Note, Task, Verdict

__all__ = ["Event", "Executor", "Exited", "Reported"]


@dataclass(frozen=True)
class Reported:
    """A running trial said something."""

    number: int
    message: Mark | Note


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
    def tell(self, number: int, verdict: Verdict) -> None:
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
