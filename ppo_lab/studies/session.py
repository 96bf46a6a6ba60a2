"""Run studies on this machine: an open storage, a lease, and the display of their progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from optuna.study import Study
from rich.console import Console

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.display.events import StorageAway, StudyEvent, StudyObserver, StudyOpened
from ppo_lab.studies.display.live_table import LiveTable
from ppo_lab.studies.display.log_lines import LogLines
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.trial_table import best_trial, finished_trials
from ppo_lab.studies.scheduler import Ending, InterruptHandler, StudyScheduler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy
from ppo_lab.studies.store.trial_store import TrialStore
from ppo_lab.tracking import Terminal
from ppo_lab.workers.base import WorkerPool

__all__ = ["StudyRunner"]

T = TypeVar("T")


class StudyRunner:
    """Runs a study and then its confirmation, in the storage of the first."""

    def __init__(
        self,
        plan: Plan,
        pool: WorkerPool,
        interrupts: InterruptHandler,
        write: Callable[[str], None],
    ) -> None:
        """Open the storage of ``plan``; ``write`` prints lines about the progress.

        Raises:
            StorageLostError: the storage is not reachable.
        """
        self._pool, self._interrupts, self._write = pool, interrupts, write
        self._watchers: list[StudyObserver] = []
        self.had_work = False
        """Whether a study had trials left to run."""
        self._retry = RetryPolicy(
            plan.study.storage_timeout_s,
            lambda what, waited_s: self._notify(StorageAway(what, waited_s)),
            lambda: interrupts.is_urgent,
        )
        self.database = self.call("open", lambda: Database(plan.url, plan.folder))
        self._lease = self.call("open", lambda: Lease(self.database, plan.study.lease_s))
        self.call("open", self._lease.renew)

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Call ``function``, which uses the storage, with retries while it is not reachable.

        Raises:
            StorageLostError: the storage stayed unreachable.
        """
        return self._retry.call(what, function)

    def run(self, plan: Plan) -> tuple[Ending, Study]:
        """Run the trials that ``plan`` still lacks; return why that ended, and the study.

        Raises:
            ConfigError: the study exists with other settings.
            StorageLostError: the storage was unreachable before a trial had started.
        """
        store = self.call("open", lambda: TrialStore(plan, self.database, self._lease))
        counts = self.call("count", store.counts)
        self.had_work |= counts.finished < counts.total
        rows = self.call("read", lambda: finished_trials(store.study, plan.objectives))
        progress = StudyProgress(plan.objectives, best_trial(rows, plan.objectives))
        self._watchers = _watchers(plan.config.tracking.terminal, progress, self._write)
        try:
            self._notify(StudyOpened(plan.name, plan.folder, counts, self._pool.max_running))
            scheduler = StudyScheduler(
                plan, store, self._lease, self._pool, self._retry, self._interrupts,
                self._watchers,
            )  # fmt: skip
            return scheduler.run(), store.study
        finally:
            for watcher in self._watchers:
                watcher.close()
            self._watchers = []

    def close(self) -> None:
        """Release the lease; the trials must have been released."""
        self.call("close", self._lease.close)

    def _notify(self, event: StudyEvent) -> None:
        for watcher in self._watchers:
            watcher.handle(event)


def _watchers(
    style: Terminal, progress: StudyProgress, write: Callable[[str], None]
) -> list[StudyObserver]:
    """Return what shows the progress: a live table in a terminal, else lines, or nothing."""
    console = Console(stderr=True)
    if style is Terminal.auto:
        style = Terminal.live if console.is_terminal else Terminal.plain
    if style is Terminal.live:
        return [LiveTable(progress, console)]
    return [LogLines(progress, write)] if style is Terminal.plain else []
