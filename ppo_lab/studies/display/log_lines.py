"""The progress of a study as plain lines, for logs and where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable

from ppo_lab.studies.display.events import (
    StorageAway,
    StudyEnded,
    StudyEvent,
    StudyObserver,
    StudyOpened,
    TrialEnded,
    TrialRetried,
    TrialStarted,
)
from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.tracking.terminal import format_duration

__all__ = ["LogLines"]

_AWAY_AGAIN_S = 30.0  # between two lines about one outage


class LogLines(StudyObserver):
    """Writes a line when a trial starts, ends or is retried."""

    def __init__(self, progress: StudyProgress, write: Callable[[str], None]) -> None:
        """Write lines about ``progress``, which this observer updates."""
        self._progress, self._write = progress, write
        self._reported_away_s: float | None = None

    def handle(self, event: StudyEvent) -> None:
        """Write the event's line, if it has one."""
        self._progress.handle(event)
        if not isinstance(event, StorageAway):
            self._reported_away_s = None
        if (line := self._line(event)) is not None:
            self._write(line)

    def _line(self, event: StudyEvent) -> str | None:
        progress = self._progress
        match event:
            case StudyOpened():
                limit = f"{event.max_running} at a time, in {event.folder}"
                return f"study {event.name}: {progress.headline}  {limit}"
            case TrialStarted(trial=trial, attempt=attempt):
                again = f"  attempt {attempt}" if attempt > 1 else ""
                return f"#{trial.number} begins  {trial.setting}{again}"
            case TrialEnded(number=number):
                is_best = progress.best is not None and progress.best.number == number
                best = "  best so far" if is_best else ""
                return f"{_ended(progress.ended[-1])}{best}  [{progress.headline}]"
            case TrialRetried():
                retry = f"run again ({event.num_crashes} of {event.max_retries})"
                return f"#{event.number} {event.reason}; {retry}"
            case StorageAway():
                return self._outage(event)
            case StudyEnded():
                return f"study {progress.name} {event.reason}: {progress.headline}"
        return None

    def _outage(self, event: StorageAway) -> str | None:
        reported_s = self._reported_away_s
        if reported_s is not None and 0 <= event.waited_s - reported_s < _AWAY_AGAIN_S:
            return None
        self._reported_away_s = event.waited_s
        return f"the storage is away ({event.what}, {event.waited_s:.0f} s); running trials go on"


def _ended(trial: TrialSummary) -> str:
    scores = f"  {', '.join(trial.scores)}" if trial.scores else ""
    took = "" if trial.took_s is None else f"  in {format_duration(trial.took_s)}"
    reason = f"  {trial.reason}" if trial.reason else ""
    return f"#{trial.number} {trial.label}{scores}  {trial.setting}{took}{reason}"
