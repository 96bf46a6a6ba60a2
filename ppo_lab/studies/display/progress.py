"""How a study stands, kept up from what its parent tells; the screen and the log show it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppo_lab.config.study import Aggregate
from ppo_lab.studies.definition.objective import Constraint, Objective, aggregate_seeds, quantity
from ppo_lab.studies.display.events import (
    Event,
    StorageAway,
    StudyOpened,
    TrialEnded,
    TrialNoted,
    TrialReported,
    TrialRetried,
    TrialStarted,
)
from ppo_lab.studies.results.statistics import half_width
from ppo_lab.studies.results.trial_table import label_of
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.tracking.terminal import format_duration

__all__ = ["Best", "Row", "StudyProgress", "headline"]

_MOST_ENDED = 100  # rows kept; more than any screen shows


@dataclass
class Row:
    """One trial as a person sees it."""

    number: int
    params: Mapping[str, Any]
    slot: int
    num_seeds: int
    total_steps: int
    state: str = "running"
    role: str = "search"
    reason: str | None = None
    step: int = 0
    returns: Sequence[float | None] = ()
    """The latest of each seed."""
    env_steps_per_s: float | None = None
    vram_gib: float | None = None
    values: Sequence[float] | None = None
    """The objectives', once it has ended."""
    half_width: float | None = None
    """Of the first objective's interval over seeds."""
    begun_s: float | None = None
    took_s: float | None = None

    @property
    def share(self) -> float:
        """How much of the trial is done, 0 to 1."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    def score(self, aggregate: Aggregate) -> tuple[float | None, float | None]:
        """Return the return over seeds and half its interval, as far as they are known."""
        known = [value for value in self.returns if value is not None]
        if not known or len(known) < len(self.returns):
            return None, None
        return aggregate_seeds(known, aggregate), half_width(known, aggregate)


@dataclass(frozen=True)
class Best:
    """The best trial so far."""

    number: int
    value: float
    half_width: float | None
    params: Mapping[str, Any]


@dataclass
class StudyProgress:
    """What is known of a study from the events so far."""

    objectives: Sequence[Objective]
    constraints: Sequence[Constraint] = ()
    best: Best | None = None
    """Of one objective, among trials within limits."""
    clock: Callable[[], float] = time.monotonic
    name: str = ""
    place: str = ""
    counts: Counts = field(default_factory=lambda: Counts(0, 0, 0, 0, 0))
    running: dict[int, Row] = field(default_factory=dict)
    ended: deque[Row] = field(default_factory=lambda: deque(maxlen=_MOST_ENDED))
    """Newest last."""
    storage_away: StorageAway | None = None
    _opened_s: float = 0.0
    _finished_before: int = 0
    _crashes: dict[int, str] = field(default_factory=dict)

    @property
    def aggregate(self) -> Aggregate:
        """How seeds become one number."""
        return self.objectives[0].aggregate

    def handle(self, event: Event) -> None:
        """Take one event."""
        if not isinstance(event, StorageAway):
            self.storage_away = None
        match event:
            case StudyOpened():
                self.name, self.place = event.name, str(event.folder)
                self.counts, self._finished_before = event.counts, event.counts.finished
                self._opened_s = self.clock()
            case TrialStarted():
                self._start(event)
            case TrialNoted() if row := self.running.get(event.number):
                note = event.note
                row.step, row.returns = note.step, note.returns
                row.env_steps_per_s, row.vram_gib = note.env_steps_per_s, note.vram_gib
            case TrialReported() if row := self.running.get(event.number):
                row.step, row.returns = event.mark.step, event.mark.returns
                row.state = "pruning" if event.stop else row.state
            case TrialRetried():
                self._crashes[event.number] = f"retry {event.num_crashes}/{event.max_retries}"
                if row := self.running.pop(event.number, None):
                    row.state, row.reason = "crashed", event.reason
                    self._close(row)
            case TrialEnded():
                self._end(event)
            case StorageAway():
                self.storage_away = event

    def eta_s(self) -> float | None:
        """Return how long the rest will take at the pace so far; None before there is a pace."""
        if not self.counts.total:
            return None
        running = sum(row.share for row in self.running.values())
        done = self.counts.finished - self._finished_before + running
        left = self.counts.total - self.counts.finished - running
        elapsed_s = self.clock() - self._opened_s
        return left * elapsed_s / done if done > 0 and left >= 0 else None

    def _start(self, event: TrialStarted) -> None:
        self.running[event.number] = Row(
            number=event.number,
            params=event.params,
            slot=event.slot,
            num_seeds=len(event.seeds),
            total_steps=event.total_steps,
            state=self._crashes.get(event.number, "running"),
            role=event.role,
            begun_s=self.clock(),
        )

    def _end(self, event: TrialEnded) -> None:
        """Move a trial to the ended; one that had left its result before was never running here."""
        self.counts = event.counts
        row = self.running.pop(event.number, None) or Row(
            event.number, event.params, 0, len(event.summaries), 0, role=event.role
        )
        broken = [
            constraint.text
            for constraint in self.constraints
            if (constraint.violation(event.summaries) or 0.0) > 0
        ]
        row.state = label_of(event.state, event.status, is_within_limits=not broken)
        row.reason = event.reason or (", ".join(broken) + " is broken" if broken else None)
        row.values = event.values
        _take_summaries(row, event.summaries, self.objectives[0])
        if event.status == "finished":
            row.step = row.total_steps  # what is left of it is no whole iteration
        self._close(row)
        if row.state == "kept" and row.values and len(self.objectives) == 1:
            self._take_best(row)

    def _close(self, row: Row) -> None:
        row.took_s = None if row.begun_s is None else self.clock() - row.begun_s
        self.ended.append(row)

    def _take_best(self, row: Row) -> None:
        assert row.values is not None
        (value,) = row.values
        is_maximised = self.objectives[0].direction == "maximize"
        if self.best is None or (
            value > self.best.value if is_maximised else value < self.best.value
        ):
            self.best = Best(row.number, value, row.half_width, row.params)


def headline(standing: StudyProgress) -> str:
    """Return how many trials of how many, by what became of them, and the time left."""
    counts = standing.counts
    parts = [f"{counts.finished}/{counts.total} trials"]
    named = {"kept": counts.complete, "pruned": counts.pruned, "failed": counts.failed}
    parts += [f"{number} {name}" for name, number in named.items() if number]
    if standing.running:
        parts.append(f"{len(standing.running)} running")
    left_s = standing.eta_s()
    if left_s is not None and counts.finished < counts.total:
        parts.append(f"ETA {format_duration(left_s)}")
    return "  ".join(parts)


def _take_summaries(row: Row, summaries: Sequence[Mapping[str, Any]], objective: Objective) -> None:
    """Let an ended trial show what its runs measured, rather than their last report."""
    if not summaries:
        return
    row.returns = [quantity(summary, "final_return") for summary in summaries]
    values = [quantity(summary, objective.key) for summary in summaries]
    row.half_width = half_width(values, objective.aggregate)
    row.step = min(int(summary.get("env_steps") or 0) for summary in summaries)
    row.env_steps_per_s = quantity(summaries[0], "env_steps_per_s")
    row.vram_gib = quantity(summaries[0], "peak_vram_gib")
