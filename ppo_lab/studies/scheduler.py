"""The parent of a study on one machine: claims trials, runs them in slots, books what they say."""

from __future__ import annotations

import functools
import logging
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from types import FrameType

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.display.events import (
    StudyEnded,
    StudyEvent,
    StudyObserver,
    TrialEnded,
    TrialNoted,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.lease import Lease
from ppo_lab.studies.store.retry import RetryPolicy, StorageLostError
from ppo_lab.studies.store.trial_store import Claim, TrialStore
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers import Executor, Exited, Reported
from ppo_lab.workers.base import Decision, Task, TrialProgress, TrialReport
from ppo_lab.workers.result import Result, read_result

__all__ = ["Ending", "InterruptHandler", "StudyScheduler"]

log = logging.getLogger(__name__)

_TICK_S = 0.5
_IDLE_CLAIM_S = 2.0
"""Pause between claims while all that is left runs on other machines."""
STOP_FILE = "STOP"


class Ending(Enum):
    """Why a parent stopped."""

    complete = "complete"
    stopped = "stopped"  # by the STOP file or the study's attribute
    interrupted = "interrupted"  # by Ctrl-C or a signal
    storage_lost = "storage lost"


class InterruptHandler:
    """Counts Ctrl-C: once lets the running trials finish, twice ends them; SIGTERM ends at once."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        """Say through ``tell`` what a signal did."""
        self._notify = tell
        self.num_interrupts = 0
        self.is_terminated = False

    @property
    def is_stopping(self) -> bool:
        """Whether no new trial should begin."""
        return self.num_interrupts > 0 or self.is_terminated

    @property
    def is_urgent(self) -> bool:
        """Whether running trials should end now."""
        return self.num_interrupts > 1 or self.is_terminated

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Catch the two signals within this block."""
        before = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if number == signal.SIGTERM:
            self.is_terminated = True
            self._notify("SIGTERM: stopping the running trials; they run again at the next start")
            return
        self.num_interrupts += 1
        if self.num_interrupts == 1:
            self._notify("Ctrl-C: finishing the running trials; again to stop them now")
        elif self.num_interrupts == 2:
            self._notify("Ctrl-C: stopping the running trials; they run again at the next start")


class StudyScheduler:
    """Runs a study until its total is reached or something stops it."""

    def __init__(
        self,
        plan: Plan,
        book: TrialStore,
        lease: Lease,
        executor: Executor,
        patience: RetryPolicy,
        signals: InterruptHandler,
        watchers: Sequence[StudyObserver],
    ) -> None:
        """Take the parts; nothing happens before ``run``."""
        self._plan, self._book, self._lease, self._executor = plan, book, lease, executor
        self._patience, self._signals, self._watchers = patience, signals, watchers
        self._claims: dict[int, Claim] = {}
        self._folders: dict[int, Path] = {}
        self._next_claim_s = 0.0
        self._is_complete = self._is_stopped = False

    def run(self) -> Ending:
        """Run the study; whatever happens, no trial of ours is left running."""
        try:
            ending = self._loop()
        except StorageLostError as error:
            log.error("the storage is lost: %s", error)
            ending = Ending.storage_lost
        finally:
            self._executor.close()
        if ending is not Ending.storage_lost:
            self._book_what_ended()
            counts = self._patience.call("count", self._book.counts)
            self._notify(StudyEnded(ending.value, counts))
        return ending

    def _loop(self) -> Ending:
        while True:
            self._patience.call("renew", self._lease.renew)
            is_stopping = self._is_stopping()
            if self._signals.is_urgent:
                return Ending.interrupted
            if not is_stopping:
                self._fill_slots()
            if not self._claims:
                if is_stopping:
                    return is_stopping
                if self._is_complete:
                    return Ending.complete
            for event in self._executor.wait(_TICK_S):
                self._handle(event)
            for watcher in self._watchers:
                watcher.tick()

    def _is_stopping(self) -> Ending | None:
        if self._signals.is_stopping:
            return Ending.interrupted
        folders = [folder for folder in (self._plan.folder, self._plan.confirms) if folder]
        if not self._is_stopped and any((folder / STOP_FILE).exists() for folder in folders):
            self._is_stopped = True
            self._patience.call("stop", self._book.stop)  # on every machine
        return Ending.stopped if self._is_stopped else None

    def _fill_slots(self) -> None:
        """Start trials while there are slots and trials."""
        while len(self._claims) < self._executor.num_slots and not self._signals.is_stopping:
            if time.monotonic() < self._next_claim_s:
                return
            self._is_stopped = self._patience.call("claim", lambda: self._book.is_stopped)
            if self._is_stopped:
                return
            claim = self._patience.call("claim", self._book.claim)
            if claim is None:
                self._next_claim_s = time.monotonic() + _IDLE_CLAIM_S
                counts = self._patience.call("count", self._book.counts)
                self._is_complete = counts.finished >= counts.total
                return
            if claim.result is not None:
                self._finish(claim, claim.result)
            else:
                self._start(claim)

    def _start(self, claim: Claim) -> None:
        try:
            configs = self._plan.trial_configs(claim.params)
        except ConfigError as error:  # between the corners that were tried before the study
            self._finish(claim, Result(claim.number, "refused", str(error), []))
            return
        folder = self._patience.call("start", lambda: self._new_folder(claim.number))
        self._patience.call("start", lambda: self._book.note_folder(claim, folder))
        overrides = self._plan.trial_overrides(claim.params)
        self._executor.start(
            Task(
                number=claim.number,
                folder=folder,
                configs=configs,
                overrides=overrides,
                marks=self._plan.marks,
                group=self._plan.name,
                is_forecast=self._plan.is_forecast,
                run_id=self._book.run_id(claim),
                planned_steps=self._plan.planned_steps(configs),
                notes={"study": self._plan.name, "trial": claim.number, "attempt": claim.attempt},
            )
        )
        self._claims[claim.number], self._folders[claim.number] = claim, folder
        trial = TrialSummary(
            claim.number,
            claim.role,
            claim.params,
            slot=self._executor.slots()[claim.number],
            num_seeds=len(configs),
            total_steps=configs[0].total_steps,
        )
        self._notify(TrialStarted(trial, claim.attempt))

    def _new_folder(self, number: int) -> Path:
        """Make the folder of an attempt; one that exists is never written into again."""
        trial = self._plan.folder / "trials" / f"{number:04}"
        candidate, attempt = trial, 1
        while True:
            try:
                candidate.mkdir(parents=True)
            except FileExistsError:
                attempt += 1
                candidate = trial / f"attempt_{attempt}"
            else:
                return candidate

    def _handle(self, event: Reported | Exited) -> None:
        if isinstance(event, Exited):
            self._handle_exit(event)
        elif isinstance(event.message, TrialProgress):
            self._notify(TrialNoted(event.number, event.message))
        else:
            self._handle_mark(event.number, event.message)

    def _handle_mark(self, number: int, mark: TrialReport) -> None:
        claim = self._claims[number]
        if not self._patience.call("report", lambda: self._book.is_ours(claim)):
            self._executor.stop(number)
            return
        stop = self._patience.call("report", lambda: self._book.report(claim, mark))
        self._executor.tell(number, Decision(mark.step, stop))
        self._notify(TrialReported(number, mark, stop))

    def _handle_exit(self, event: Exited) -> None:
        claim, folder = self._claims[event.number], self._folders[event.number]
        result = read_result(folder)
        if result is not None and result.is_final:
            self._forget(claim)
            self._finish(claim, result)
        else:
            reason = _why(event.exit_code, result)
            self._forget(claim)
            self._retry(claim, reason, result)

    def _retry(self, claim: Claim, reason: str, result: Result | None) -> None:
        """Give the trial back for another attempt, or book it as failed after the last."""
        if not self._patience.call("retry", lambda: self._book.is_ours(claim)):
            log.warning("trial %d was taken over by another machine", claim.number)
            return
        num_crashes = self._patience.call("retry", lambda: self._book.count_crash(claim))
        max_retries = self._plan.study.max_retries
        if num_crashes > max_retries:
            summaries = result.summaries if result else []
            self._finish(claim, Result(claim.number, "failed", reason, summaries))
            return
        self._notify(TrialRetried(claim.number, reason, num_crashes, max_retries))
        self._patience.call("retry", lambda: self._book.release(claim))

    def _finish(self, claim: Claim, result: Result) -> None:
        told = self._patience.call("tell", lambda: self._book.finish(claim, result))
        if told is None:
            log.warning("trial %d was taken over by another machine", claim.number)
            return
        counts = self._patience.call("count", self._book.counts)
        self._notify(TrialEnded(claim.number, claim.role, claim.params, told, counts))

    def _forget(self, claim: Claim) -> None:
        self._next_claim_s = 0.0  # something has changed: there is more to do, or all is done
        del self._claims[claim.number], self._folders[claim.number]

    def _book_what_ended(self) -> None:
        """Book the trials that were stopped with us: a result if there is one, else given back."""
        for claim in list(self._claims.values()):
            result = read_result(self._folders[claim.number])
            self._forget(claim)
            if result is not None and result.is_final:
                self._finish(claim, result)
            else:
                self._patience.call("release", functools.partial(self._book.release, claim))

    def _notify(self, event: StudyEvent) -> None:
        for watcher in self._watchers:
            watcher.handle(event)


def _why(exit_code: int, result: Result | None) -> str:
    """Return in a few words why a trial's process came to no good end."""
    if result is not None:
        return result.reason or result.status
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"its process ended with status {exit_code}; see its log"
