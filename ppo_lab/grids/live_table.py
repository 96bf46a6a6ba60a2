"""The progress of a grid or study as a live table: running and recent rows, and the time left.

It is drawn from the scheduler's loop, twice a second and when a row starts or ends, so no second
thread reads what the scheduler writes.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from ppo_lab.tracking.wide_table import plain_table
from ppo_lab.utils.format import number_text

__all__ = ["LiveScreen", "Row", "Shown", "draw"]

_NARROW = 100  # terminal columns, below which slot, seeds and KL are left out
_OTHER_LINES = 7  # of the screen: two headlines, the table's head, a line for the prompt
_STYLES = {
    **{"running": "", "kept": "green", "finished": "green"},
    **{"pruning": "yellow", "pruned": "yellow", "crashed": "red", "failed": "red"},
}


@dataclass(frozen=True)
class Row:
    """A trial or a job, running or ended; what is not known is None or empty."""

    number: int
    label: str = field(default="running", kw_only=True)
    """Its state in a word or two."""
    reason: str | None = field(default=None, kw_only=True)
    """Why it did not finish, or which limits it broke."""
    slot: int = field(default=0, kw_only=True)
    num_seeds: int = field(default=0, kw_only=True)
    step: int = field(default=0, kw_only=True)
    """Environment steps of the seed that is furthest behind."""
    total_steps: int = field(default=0, kw_only=True)
    returns: Sequence[float | None] = field(default=(), kw_only=True)
    """Latest mean return of each seed."""
    env_steps_per_s: float | None = field(default=None, kw_only=True)
    vram_gib: float | None = field(default=None, kw_only=True)
    kl: float | None = field(default=None, kw_only=True)
    """Mean over seeds of the last update's; known while it runs."""
    state: str = field(default="", kw_only=True)
    """dead or collapsed, while a seed's policy is."""

    @property
    def done_frac(self) -> float:
        """Share of the steps that are done."""
        return min(self.step / self.total_steps, 1.0) if self.total_steps else 0.0

    @property
    def setting(self) -> str:
        """What distinguishes it from the others, as one line."""
        raise NotImplementedError


class Shown(Protocol):
    """What a table shows: the progress of a study or a grid."""

    noun: ClassVar[str]
    """``trial`` or ``job``."""
    name: str
    running: dict[int, Any]
    """Rows by number."""
    ended: deque[Any]
    """Newest last."""

    @property
    def headline(self) -> str:
        """Counts and the time left."""

    def score(self, row: Any) -> str:  # noqa: ANN401 - its own kind of row
        """Return the latest return of a row."""

    def notes(self) -> Iterator[Text]:
        """Yield lines below the headline."""


class LiveScreen:
    """The table on a terminal, from ``open`` to ``close``."""

    def __init__(self, shown: Shown, console: Console) -> None:
        """Show nothing yet."""
        self._shown, self._console = shown, console
        self._live: Live | None = None
        self._redirected: list[tuple[logging.StreamHandler[TextIO], TextIO]] = []

    def open(self) -> None:
        """Put the table on the screen."""
        self._live = Live(
            console=self._console,
            get_renderable=lambda: draw(self._shown, self._console),
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


def draw(shown: Shown, console: Console) -> RenderableType:
    """Return the table, no wider or higher than the terminal."""
    running = sorted(shown.running.values(), key=lambda row: row.number, reverse=True)
    rows = [*running, *reversed(shown.ended)][: max(console.height - _OTHER_LINES, 3)]
    columns = _columns(shown, rows, is_wide=console.width >= _NARROW)
    table = plain_table()
    table.expand = True
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    what = "parameters" if shown.noun == "trial" else "what varies"
    table.add_column(what, ratio=1, no_wrap=True, overflow="ellipsis")
    for row in rows:
        is_over = row.number not in shown.running or row.label == "crashed"
        style = "dim" if is_over else ""
        state = Text(row.label, _STYLES.get(row.label, "magenta"))
        if row.state:
            state.append(f" {row.state}", "red")
        setting = f"{row.setting}  {row.reason or ''}".rstrip()
        cells = (Text(cell(row), style) for cell in columns.values())
        table.add_row(*cells, state, Text(setting, style))
    # The cursor rests on an empty line: at the end of a full one, a terminal's echo of ^C would
    # wrap, and the next drawing start a line too low.
    return Group(*_lines(shown, console.width // 3), table, Text())


def _lines(shown: Shown, most_of_name: int) -> Iterator[Text]:
    name = Text(shown.name, "bold")
    name.truncate(most_of_name, overflow="ellipsis")  # rather than the counts after it
    for line in (Text.assemble(name, "  ", shown.headline), *shown.notes()):
        line.no_wrap, line.overflow = True, "ellipsis"
        yield line


def _columns(
    shown: Shown, rows: Sequence[Row], *, is_wide: bool
) -> dict[str, Callable[[Row], str]]:
    """Return the text of each column of numbers, by heading."""
    is_mean = any(row.num_seeds > 1 for row in rows)
    columns: dict[str, Callable[[Row], str]] = {shown.noun: lambda row: f"#{row.number}"}
    if is_wide and shown.noun == "trial":
        columns |= {"slot": lambda row: str(row.slot), "seeds": lambda row: str(row.num_seeds)}
    columns["done"] = lambda row: f"{row.done_frac:.0%}"
    columns["return ±95%" if is_mean and is_wide else "return"] = shown.score
    if is_wide and any(row.kl is not None for row in rows):
        columns["KL"] = lambda row: "-" if row.kl is None else f"{row.kl:.2g}"
    columns["steps/s"] = lambda row: (
        "-" if row.env_steps_per_s is None else f"{row.env_steps_per_s:,.0f}"
    )
    if any(row.vram_gib is not None for row in rows):
        columns["VRAM"] = lambda row: (
            "-" if row.vram_gib is None else f"{number_text(row.vram_gib)} G"
        )
    return columns
