"""Progress of a study, updated from its events; the live table and the log lines show it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ppo_lab.studies.definition.objective import Objective
from ppo_lab.studies.display.events import (
    StorageAway,
    StudyEvent,
    StudyOpened,
    TrialEnded,
    TrialNoted,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from ppo_lab.studies.results.trial_table import TrialSummary, best_trial
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.tracking.terminal import format_duration

__all__ = ["StudyProgress"]

_MOST_ENDED = 100  # trials kept; more than any screen shows


@dataclass
class StudyProgress:
    """What is known of a study from its events so far."""

    objectives: Sequence[Objective]
    best: TrialSummary | None = None
    """Of one objective, among trials within limits."""
    clock: Callable[[], float] = time.monotonic
    name: str = ""
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0, 0))
    running: dict[int, TrialSummary] = field(default_factory=dict)
    ended: deque[TrialSummary] = field(default_factory=lambda: deque(maxlen=_MOST_ENDED))
    """Newest last."""
    storage_away: StorageAway | None = None
    _opened_s: float = 0.0
    _finished_before: int = 0
    _started_s: dict[int, float] = field(default_factory=dict)
    _retries: dict[int, str] = field(default_factory=dict)

    def handle(self, event: StudyEvent) -> None:
        """Update the progress by one event."""
        if not isinstance(event, StorageAway):
            self.storage_away = None
        match event:
            case StudyOpened():
                self.name, self.counts = event.name, event.counts
                self._finished_before, self._opened_s = event.counts.finished, self.clock()
            case TrialStarted():
                number = event.trial.number
                self._started_s[number] = self.clock()
                label = self._retries.get(number, event.trial.label)
                self.running[number] = replace(event.trial, label=label)
            case TrialNoted(note=note) if trial := self.running.get(event.number):
                self.running[event.number] = replace(
                    trial,
                    step=note.step,
                    returns=note.returns,
                    env_steps_per_s=note.env_steps_per_s,
                    vram_gib=note.vram_gib,
                )
            case TrialReported(mark=mark) if trial := self.running.get(event.number):
                label = "pruning" if event.stop else trial.label
                trial = replace(trial, label=label, step=mark.step, returns=mark.returns)
                self.running[event.number] = trial
            case TrialRetried():
                self._retries[event.number] = f"retry {event.num_crashes}/{event.max_retries}"
                if trial := self.running.pop(event.number, None):
                    self._close(replace(trial, label="crashed", reason=event.reason))
            case TrialEnded():
                self._end(event)
            case StorageAway():
                self.storage_away = event

    def _end(self, event: TrialEnded) -> None:
        self.counts = event.counts
        trial = self.running.pop(event.number, None) or TrialSummary(
            event.number, event.role, event.params, num_seeds=len(event.outcome.seeds)
        )  # an earlier attempt's result was found: it did not run here
        trial = self._close(trial.with_outcome(event.outcome, self.objectives))
        self.best = best_trial([*filter(None, [self.best]), trial], self.objectives)

    def _close(self, trial: TrialSummary) -> TrialSummary:
        started_s = self._started_s.pop(trial.number, None)
        trial = replace(trial, took_s=None if started_s is None else self.clock() - started_s)
        self.ended.append(trial)
        return trial

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
