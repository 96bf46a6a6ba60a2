"""Progress of a grid: a live table in a terminal, lines such as ``job 3 of 25`` elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, ClassVar, Self

from rich.console import Console
from rich.text import Text

from ppo_lab.grids.live_table import LiveScreen, Row
from ppo_lab.tracking import Progress, Terminal, TerminalSink
from ppo_lab.tracking.tables import override_values, state_of, varying_keys
from ppo_lab.tracking.terminal import format_duration
from ppo_lab.utils.format import score_text
from ppo_lab.utils.redaction import printable
from ppo_lab.workers.base import TrialProgress

__all__ = ["GridProgress", "JobRow"]

_LINE_INTERVAL_S = 10.0
_REFRESH_S = 0.4
_MOST_ENDED = 100  # jobs kept; more than any screen shows


@dataclass(frozen=True)
class JobRow(Row):
    """A job of a grid."""

    varied: str = ""
    """The overrides that vary over the grid."""

    @property
    def setting(self) -> str:
        """The overrides that vary."""
        return self.varied


class GridProgress:
    """What is known of a running grid, and its display."""

    noun: ClassVar[str] = "job"

    def __init__(
        self,
        name: str,
        jobs: Mapping[int, Sequence[str]],
        style: Terminal,
        *,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Show the ``jobs`` that are to be run: number to overrides."""
        values = {n: override_values({"overrides": [*texts]}) for n, texts in jobs.items()}
        keys = varying_keys([*values.values()])
        self._settings = {
            n: printable(" ".join(f"{key}={own[key]}" for key in keys if key in own))
            for n, own in values.items()
        }
        self.name, self.console, self._clock = name, console or Console(stderr=True), clock
        if style is Terminal.auto:
            style = Terminal.live if self.console.is_terminal else Terminal.plain
        self.style = style
        self.running: dict[int, JobRow] = {}
        self.ended: deque[JobRow] = deque(maxlen=_MOST_ENDED)
        self._counts: Counter[str] = Counter()
        self._opened_s = self._shown_s = clock()
        self._num_shown = 0
        self._screen = LiveScreen(self, self.console)

    def __enter__(self) -> Self:
        """Put the table on the screen."""
        if self.style is Terminal.live:
            self._screen.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the screen."""
        self._screen.close()

    def start(self, number: int, total_steps: int) -> None:
        """Add a job that has been given to a worker; it runs once there is progress of it."""
        row = JobRow(
            number, varied=self._settings[number], total_steps=total_steps, label="waiting"
        )
        self.running[number] = row

    def advance(self, progress: TrialProgress) -> None:
        """Update a job by what its worker sent."""
        if row := self.running.get(progress.number):
            self.running[progress.number] = replace(row, label="running", **vars(progress))

    def end(self, number: int, summary: Mapping[str, Any]) -> None:
        """Move a job to those that have ended, by its summary."""
        row, status = self.running.pop(number), str(summary.get("status", "failed"))
        self._counts[status] += 1
        row = replace(
            row,
            label=printable(status),
            reason=None if summary.get("reason") is None else printable(summary["reason"]),
            step=row.total_steps if status == "finished" else row.step,
            returns=(summary.get("final_return"),),
            env_steps_per_s=row.env_steps_per_s or summary.get("env_steps_per_s"),
            state=state_of(summary),
        )
        self.ended.append(row)

    def score(self, row: JobRow) -> str:
        """Return the latest return as text."""
        return score_text(row.returns[0] if row.returns else None, None)

    def notes(self) -> Iterator[Text]:
        """Yield no further lines."""
        return iter(())

    @property
    def headline(self) -> str:
        """The number of jobs by outcome, and the time left for all of them."""
        num_jobs, num_ended = len(self._settings), self._counts.total()
        num_running = sum(row.label == "running" for row in self.running.values())
        parts = [f"{num_ended} of {num_jobs} jobs ended, {num_running} running"]
        parts += [f"{n} {status}" for status, n in self._counts.items() if status != "finished"]
        done = num_ended + sum(row.done_frac for row in self.running.values())
        if 0 < done < num_jobs:
            left_s = (num_jobs - done) * (self._clock() - self._opened_s) / done
            parts.append(f"ETA {format_duration(left_s)}")
        return "  ".join(parts)

    def tick(self) -> None:
        """Redraw the table, or print a line when jobs have ended: at most every ten seconds."""
        now_s, num_ended = self._clock(), self._counts.total()
        if self.style is Terminal.live and now_s - self._shown_s >= _REFRESH_S:
            self._shown_s = now_s
            self._screen.refresh()
        is_due = num_ended == len(self._settings) or now_s - self._shown_s >= _LINE_INTERVAL_S
        if self.style is Terminal.plain and is_due and num_ended != self._num_shown:
            self._shown_s, self._num_shown = now_s, num_ended
            self.print(self.headline)

    def print(self, line: str) -> None:
        """Print a line, above the table if there is one."""
        if self.style is not Terminal.none:
            self.console.print(line, soft_wrap=True, highlight=False, markup=False)

    def alone(self, number: int, total_steps: int) -> Progress:
        """Start a job that trains in this process; return what shows it in place of a line."""
        self.start(number, total_steps)
        if self.style is Terminal.plain:
            self.print(f"{self._place(number)} begins  {self._settings[number]}".rstrip())
        return _JobProgress(self, number, self._place(number))

    def end_alone(self, number: int, summary: Mapping[str, Any]) -> None:
        """End such a job."""
        self.end(number, summary)
        row = self.ended[-1]
        if self.style is Terminal.plain:
            parts = [f"{self._place(number)} {row.label}", row.state, f"return {self.score(row)}"]
            self.print("  ".join([*filter(None, parts), f"[{self.headline}]"]))
        self._screen.refresh()

    def _place(self, number: int) -> str:
        """Return ``job 3 of 25``: its place among the jobs to be run, from 1."""
        return f"job {[*self._settings].index(number) + 1} of {len(self._settings)}"


class _JobProgress(Progress):
    """The progress of a run that is a job: a row of the grid's table, or some lines."""

    def __init__(self, grid: GridProgress, number: int, place: str) -> None:
        style = Terminal.plain if grid.style is Terminal.plain else Terminal.none
        super().__init__(style, grid.console)
        self._grid, self._number, self._place = grid, number, place

    @property
    def is_shown(self) -> bool:
        """Whether anything is shown."""
        return self._grid.style is not Terminal.none

    def open(self, run_id: str, lane: TerminalSink) -> None:
        """Add the run; its first record gets no line, as it has just been announced."""
        super().open(run_id, lane)
        self._printed_s = self._started_s

    def update(self) -> None:
        """Update the row, or print a line when one is due."""
        super().update()
        for lane in self._lanes.values():
            metrics, elapsed_s = lane.metrics, self._clock() - self._started_s
            speed = (lane.global_step - lane.steps_before) / elapsed_s if elapsed_s > 0 else None
            latest = metrics.get("charts/episodic_return_last100")
            vram, kl = metrics.get("memory/peak_reserved_gib"), metrics.get("ppo/kl_k3")
            progress = TrialProgress(
                self._number, lane.global_step, (latest,), speed, vram, kl, lane.state
            )
            self._grid.advance(progress)
        self._grid.tick()

    def close(self) -> None:
        """Print no last line: the grid does."""
        self._printed_steps = self._count_steps()
        super().close()

    def _line(self, width: int | None = None) -> Text:
        return Text(f"{self._place}  ") + super()._line(width)
