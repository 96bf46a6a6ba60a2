"""A study on a terminal: what runs, what has just ended, the best so far and the time left.

It is drawn from the parent's own loop, twice a second and when a trial starts or ends, so that no
second thread reads what the parent writes.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ppo_lab.studies.display.events import Event, StudyEnded, StudyOpened, TrialNoted, TrialReported
from ppo_lab.studies.display.progress import Row, StudyProgress, headline
from ppo_lab.studies.results.format import number_text, params_text, plain_table, score_text

__all__ = ["LiveTable", "draw"]

_NARROW = 100  # columns, below which a row says less
_OTHER_LINES = 7  # of the screen: two headlines, the table's head, a line for the prompt
_STYLES = {
    "running": "",
    "pruning": "yellow",
    "kept": "green",
    "pruned": "yellow",
    "crashed": "red",
    "failed": "red",
}


class LiveTable:
    """Watches a study and keeps its table on the screen until it ends."""

    def __init__(self, standing: StudyProgress, console: Console | None = None) -> None:
        """Draw ``standing``, which this watcher keeps up; ``console`` is stderr."""
        self._standing = standing
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._moved: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def handle(self, event: Event) -> None:
        """Take one event; draw it at once unless it is one of many."""
        self._standing.handle(event)
        if isinstance(event, StudyOpened):
            self._start()
        elif isinstance(event, StudyEnded):
            self.close()
        elif not isinstance(event, TrialNoted | TrialReported):
            self.tick()

    def tick(self) -> None:
        """Draw."""
        if self._live is not None:
            self._live.refresh()

    def close(self) -> None:
        """Take the table off the screen."""
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        for handler, stream in self._moved:
            handler.setStream(stream)
        self._moved = []

    def _start(self) -> None:
        self._live = Live(
            console=self._console,
            get_renderable=lambda: draw(self._standing, self._console),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
        )
        before = sys.stderr
        self._live.start(refresh=True)
        # Handlers keep the stream they were made with; through Rich's own, a warning appears above
        # the table instead of tearing it.
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is before:
                self._moved.append((handler, before))
                handler.setStream(sys.stderr)


def draw(standing: StudyProgress, console: Console) -> RenderableType:
    """Return the picture of a study, as wide and as high as the terminal."""
    is_wide = console.width >= _NARROW
    num_rows = max(console.height - _OTHER_LINES, 3)
    running = sorted(standing.running.values(), key=lambda row: row.number)
    rows = [*reversed(running), *reversed(standing.ended)][:num_rows]
    has_vram = any(row.vram_gib is not None for row in rows)
    table = plain_table()
    table.expand = True
    for heading in _headings(is_wide=is_wide, has_vram=has_vram):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("parameters", ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows:
        cells = _cells(row, standing, is_wide=is_wide, has_vram=has_vram)
        is_over = row.number not in standing.running or row.state == "crashed"
        state = Text(row.state, _STYLES.get(row.state, "magenta"))
        params = Text(_parameters(row), "dim" if is_over else "")
        table.add_row(*(Text(cell, "dim" if is_over else "") for cell in cells), state, params)
    # The cursor rests on an empty line: where it ended a full one, a terminal's echo of ^C would
    # wrap, and the next picture begin a line too low.
    return Group(*_lines(standing, console.width // 3), table, Text())


def _lines(standing: StudyProgress, most_of_name: int) -> Iterator[Text]:
    name = Text(standing.name, "bold")
    name.truncate(most_of_name, overflow="ellipsis")  # rather than the counts after it
    first = Text.assemble(name, "  ", headline(standing))
    lines = [first]
    if best := standing.best:
        value = score_text(best.value, best.half_width)
        values = params_text(best.params) or "the defaults"
        lines.append(Text.assemble("best  ", (f"#{best.number}  {value}", "bold"), f"  {values}"))
    if away := standing.storage_away:
        text = f"the storage is away for {away.waited_s:.0f} s; trials go on meanwhile"
        lines.append(Text(text, "yellow"))
    for line in lines:
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _headings(*, is_wide: bool, has_vram: bool) -> Iterator[str]:
    yield "trial"
    if is_wide:
        yield from ("slot", "seeds")
    yield from ("done", "return", "steps/s")
    if has_vram:
        yield "VRAM"


def _cells(row: Row, standing: StudyProgress, *, is_wide: bool, has_vram: bool) -> Iterator[str]:
    yield f"#{row.number}"
    if is_wide:
        yield from (str(row.slot), str(row.num_seeds))
    yield f"{row.share:.0%}"
    yield score_text(*row.score(standing.aggregate))
    yield "-" if row.env_steps_per_s is None else f"{row.env_steps_per_s:,.0f}"
    if has_vram:
        yield "-" if row.vram_gib is None else f"{number_text(row.vram_gib)} G"


def _parameters(row: Row) -> str:
    values = params_text(row.params) or ("the defaults" if row.role == "baseline" else "")
    return f"{values}  {row.reason}" if row.reason else values
