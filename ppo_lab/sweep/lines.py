"""A study as plain lines: for logs, and where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable

from ppo_lab.sweep.events import (
    Event,
    StorageAway,
    StudyEnded,
    StudyOpened,
    TrialEnded,
    TrialReported,
    TrialRetried,
    TrialStarted,
)

__all__ = ["LineWatcher"]


class LineWatcher:
    """Writes a line when a trial starts, ends or is run again."""

    def __init__(self, write: Callable[[str], None]) -> None:
        """Write lines with ``write``."""
        self._write = write
        self._is_away = False

    def handle(self, event: Event) -> None:
        """Write the event's line, if it has one."""
        line = self._line(event)
        if line is not None:
            self._write(line)

    def tick(self) -> None:
        """Draw nothing."""

    def _line(self, event: Event) -> str | None:
        match event:
            case StudyOpened(name=name, folder=folder, counts=counts):
                done = f"{counts.finished} of {counts.total} trials are finished"
                return f"study {name}: {done}, {event.num_slots} at a time, in {folder}"
            case TrialStarted(number=number, attempt=attempt):
                values = " ".join(f"{key}={value}" for key, value in event.params.items())
                again = f" (attempt {attempt})" if attempt > 1 else ""
                return f"#{number:03} {values or 'the defaults'}{again}"
            case TrialReported(number=number, stop=str(stop)):
                return f"#{number:03} stopped: {stop}"
            case TrialEnded(number=number, state=state, reason=reason, values=values):
                score = ", ".join(f"{value:.6g}" for value in values or ())
                told = f"{state.lower()} {score}" + (f" ({reason})" if reason else "")
                return f"#{number:03} {told}  [{event.counts.finished}/{event.counts.total}]"
            case TrialRetried(number=number, reason=reason):
                return (
                    f"#{number:03} {reason}; run again ({event.num_crashes} of {event.max_retries})"
                )
            case StorageAway(what=what, waited_s=waited_s):
                return f"the storage is away ({what}, {waited_s:.0f} s); running trials go on"
            case StudyEnded(reason=reason, counts=counts):
                return f"study: {reason}, {counts.finished} of {counts.total} trials"
        return None
