"""Make the page of runs, grids and studies, and its pictures."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ppo_lab.reports.comparisons import cost_figures, return_figures
from ppo_lab.reports.curves import curve_figures, ratio_figures
from ppo_lab.reports.figure import Figure
from ppo_lab.reports.groups import Section, make_sections
from ppo_lab.reports.loading import find_runs
from ppo_lab.reports.page import Chapter, counts_text, page_html, run_rows
from ppo_lab.reports.players import player_of
from ppo_lab.reports.studies import find_studies, study_chapter
from ppo_lab.utils.json_files import atomic_write
from ppo_lab.utils.redaction import printable

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

__all__ = ["PAGE_FILE", "figures_of", "report_place", "write_page"]

_LOG = logging.getLogger(__name__)

PAGE_FILE = "report.html"

_MOST_CHARS = 500_000  # of the weights of all policies that play, so that the page stays small


def figures_of(section: Section) -> Iterator[Figure]:
    """Yield the figures for which a section has data."""
    yield from curve_figures(section)
    yield from return_figures(section)
    yield from ratio_figures(section)
    yield from cost_figures(section)


def report_place(folder: Path, storage: URL | None = None) -> str:
    """Write the page of a grid or study that has ended; return where it is.

    Whatever fails costs the page only, and is named in place of it.
    """
    output = folder / PAGE_FILE
    try:
        write_page([folder], output, _LOG.info, storage)
    except Exception as error:
        _LOG.info("no report", exc_info=True)
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        return f"none: {printable(reason)}"
    here, shown = Path.cwd(), output.resolve()
    return str(shown.relative_to(here) if shown.is_relative_to(here) else shown)


def write_page(
    folders: Sequence[Path],
    output: Path,
    skipped: Callable[[str], object],
    storage: URL | None = None,
) -> list[Figure]:
    """Write the page of all runs and studies in or below ``folders``; return its figures.

    ``skipped`` is called with a line for whatever cannot be read. ``storage`` is that of studies
    without a database in their folder; None: PPO_LAB_STORAGE.

    Raises:
        FileNotFoundError: There is no run.
        ModuleNotFoundError: plotly is not installed.
        OSError: ``output`` cannot be written.
    """
    runs = find_runs(folders, skipped)
    sections = make_sections(runs)
    chapters = [chapter for folder in find_studies(folders)
                if (chapter := study_chapter(folder, storage, skipped))]  # fmt: skip
    for section in sections:
        members = [run for group in section.groups for run in group.runs]
        num_groups = len(section.groups)
        facts = f"{num_groups} setting{'s' if num_groups > 1 else ''}; {counts_text(members)}"
        if section.keys:
            facts += f"; what varies: {', '.join(section.keys)}"
        figures = list(figures_of(section))
        player = player_of(section, _MOST_CHARS // len(sections), skipped)
        chapters.append(Chapter(section.title, facts, figures, player))
    table = Chapter("Runs", counts_text(runs), tables=[run_rows(sections, output)])
    title = ", ".join(folder.resolve().name for folder in folders[:3])
    title += f" and {len(folders) - 3} more" if len(folders) > 3 else ""
    facts_of_all = [
        f"{len(runs):,} run{'s' if len(runs) > 1 else ''}",
        time.strftime("made on %Y-%m-%d at %H:%M"),
    ]
    chapters = _with_unique_names(chapters)
    text = page_html(title, facts_of_all, [*chapters, table])
    atomic_write(output, text.encode("utf-8", "replace"))
    return [figure for chapter in chapters for figure in chapter.figures]


def _with_unique_names(chapters: Sequence[Chapter]) -> list[Chapter]:
    """Number the figures whose names are shared, as those of long settings may be."""
    count: Counter[str] = Counter()

    def renamed(figure: Figure) -> Figure:
        count[figure.name] += 1
        number = count[figure.name]
        return figure if number == 1 else replace(figure, name=f"{figure.name}_{number}")

    return [replace(chapter, figures=[*map(renamed, chapter.figures)]) for chapter in chapters]
