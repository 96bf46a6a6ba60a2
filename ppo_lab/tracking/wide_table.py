"""A table whose cells are never folded or cut: what does not fit goes into a table below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["TextColumn", "WideTable", "plain_table"]

_GAP = 2  # a blank and the box's own


def plain_table(title: str | None = None) -> Table:
    """Return an empty table in the project's style."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    return table


@dataclass(frozen=True)
class TextColumn:
    """A column of texts; plain text is never read as markup."""

    heading: str
    cells: Sequence[str | Text]
    is_number: bool = True

    @property
    def width(self) -> int:
        """Characters of the widest cell."""
        return max(Text(str(cell)).cell_len for cell in (self.heading, *self.cells))


@dataclass(frozen=True)
class WideTable:
    """A table of ``columns``, whose first ones name the rows.

    A terminal that is too narrow shows several tables, each beginning with these, or with the first
    of them where they fill half a line; a file gets one table. Print it with ``crop=False``.
    """

    columns: Sequence[TextColumn]
    num_fixed: int = 1

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the tables."""
        left, fixed = list(self.columns), self.num_fixed
        while left:
            shown = left[:fixed]
            while len(shown) < len(left) and (
                len(shown) == fixed
                or not console.is_terminal
                or _width([*shown, left[len(shown)]]) <= options.max_width
            ):
                shown.append(left[len(shown)])
            yield from console.render(_table(shown), options.update(width=_width(shown)))
            if rest := left[len(shown) :]:
                yield Text()
                if _width(self.columns[:fixed]) > options.max_width // 2:
                    fixed = 1
                rest = [*self.columns[:fixed], *rest]
            left = rest


def _width(columns: Sequence[TextColumn]) -> int:
    return sum(column.width + _GAP for column in columns)


def _table(columns: Sequence[TextColumn]) -> Table:
    table = plain_table()
    for column in columns:
        table.add_column(Text(column.heading), no_wrap=True)
        table.columns[-1].justify = "right" if column.is_number else "left"
    for cells in zip(*(column.cells for column in columns)):
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    return table
