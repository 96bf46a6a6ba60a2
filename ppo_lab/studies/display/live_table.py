"""The progress of a study as a live table: running and recent trials, the best, the time left.

It is drawn from the scheduler's loop, twice a second and when a trial starts or ends, so no second
thread reads what the scheduler writes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ppo_lab.studies.display.progress import StudyProgress
from ppo_lab.studies.results.format import number_text, score_text
from ppo_lab.studies.results.trial_table import TrialSummary
from ppo_lab.studies.store.outcome import Counts
from ppo_lab.tracking.wide_table import plain_table

__all__ = ["LiveTable", "draw"]

_NARROW = 100  # terminal columns, below which slot and seeds are left out
_OTHER_LINES = 7  # of the screen: two headlines, the table's head, a line for the prompt
_STYLES = {
    "running": "",
    "pruning": "yellow",
    "kept": "green",
    "pruned": "yellow",
    "crashed": "red",
    "failed": "red",
}


@dataclass(kw_only=True)
class LiveTable(StudyProgress):
    """Shows the table until it is closed."""

    console: Console = field(default_factory=lambda: Console(stderr=True))
    _live: Live | None = None
    _redirected: list[tuple[logging.StreamHandler[TextIO], TextIO]] = field(default_factory=list)

    def open(self, name: str, folder: Path, counts: Counts, max_running: int) -> None:
        """Put the table on the screen."""
        super().open(name, folder, counts, max_running)
        self._live = Live(
            console=self.console,
            get_renderable=lambda: draw(self, self.console),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )
        before = sys.stderr
        self._live.start(refresh=True)
        # Handlers keep the stream they were created with; through Rich's stream a warning appears
        # above the table instead of breaking it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._redirected.append((handler, before))
                handler.setStream(sys.stderr)

    def refresh(self) -> None:
        """Redraw."""
        if self._live is not None:
            self._live.refresh()

    def close(self) -> None:
        """Remove the table from the screen."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        for handler, stream in self._redirected:
            handler.setStream(stream)
        self._redirected = []


def draw(progress: StudyProgress, console: Console) -> RenderableType:
    """Return the table of a study, no wider or higher than the terminal."""
    running = sorted(progress.running.values(), key=lambda trial: trial.number, reverse=True)
    trials = [*running, *reversed(progress.ended)][: max(console.height - _OTHER_LINES, 3)]
    columns = _columns(progress, trials, is_wide=console.width >= _NARROW)
    table = plain_table()
    table.expand = True
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("parameters", ratio=1, no_wrap=True, overflow="ellipsis")
    for trial in trials:
        is_over = trial.number not in progress.running or trial.label == "crashed"
        style = "dim" if is_over else ""
        state = Text(trial.label, _STYLES.get(trial.label, "magenta"))
        setting = f"{trial.setting}  {trial.reason or ''}".rstrip()
        cells = (Text(cell(trial), style) for cell in columns.values())
        table.add_row(*cells, state, Text(setting, style))
    # The cursor rests on an empty line: at the end of a full one, a terminal's echo of ^C would
    # wrap, and the next drawing start a line too low.
    return Group(*_lines(progress, console.width // 3), table, Text())


def _lines(progress: StudyProgress, most_of_name: int) -> Iterator[Text]:
    name = Text(progress.name, "bold")
    name.truncate(most_of_name, overflow="ellipsis")  # rather than the counts after it
    lines = [Text.assemble(name, "  ", progress.headline)]
    if best := progress.best:
        found = (f"#{best.number}  {best.scores[0]}", "bold")
        lines.append(Text.assemble("best  ", found, "  ", best.setting))
    if progress.away_s is not None:
        away = f"the storage is away for {progress.away_s:.0f} s; trials go on meanwhile"
        text = f"{away}: {progress.away_why}"
        lines.append(Text(text, "yellow"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _columns(
    progress: StudyProgress, trials: Sequence[TrialSummary], *, is_wide: bool
) -> dict[str, Callable[[TrialSummary], str]]:
    """Return the text of each column of numbers, by heading."""
    aggregate = progress.objectives[0].aggregate
    columns: dict[str, Callable[[TrialSummary], str]] = {"trial": lambda t: f"#{t.number}"}
    if is_wide:
        columns |= {"slot": lambda t: str(t.slot), "seeds": lambda t: str(t.num_seeds)}
    columns |= {
        "done": lambda t: f"{t.done_frac:.0%}",
        "return": lambda t: score_text(*t.mean_return(aggregate)),
        "steps/s": lambda t: "-" if t.env_steps_per_s is None else f"{t.env_steps_per_s:,.0f}",
    }
    if any(trial.vram_gib is not None for trial in trials):
        columns["VRAM"] = lambda t: "-" if t.vram_gib is None else f"{number_text(t.vram_gib)} G"
    return columns
