"""Scheduler of a study on one machine: claims trials, runs them in a pool, stores their results."""

from __future__ import annotations

import logging
import signal
import time
from contextlib import AbstractContextManager
from enum import Enum
from pathlib import Path
from types import FrameType

from ppo_lab.runner.result import Result, read_result
from ppo_lab.runner.run_record import RunOutput
from ppo_lab.runner.signals import handling
from ppo_lab.studies.display.log_lines import print_line
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.retry import RetryPolicy, StorageLostError
from ppo_lab.studies.store.trial_store import Claim, TrialStore
from ppo_lab.utils.errors import ConfigError
from ppo_lab.workers.base import Decision, Exited, Task, TrialReport, WorkerEvent, WorkerPool

__all__ = ["STOP_FILE", "Ending", "InterruptHandler", "StudyScheduler"]

log = logging.getLogger(__name__)

_TICK_S = 0.5
_IDLE_CLAIM_S = 2.0
"""Pause between claims while all remaining trials run on other machines."""
STOP_FILE = "STOP"


class Ending(Enum):
    """Why a scheduler stopped."""

    complete = "complete"
    stopped = "stopped"  # by the STOP file or the study's attribute
    interrupted = "interrupted"  # by Ctrl-C or SIGTERM
    storage_lost = "storage lost"


class InterruptHandler:
    """Handles signals: Ctrl-C once lets running trials finish; twice, or SIGTERM, stops them."""

    _level = 0
    exit_status = 0
    """Of a command that the last signal ends."""

    @property
    def is_stopping(self) -> bool:
        """Whether no new trial should start."""
        return self._level > 0

    @property
    def is_urgent(self) -> bool:
        """Whether running trials should be stopped now."""
        return self._level > 1

    def installed(self) -> AbstractContextManager[None]:
        """Return a context in which both signals are handled."""
        return handling((signal.SIGINT, signal.SIGTERM), self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        is_term = number == signal.SIGTERM
        self.exit_status = 128 + number
        self._level = 2 if is_term else self._level + 1
        if self._level == 1:
            print_line("Ctrl-C: finishing the running trials; again to stop them now")
        elif self._level == 2:
            name = "SIGTERM" if is_term else "Ctrl-C"
            print_line(f"{name}: stopping the running trials; they run again at the next start")


class StudyScheduler:
    """Runs a study until it has all its trials or is stopped."""

    def __init__(
        self,
        store: TrialStore,
        pool: WorkerPool,
        retry: RetryPolicy,
        interrupts: InterruptHandler,
        display: StudyProgress,
    ) -> None:
        """Store the parts; nothing starts before ``run``."""
        self._plan, self._store, self._pool = store.plan, store, pool
        self._call, self._interrupts, self._display = retry.call, interrupts, display
        self._running: dict[int, tuple[Claim, Path]] = {}
        """Claim and folder of each running trial, by number."""
        self._next_claim_s = 0.0
        self._is_complete = self._is_stopped = False

    def run(self) -> Ending:
        """Run the study and return why it ended; no trial is left running in any case."""
        try:
            ending = self._loop()
        except StorageLostError as error:
            log.error("the storage is lost: %s", error)
            ending = Ending.storage_lost
        finally:
            self._pool.close()
        if ending is not Ending.storage_lost:
            self._store_stopped()
            self._display.conclude(ending.value)
        return ending

    def _loop(self) -> Ending:
        while True:
            self._call("renew", self._store.lease.renew)
            stopping = self._why_stopping()
            if self._interrupts.is_urgent:
                return Ending.interrupted
            if stopping is None:
                self._fill_pool()
            if not self._running and (stopping or self._is_complete):
                return stopping or Ending.complete
            for event in self._pool.wait(_TICK_S):
                self._handle(event)
            self._display.tick()

    def _why_stopping(self) -> Ending | None:
        """Return why no new trial should start; None if trials should."""
        if self._interrupts.is_stopping:
            return Ending.interrupted
        folders = [folder for folder in (self._plan.folder, self._plan.confirms) if folder]
        if not self._is_stopped and any((folder / STOP_FILE).exists() for folder in folders):
            self._is_stopped = True
            self._call("stop", self._store.stop)  # on every machine
        return Ending.stopped if self._is_stopped else None

    def _fill_pool(self) -> None:
        """Claim and start trials until the pool is full or none is left."""
        while len(self._running) < self._pool.max_running and not self._interrupts.is_stopping:
            if time.monotonic() < self._next_claim_s:
                return
            self._is_stopped = self._call("claim", self._store.is_stopped)
            if self._is_stopped:
                return
            claim = self._call("claim", self._store.claim)
            if claim is None:
                self._next_claim_s = time.monotonic() + _IDLE_CLAIM_S
                counts = self._call("count", self._store.counts)
                self._is_complete = counts.finished >= counts.total
                return
            if claim.result is not None:
                self._finish(claim, claim.result)
            else:
                self._start(claim)

    def _start(self, claim: Claim) -> None:
        plan, number = self._plan, claim.number
        try:
            configs = plan.trial_configs(claim.params, claim.repeat)
        except ConfigError as error:  # the check before the study covers the space's corners only
            self._finish(claim, Result(number, "refused", str(error), []))
            return
        folder = self._call("start", self._new_folder, number)
        self._call("start", self._store.note_folder, claim, folder)
        output = RunOutput(
            folder,
            plan.trial_overrides(claim.params),
            group=plan.name,
            varying=[parameter.key for parameter in plan.space.parameters],
            notes={"study": plan.name, "trial": number, "attempt": claim.attempt},
            run_id=self._store.run_id(claim),
            job_type="trial",
            has_forecast=plan.is_forecast,
        )
        planned_steps = plan.planned_steps(configs)
        task = Task(number, configs, output, report_steps=plan.marks, planned_steps=planned_steps)
        slot = self._pool.start(task)
        self._running[number] = (claim, folder)
        trial = TrialSummary(
            number, claim.role, claim.params,
            slot=slot, num_seeds=len(configs), total_steps=configs[0].total_steps,
        )  # fmt: skip
        self._display.start(trial, claim.attempt)

    def _new_folder(self, number: int) -> Path:
        """Make and return a folder for an attempt; an existing one is never used again."""
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

    def _handle(self, event: WorkerEvent) -> None:
        claim, folder = self._running[event.number]
        if isinstance(event, Exited):
            self._remove(claim)
            self._handle_exit(claim, read_result(folder), event.exit_code)
        elif isinstance(event, TrialReport):
            self._handle_report(claim, event)
        else:
            self._display.advance(event)

    def _handle_report(self, claim: Claim, report: TrialReport) -> None:
        if not self._call("report", self._store.is_ours, claim):
            self._pool.stop(claim.number)
            return
        stop = self._call("report", self._store.report, claim, report.step, report.returns)
        self._pool.send(Decision(claim.number, report.step, stop))
        self._display.report(report, stop)

    def _handle_exit(self, claim: Claim, result: Result | None, exit_code: int) -> None:
        """Store a final result; else release the trial, or fail it after the last attempt."""
        if result is not None and result.is_final:
            self._finish(claim, result)
            return
        if not self._call("retry", self._store.is_ours, claim):
            log.warning("trial %d was taken over by another machine", claim.number)
            return
        reason = _why(exit_code, result)
        num_crashes = self._call("retry", self._store.count_crash, claim)
        max_retries = self._plan.study.max_retries
        if num_crashes > max_retries:
            summaries = result.summaries if result else []
            self._finish(claim, Result(claim.number, "failed", reason, summaries))
            return
        self._display.retry(claim.number, reason, num_crashes, max_retries)
        self._call("retry", self._store.release, claim)

    def _finish(self, claim: Claim, result: Result) -> None:
        trial = self._call("tell", self._store.finish, claim, result)
        if trial is None:
            log.warning("trial %d was taken over by another machine", claim.number)
            return
        self._display.end(trial, self._call("count", self._store.counts))

    def _remove(self, claim: Claim) -> None:
        del self._running[claim.number]
        self._next_claim_s = 0.0  # there may be another trial to start, or none left at all

    def _store_stopped(self) -> None:
        """Store the final results of the trials that the pool stopped; release the others."""
        for claim, folder in list(self._running.values()):
            result = read_result(folder)
            self._remove(claim)
            if result is not None and result.is_final:
                self._finish(claim, result)
            else:
                self._call("release", self._store.release, claim)


def _why(exit_code: int, result: Result | None) -> str:
    """Return in a few words why an attempt at a trial failed."""
    if result is not None:
        return result.reason or result.status
    if exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"its process ended with status {exit_code}; see its log"
