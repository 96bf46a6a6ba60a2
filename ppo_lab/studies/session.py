"""One machine's part in a study: an opened storage, a sign of life, and what shows the progress.

A study and its confirmation are run by the same session, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from optuna.study import Study
from rich.console import Console

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.display.events import StorageAway, StudyObserver, StudyOpened
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
from ppo_lab.workers import Executor

__all__ = ["StudyRunner"]

T = TypeVar("T")


class StudyRunner:
    """Runs plans on this machine, in the storage of the first."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        signals: InterruptHandler,
        write: Callable[[str], None],
    ) -> None:
        """Open the storage of ``plan``; plain lines of progress go to ``write``.

        Raises:
            StorageLostError: it does not answer.
        """
        self._executor, self._signals, self._write = executor, signals, write
        self._watchers: list[StudyObserver] = []
        self.had_work = False
        """Whether a plan had trials missing when it was run."""
        self._patience = RetryPolicy(
            plan.study.storage_timeout_s, self._tell_outage, lambda: signals.is_urgent
        )
        self.database = self.call("open", lambda: Database(plan.url, plan.folder))
        self._lease = self.call("open", lambda: Lease(self.database, plan.study.lease_s))
        self.call("open", self._lease.renew)

    @property
    def is_urgent(self) -> bool:
        """Whether a person, or the machine, wants this to end now."""
        return self._signals.is_urgent

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Return what ``function`` reads from or writes to the storage, waiting out its outages.

        Raises:
            StorageLostError: the storage stayed away.
        """
        return self._patience.call(what, function)

    def run(self, plan: Plan) -> tuple[Ending, Study]:
        """Run the trials of ``plan`` that are missing; return why that ended, and the study.

        Raises:
            ConfigError: the study was begun otherwise.
            StorageLostError: the storage stayed away before a trial had begun.
        """
        book = self.call("open", lambda: TrialStore(plan, self.database, self._lease))
        counts = self.call("count", book.counts)
        self.had_work |= counts.finished < counts.total
        rows = self.call("read", lambda: finished_trials(book.study, plan.objectives))
        standing = StudyProgress(plan.objectives, best_trial(rows, plan.objectives))
        self._watchers = _watchers(plan.config.tracking.terminal, standing, self._write)
        opened = StudyOpened(plan.name, plan.folder, counts, self._executor.num_slots)
        try:
            for watcher in self._watchers:
                watcher.handle(opened)
            parent = StudyScheduler(
                plan, book, self._lease, self._executor, self._patience, self._signals,
                self._watchers,
            )  # fmt: skip
            return parent.run(), book.study
        finally:
            for watcher in self._watchers:
                watcher.close()
            self._watchers = []

    def close(self) -> None:
        """End this machine's part; its trials must have been given back."""
        self.call("close", self._lease.close)

    def _tell_outage(self, what: str, waited_s: float) -> None:
        for watcher in self._watchers:
            watcher.handle(StorageAway(what, waited_s))


def _watchers(
    style: Terminal, standing: StudyProgress, write: Callable[[str], None]
) -> list[StudyObserver]:
    """Return what shows the progress: a live table on a terminal, else lines, or nothing."""
    console = Console(stderr=True)
    if style is Terminal.auto:
        style = Terminal.live if console.is_terminal else Terminal.plain
    if style is Terminal.live:
        return [LiveTable(standing, console)]
    return [LogLines(standing, write)] if style is Terminal.plain else []
