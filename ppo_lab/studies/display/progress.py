"""Progress of a study as its scheduler announces it; the live table and the log lines show it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from optuna.trial import FrozenTrial
from rich.text import Text

from ppo_lab.studies.definition.objective import Objective
from ppo_lab.studies.results.trial_table import TrialSummary, best_trial, read_trial
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.tracking.terminal import format_duration
from ppo_lab.utils.format import score_text
from ppo_lab.workers.base import TrialProgress, TrialReport

__all__ = ["StudyProgress"]

_MOST_ENDED = 100  # trials kept; more than any screen shows


@dataclass
class StudyProgress:
    """What is known of a running study. A subclass shows it; this one is silent.

    Methods are called from the scheduler's loop, so they must be quick.
    """

    objectives: Sequence[Objective]
    best: TrialSummary | None = None
    """Of one objective, among trials within limits."""
    clock: Callable[[], float] = time.monotonic
    noun: ClassVar[str] = "trial"
    name: str = ""
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0, 0))
    running: dict[int, TrialSummary] = field(default_factory=dict)
    ended: deque[TrialSummary] = field(default_factory=lambda: deque(maxlen=_MOST_ENDED))
    """Newest last."""
    away_s: float | None = None
    """How long the storage has been unavailable; None while it is available."""
    away_why: str = ""
    """What the storage says meanwhile."""
    _opened_s: float = 0.0
    _finished_before: int = 0
    _started_s: dict[int, float] = field(default_factory=dict)
    _retries: dict[int, str] = field(default_factory=dict)

    def open(self, name: str, folder: Path, counts: Counts, max_running: int) -> None:  # noqa: ARG002
        """Begin: the study was created or resumed."""
        self.name, self.counts = name, counts
        self._finished_before, self._opened_s = counts.finished, self.clock()

    def start(self, trial: TrialSummary, attempt: int) -> None:  # noqa: ARG002
        """Add a trial of which an attempt has started."""
        self._started_s[trial.number] = self.clock()
        label = self._retries.get(trial.number, trial.label)
        self.running[trial.number] = replace(trial, label=label)
        self.tick()

    def advance(self, progress: TrialProgress) -> None:
        """Update a trial by what its worker sent."""
        if trial := self.running.get(progress.number):
            self.running[progress.number] = replace(trial, **vars(progress))

    def report(self, report: TrialReport, stop: str | None) -> None:
        """Update a trial by its report; ``stop`` is the reason if it is pruned."""
        if trial := self.running.get(report.number):
            label = "pruning" if stop else trial.label
            self.running[report.number] = replace(trial, label=label, **vars(report))

    def retry(self, number: int, reason: str, num_crashes: int, max_retries: int) -> None:
        """End an attempt that crashed; another follows."""
        self._retries[number] = f"retry {num_crashes}/{max_retries}"
        if trial := self.running.pop(number, None):
            self._add_ended(replace(trial, label="crashed", reason=reason))
        self.tick()

    def end(self, stored: FrozenTrial, counts: Counts) -> None:
        """End a trial; it may have run before this start."""
        self.counts = counts
        running = self.running.pop(stored.number, None)
        trial = self._add_ended(read_trial(stored, self.objectives, running))
        self.best = best_trial([*filter(None, [self.best]), trial], self.objectives)
        self.tick()

    def _add_ended(self, trial: TrialSummary) -> TrialSummary:
        started_s = self._started_s.pop(trial.number, None)
        trial = replace(trial, took_s=None if started_s is None else self.clock() - started_s)
        self.ended.append(trial)
        return trial

    def lose_storage(self, what: str, waited_s: float, why: str) -> None:  # noqa: ARG002
        """Note that a call has waited for the storage; running trials continue."""
        self.away_s, self.away_why = waited_s, why
        self.refresh()

    def score(self, trial: TrialSummary) -> str:
        """Return a trial's latest return, with its interval."""
        return score_text(*trial.mean_return(self.objectives[0].aggregate))

    def notes(self) -> Iterator[Text]:
        """Yield lines about the best trial, and about a storage that is away."""
        if best := self.best:
            found = (f"#{best.number}  {best.scores[0]}", "bold")
            yield Text.assemble("best  ", found, "  ", best.setting)
        if self.away_s is not None:
            away = f"the storage is away for {self.away_s:.0f} s; trials go on meanwhile"
            yield Text(f"{away}: {self.away_why}", "yellow")

    def tick(self) -> None:
        """Refresh, with the storage available; called about twice a second."""
        self.away_s = None
        self.refresh()

    def refresh(self) -> None:
        """Show the current state."""

    def conclude(self, reason: str) -> None:
        """Show that the study is complete, stopped or interrupted on this machine."""

    def close(self) -> None:
        """Restore the screen; called after an error too."""

    def eta_s(self) -> float | None:
        """Return the time left at the average pace so far; None before there is a pace."""
        if not self.counts.total:
            return None
        running = sum(trial.done_frac for trial in self.running.values())
        done = self.counts.finished - self._finished_before + running
        left = self.counts.total - self.counts.finished - running
        elapsed_s = self.clock() - self._opened_s
        return left * elapsed_s / done if done > 0 and left >= 0 else None

    @property
    def headline(self) -> str:
        """The number of trials by outcome, and the time left."""
        counts = self.counts
        parts = [f"{counts.finished}/{counts.total} trials"]
        named = {"kept": counts.complete, "pruned": counts.pruned, "failed": counts.failed}
        parts += [f"{number} {name}" for name, number in named.items() if number]
        if self.running:
            parts.append(f"{len(self.running)} running")
        left_s = self.eta_s()
        if left_s is not None and counts.finished < counts.total:
            parts.append(f"ETA {format_duration(left_s)}")
        return "  ".join(parts)
