"""Run studies on this machine: an open storage, a lease, and the display of their progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from optuna.study import Study
from rich.console import Console

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.display.live_table import LiveTable
from ppo_lab.studies.display.log_lines import LogLines
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.trial_table import TrialSummary, best_trial, finished_trials
from ppo_lab.studies.scheduler import Ending, InterruptHandler, StudyScheduler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy, StorageRefusedError
from ppo_lab.studies.store.trial_store import TrialStore
from ppo_lab.tracking import Terminal
from ppo_lab.utils.errors import REDACTED, ConfigError
from ppo_lab.workers.base import WorkerPool

__all__ = ["StudyRunner"]


class StudyRunner:
    """Runs a study and then its confirmation, in the storage of the first."""

    def __init__(self, plan: Plan, pool: WorkerPool, interrupts: InterruptHandler) -> None:
        """Open the storage of ``plan``.

        Raises:
            ConfigError: the storage or the study's folder cannot be used.
            StorageLostError: the storage is not reachable.
        """
        self._pool, self._interrupts = pool, interrupts
        self._display: StudyProgress = LogLines(plan.objectives)  # between the studies
        self.had_work = False
        """Whether a study had trials left to run."""
        self._retry = RetryPolicy(
            plan.study.storage_timeout_s,
            lambda *outage: self._display.lose_storage(*outage),
            self._is_given_up,
            is_opening=True,
        )
        self.call = self._retry.call
        with _refusals(plan):
            self.database = self.call("open", Database, plan.url, plan.folder)
            self._lease = self.call("open", Lease, self.database, plan.study.lease_s)
            self.call("open", self._lease.renew)

    def _is_given_up(self) -> bool:
        """Return whether a storage that is away is not waited for any longer."""
        is_idle = not self._display.running
        return self._interrupts.is_urgent or (self._interrupts.is_stopping and is_idle)

    def run(self, plan: Plan) -> tuple[Ending, Study]:
        """Run the trials that ``plan`` still lacks; return why that ended, and the study.

        Raises:
            ConfigError: the study exists with other settings.
            StorageLostError: the storage was unreachable before a trial had started.
        """
        with _refusals(plan):
            store = self.call("open", TrialStore, plan, self.database, self._lease)
        self._retry.is_opening = False
        counts = self.call("count", store.counts)
        self.had_work |= counts.finished < counts.total
        trials = self.call("read", finished_trials, store.study, plan.objectives)
        self._display = display = _make_display(plan, best_trial(trials, plan.objectives))
        try:
            display.open(plan.name, plan.folder, counts, self._pool.max_running)
            scheduler = StudyScheduler(store, self._pool, self._retry, self._interrupts, display)
            return scheduler.run(), store.study
        finally:
            display.close()
            self._display = LogLines(plan.objectives)

    def close(self) -> None:
        """Release the lease; the trials must have been released."""
        self.call("close", self._lease.close)


@contextmanager
def _refusals(plan: Plan) -> Iterator[None]:
    """Refuse the command if the storage of ``plan``, or its folder, cannot be opened."""
    try:
        yield
    except RuntimeError as error:
        # A plain one is Optuna's, about tables of another version.
        if type(error) not in (RuntimeError, StorageRefusedError):
            raise
        allowed = f"{masked(plan.url)} cannot be used: {error}"
        raise ConfigError("study.storage", REDACTED, allowed) from error
    except OSError as error:
        allowed = f"its folder {plan.folder} cannot be used: {error}"
        raise ConfigError("study.name", plan.name, allowed) from error


def _make_display(plan: Plan, best: TrialSummary | None) -> StudyProgress:
    """Return a live table in a terminal, else lines, or nothing."""
    style, console = plan.config.tracking.terminal, Console(stderr=True)
    if style is Terminal.auto:
        style = Terminal.live if console.is_terminal else Terminal.plain
    if style is Terminal.live:
        return LiveTable(plan.objectives, best, console=console)
    if style is Terminal.plain:
        return LogLines(plan.objectives, best)
    return StudyProgress(plan.objectives, best)
