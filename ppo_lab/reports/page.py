"""The page: figures, tables and players in one HTML file, which loads nothing from elsewhere."""

from __future__ import annotations

import html
import importlib.util
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ppo_lab.reports.comparisons import gib_of
from ppo_lab.reports.figure import Figure
from ppo_lab.reports.groups import Section
from ppo_lab.reports.loading import Run, plain

__all__ = ["Chapter", "TableRows", "page_html", "plotly_script", "run_rows"]

_ASSETS = Path(__file__).with_name("assets")
_POLICY = (  # no request can leave the page
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
_MOST_REASON_CHARS = 300


@dataclass(frozen=True)
class TableRows:
    """A table that a person can sort and filter; a cell is a text, a number, or (text, link)."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Chapter:
    """What the page says of one environment or study."""

    title: str
    facts: str
    figures: Sequence[Figure] = ()
    player: Mapping[str, Any] | None = None
    tables: Sequence[TableRows] = field(default_factory=tuple)


def plotly_script() -> str:
    """Return plotly's JavaScript from its Python package, which is not imported.

    Raises:
        ModuleNotFoundError: There is no such package.
    """
    spec = importlib.util.find_spec("plotly")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the page needs plotly: pip install plotly")
    path = Path(spec.submodule_search_locations[0], "package_data", "plotly.min.js")
    return path.read_text(encoding="utf-8")


def page_html(title: str, facts: Sequence[str], chapters: Sequence[Chapter]) -> str:
    """Return the page."""
    has_choice = any(t.get("meta") for c in chapters for f in c.figures for t in f.data)
    choice = (
        '<label>Statistic over seeds <select id="aggregate"><option>mean</option>'
        "<option>IQM</option></select></label>"
    )
    players = [chapter.player for chapter in chapters if chapter.player]
    figures = [_plotly(figure) for chapter in chapters for figure in chapter.figures]
    data = json.dumps({"figures": figures, "players": players}, separators=(",", ":"))
    data = data.replace("<", r"\u003c")  # it stands in texts only; none of them ends the script
    links = "".join(f'<a href="#c{i}">{_text(c.title)}</a>' for i, c in enumerate(chapters))
    numbers = iter(range(len(players)))
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(title)}</title><style>{_asset('page.css')}</style></head><body>",
        f"<h1>{_text(title)}</h1>",
        f'<p class="facts dim">{"".join(f"<span>{_text(fact)}</span>" for fact in facts)}</p>',
        f"<nav>{links}</nav>" if len(chapters) > 1 else "",
        choice if has_choice else "",
        *(_chapter(f"c{i}", c, numbers) for i, c in enumerate(chapters)),
        f'<script type="application/json" id="data">{data}</script>',
        *(f"<script>{js}</script>" for js in (plotly_script(), _asset("player.js"))),
        f"<script>{_asset('page.js')}</script></body></html>",
    ]
    return "\n".join(part for part in parts if part)


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(plain(value))


def _plotly(figure: Figure) -> dict[str, Any]:
    layout = {"xaxis": figure.x, "yaxis": figure.y, **figure.layout}
    name, height = figure.name, figure.height
    return {"name": name, "data": list(figure.data), "layout": layout, "height": height}


def _chapter(anchor: str, chapter: Chapter, numbers: Any) -> str:  # noqa: ANN401 - an iterator
    figures = "\n".join(map(_figure, chapter.figures))
    player = _player(next(numbers), chapter.player) if chapter.player else ""
    tables = "\n".join(map(_table, chapter.tables))
    return (
        f'<section id="{anchor}"><h2>{_text(chapter.title)}</h2>'
        f'<p class="dim">{_text(chapter.facts)}</p>'
        f'<div class="figures">{player}{figures}</div>{tables}</section>'
    )


def _figure(figure: Figure) -> str:
    kind = "" if figure.is_small else ' class="wide"'
    return (
        f"<figure{kind}><figcaption><h3>{_text(figure.title)}</h3><p>{_text(figure.note)}</p>"
        f'</figcaption><div class="plot" id="{_text(figure.name)}"></div></figure>'
    )


def _player(number: int, player: Mapping[str, Any]) -> str:
    last = len(player["policies"]) - 1
    speeds = "".join(f'<option value="{n}">&times; {n}</option>' for n in (1, 2, 5, 0.25))
    slider = (
        f'<input type="range" data-part="policy" min="0" max="{last}" value="{player["first"]}" '
        f'aria-label="setting"{"" if last else " hidden"}>'
    )
    return (
        f'<div class="player" id="player-{number}"><h3>The trained policy plays</h3>'
        '<p class="dim">The saved weights, run by this page; the most probable action in each '
        "step. Of each setting, the seed with the median return.</p><canvas></canvas>"
        '<div class="controls"><button data-part="play">Play</button>'
        '<button data-part="new">New episode</button><label>speed <select data-part="speed">'
        f"{speeds}</select></label>"
        f'{slider}<output data-part="label"></output><output data-part="facts"></output>'
        "</div></div>"
    )


def _table(table: TableRows) -> str:
    used = [
        i for i, _ in enumerate(table.columns) if any(r[i] not in (None, "") for r in table.rows)
    ]
    heads = "".join(_head(table.columns[i], [row[i] for row in table.rows]) for i in used)
    rows = "\n".join(f"<tr>{''.join(_cell(row[i]) for i in used)}</tr>" for row in table.rows)
    return (
        f'<div class="sortable"><div class="controls">'
        f'<input type="search" placeholder="filter" aria-label="filter {_text(table.title)}">'
        f"<output></output></div>"
        f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>'
        "</div></div>"
    )


def _head(name: str, cells: Sequence[Any]) -> str:
    is_number = all(isinstance(cell, int | float) for cell in cells if cell not in (None, ""))
    kind = ' class="number"' if is_number else ""
    return f"<th{kind}><button>{_text(name)}</button></th>"


def _cell(value: object) -> str:
    if value is None:
        return '<td data-value=""></td>'
    if isinstance(value, tuple):
        text, link = value
        return f'<td><a href="{html.escape(link)}">{_text(text)}</a></td>'
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else _number(value)
        return f'<td class="number" data-value="{value!r}">{text}</td>'
    text = _text(value)
    if text in _STATUSES:
        return f'<td><span class="badge {text}">{text}</span></td>'
    return f'<td title="{text}">{text}</td>' if len(text) > 60 else f"<td>{text}</td>"


_STATUSES = {
    "finished", "pruned", "diverged", "out_of_memory", "over_budget", "failed", "interrupted",
    "running", "died", "kept", "OOM",
}  # fmt: skip


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.4g}"


def run_rows(sections: Sequence[Section], page: Path) -> TableRows:
    """Return the table of all runs; links lead to their folders from the folder of ``page``."""
    keys = list(dict.fromkeys(key for section in sections for key in section.keys))
    columns = ["run", "env", *keys, "seed", "status", "return", "best", "steps", "steps/s"]
    columns += ["seconds", "GiB", "reason"]
    rows = []
    for section in sections:
        for group in section.groups:
            for run in group.runs:
                values = [_as_number(group.values.get(key, "")) for key in keys]
                rows.append([_link(run, page), run.env, *values, *_results(run)])
    return TableRows("Runs", columns, rows)


def _link(run: Run, page: Path) -> tuple[str, str]:
    folder = os.path.relpath(run.folder.resolve(), page.resolve().parent)
    shown = "/".join(run.folder.parts[-3:] if run.folder.name.startswith("seed_") else
                     run.folder.parts[-2:])  # fmt: skip
    return shown, quote(Path(folder).as_posix(), errors="replace")


def _results(run: Run) -> list[Any]:
    steps = run.number("env_steps")
    reason = run.summary.get("reason")
    return [
        _as_number(run.seed),
        run.status,
        run.final_return,
        run.number("best_return"),
        None if steps is None else int(steps),
        run.number("env_steps_per_s"),
        run.number("wall_time_s"),
        gib_of(run),
        "" if reason is None else plain(reason)[:_MOST_REASON_CHARS],
    ]


def _as_number(text: str) -> float | int | str:
    try:
        return int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return text
    return number if abs(number) < float("inf") else text


def counts_text(runs: Sequence[Run]) -> str:
    """Return how many runs there are, by status."""
    counts = Counter(run.status for run in runs)
    return ", ".join(f"{count} {status}" for status, count in counts.most_common())
