"""A study as plain lines: for logs, and where there is no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ppo_lab.studies.display.events import (
    Event,
    StorageAway,
    StudyEnded,
    StudyOpened,
    TrialEnded,
    TrialRetried,
    TrialStarted,
)
from ppo_lab.studies.display.progress import Row, StudyProgress, headline
from ppo_lab.studies.results.format import params_text, score_text
from ppo_lab.tracking.terminal import format_duration

__all__ = ["LineWatcher"]

_AWAY_AGAIN_S = 30.0  # between two lines about one outage


class LineWatcher:
    """Writes a line when a trial starts, ends or is run again."""

    def __init__(self, standing: StudyProgress, write: Callable[[str], None]) -> None:
        """Write lines about ``standing``, which this watcher keeps up."""
        self._standing, self._write = standing, write
        self._away_told_s: float | None = None

    def handle(self, event: Event) -> None:
        """Write the event's line, if it has one."""
        self._standing.handle(event)
        if not isinstance(event, StorageAway):
            self._away_told_s = None
        line = self._line(event)
        if line is not None:
            self._write(line)

    def tick(self) -> None:
        """Draw nothing."""

    def close(self) -> None:
        """Leave what was written."""

    def _line(self, event: Event) -> str | None:
        match event:
            case StudyOpened(name=name, max_running=max_running, folder=folder):
                state = headline(self._standing)
                return f"study {name}: {state}  {max_running} at a time, in {folder}"
            case TrialStarted(number=number, attempt=attempt):
                again = f"  attempt {attempt}" if attempt > 1 else ""
                return f"#{number} begins  {_named(event.params, event.role)}{again}"
            case TrialEnded():
                row = self._standing.ended[-1]
                best = self._standing.best
                mark = "  best so far" if best and best.number == row.number else ""
                return f"{_ended(row)}{mark}  [{headline(self._standing)}]"
            case TrialRetried(number=number, reason=reason):
                times = f"{event.num_crashes} of {event.max_retries}"
                return f"#{number} {reason}; run again ({times})"
            case StorageAway(what=what, waited_s=waited_s):
                return self._outage(what, waited_s)
            case StudyEnded(reason=reason):
                return f"study {self._standing.name} {reason}: {headline(self._standing)}"
        return None

    def _outage(self, what: str, waited_s: float) -> str | None:
        told_s = self._away_told_s
        if told_s is not None and told_s <= waited_s < told_s + _AWAY_AGAIN_S:
            return None
        self._away_told_s = waited_s
        return f"the storage is away ({what}, {waited_s:.0f} s); running trials go on"


def _ended(row: Row) -> str:
    values = list(row.values or ())
    scores = [
        score_text(value, row.half_width if i == 0 else None) for i, value in enumerate(values)
    ]
    took = "" if row.took_s is None else f"  in {format_duration(row.took_s)}"
    reason = f"  {row.reason}" if row.reason else ""
    score = f"  {', '.join(scores)}" if scores else ""
    return f"#{row.number} {row.state}{score}  {_named(row.params, row.role)}{took}{reason}"


def _named(params: Mapping[str, Any], role: str) -> str:
    return params_text(params) or ("the defaults" if role == "baseline" else "")
