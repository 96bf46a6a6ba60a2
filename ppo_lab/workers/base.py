"""The contract between a scheduler and its worker pool, and the messages they exchange.

A pool is given tasks. It yields a trial's progress, its reports at fixed steps, and its exit; a
report is answered by a decision. Another kind of pool, such as a cluster's, implements
``WorkerPool``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from ppo_lab.config.run import Config
from ppo_lab.runner.run_record import RunOutput

__all__ = [
    "Cancel", "Decision", "Exited", "Task", "TrialProgress", "TrialReport", "WorkerEvent",
    "WorkerPool",
]  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One attempt at a trial, or one job of a grid: all that its worker needs to know."""

    number: int
    """Number of the trial in its study, or of the job in its grid."""
    configs: tuple[Config, ...]
    """One per seed; a job has one."""
    output: RunOutput
    """In a folder of this attempt alone; each seed of a trial gets a folder and a run id in it."""
    is_job: bool = False
    """Whether this is a job of a grid: a run in the folder itself, without reports and result."""
    report_steps: tuple[int, ...] = ()
    """Environment steps at which the trial reports, ascending."""
    planned_steps: int = 0
    """Environment steps of all tasks of the study or grid; 0: of this one."""
    num_left: int | None = None
    """Tasks that will follow this one; None: unknown."""

    @property
    def folder(self) -> Path:
        """The folder of this attempt, which exists already."""
        return self.output.folder


@dataclass(frozen=True)
class TrialProgress:
    """Worker to scheduler, about twice a second: the current state of a trial or job."""

    number: int
    step: int
    """Environment steps of the seed that is furthest behind."""
    returns: tuple[float | None, ...]
    """Latest mean return of each seed; None before its first episode has ended."""
    env_steps_per_s: float | None
    vram_gib: float | None
    kl: float | None = None
    """Of the last update, mean over the seeds that train."""
    state: str = ""
    """``dead`` or ``collapsed`` while that holds for the policy of a seed."""


@dataclass(frozen=True)
class TrialReport:
    """Worker to scheduler: every seed of a trial has passed ``step``, one of its report steps."""

    number: int
    step: int
    returns: tuple[float | None, ...]


@dataclass(frozen=True)
class Exited:
    """A task has ended; its result, if there is one, is in its folder."""

    number: int
    exit_code: int
    """Negative: killed by that signal."""


@dataclass(frozen=True)
class Decision:
    """Scheduler to worker: the answer to the report at ``step``."""

    number: int
    step: int
    stop: str | None
    """The reason to stop the trial; None to continue."""


@dataclass(frozen=True)
class Cancel:
    """Pool to worker: stop a task now."""

    number: int


WorkerEvent = TrialProgress | TrialReport | Exited


class WorkerPool(ABC):
    """Runs tasks, each identified by its number, in worker processes."""

    @property
    @abstractmethod
    def max_running(self) -> int:
        """Tasks that the pool accepts at a time."""

    @abstractmethod
    def start(self, task: Task) -> int:
        """Start ``task`` and return its slot: the lowest index that no running task has.

        Fewer than ``max_running`` tasks must be running.
        """

    @abstractmethod
    def send(self, decision: Decision) -> None:
        """Send a decision to its task; ignored if the task has ended."""

    @abstractmethod
    def wait(self, timeout_s: float) -> list[WorkerEvent]:
        """Return new events as soon as there are any; an empty list after ``timeout_s``.

        A task's reports precede its exit.
        """

    @abstractmethod
    def stop(self, number: int) -> None:
        """Stop a task; its ``Exited`` follows within seconds. Ignored if it has ended."""

    @abstractmethod
    def close(self) -> None:
        """Stop all tasks and wait until the workers are gone."""
