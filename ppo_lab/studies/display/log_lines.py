"""The progress of a study as plain lines, for logs and where there is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.tracking.terminal import format_duration

__all__ = ["LogLines", "print_line"]

_AWAY_AGAIN_S = 30.0  # between two lines about one outage


def print_line(line: str) -> None:
    """Print a line to stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - output of the command


@dataclass(kw_only=True)
class LogLines(StudyProgress):
    """Writes a line when a trial starts, ends or is retried."""

    write: Callable[[str], None] = print_line
    _written_away_s: float = 0.0

    def open(self, name: str, folder: Path, counts: Counts, max_running: int) -> None:
        """Write the study's progress and folder."""
        super().open(name, folder, counts, max_running)
        self.write(f"study {name}: {self.headline}  {max_running} at a time, in {folder}")

    def start(self, trial: TrialSummary, attempt: int) -> None:
        """Write a trial's parameters."""
        super().start(trial, attempt)
        again = f"  attempt {attempt}" if attempt > 1 else ""
        self.write(f"#{trial.number} begins  {trial.setting}{again}")

    def retry(self, number: int, reason: str, num_crashes: int, max_retries: int) -> None:
        """Write why an attempt crashed."""
        super().retry(number, reason, num_crashes, max_retries)
        self.write(f"#{number} {reason}; run again ({num_crashes} of {max_retries})")

    def end(self, stored: FrozenTrial, counts: Counts) -> None:
        """Write a trial's outcome, and the study's progress."""
        super().end(stored, counts)
        trial = self.ended[-1]
        scores = f"  {', '.join(trial.scores)}" if trial.scores else ""
        took = "" if trial.took_s is None else f"  in {format_duration(trial.took_s)}"
        reason = f"  {trial.reason}" if trial.reason else ""
        best = "  best so far" if self.best and self.best.number == trial.number else ""
        line = f"#{trial.number} {trial.label}{scores}  {trial.setting}{took}{reason}{best}"
        self.write(f"{line}  [{self.headline}]")

    def lose_storage(self, what: str, waited_s: float, why: str) -> None:
        """Write a line when an outage begins, and every 30 seconds."""
        is_new = self.away_s is None
        super().lose_storage(what, waited_s, why)
        if is_new or not 0 <= waited_s - self._written_away_s < _AWAY_AGAIN_S:
            self._written_away_s = waited_s
            meanwhile = "running trials go on" if self.running else "trying again"
            self.write(f"the storage is away ({what}, {waited_s:.0f} s); {meanwhile}: {why}")

    def conclude(self, reason: str) -> None:
        """Write why the study ended."""
        self.write(f"study {self.name} {reason}: {self.headline}")
