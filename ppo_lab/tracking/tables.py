"""What a person sees at the end: a panel for one run, a table for the jobs of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

__all__ = ["grid_table", "places", "reasons", "summary_panel"]

_BAR_CELLS = 24
_ABSENT = "-"
# Sums of other entries: beside their parts they would be counted twice.
_TIME_TOTALS = frozenset({"total_s", "elapsed_s"})


def summary_panel(summary: Mapping[str, Any]) -> RenderableType:
    """Return one run's result: its return, where time and memory went."""
    status = summary.get("status", "finished")
    title = f"{status} in {_duration(summary.get('wall_time_s'))}"
    parts: list[RenderableType] = []
    if reason := summary.get("reason"):
        parts.append(Text(str(reason), "red"))
    if "final_return" in summary:
        parts.append(_headline(summary))
    parts += [*_time_bars(summary), *_device_bars(summary), *_memory_bars(summary)]
    border = "green" if status == "finished" else "red"
    return Panel(Group(*parts), title=Text(title), border_style=border, expand=False)


def grid_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return one line per job: what varies between them, and what came of it.

    ``rows`` are summaries; a key that a failed job lacks is shown as a dash.
    """
    overrides = [_override_values(row) for row in rows]
    varying = _varying(overrides)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("#", justify="right")
    for key in varying:
        table.add_column(Text(key), overflow="fold")
    for heading in ("return", "best", "collapsed", "steps/s", "time"):
        table.add_column(heading, justify="right")
    table.add_column("status", no_wrap=True)
    for number, (row, chosen) in enumerate(zip(rows, overrides, strict=True)):
        cells = [str(number), *(chosen.get(key, _ABSENT) for key in varying), *_result_cells(row)]
        table.add_row(*(Text(cell) for cell in cells), _status(row))
    return table


def _headline(summary: Mapping[str, Any]) -> Text:
    final, best = _number(summary.get("final_return")), _number(summary.get("best_return"))
    text = Text.assemble("return  ", (final, "bold"), " final, ", (best, "bold"), " best")
    if "env_steps_per_s" in summary:
        text.append(f"   {_number(summary['env_steps_per_s'], 0)} steps/s")
    if summary.get("collapsed"):
        text.append("   collapsed", "red")
    return text


def _time_bars(summary: Mapping[str, Any]) -> list[RenderableType]:
    phases = {
        key.removesuffix("_s").replace("_", " "): float(seconds)
        for key, seconds in (summary.get("time") or {}).items()
        if key not in _TIME_TOTALS
    }
    if not phases:
        return []
    rest = float(summary.get("wall_time_s") or 0.0) - sum(phases.values())
    total = sum(phases.values()) + max(rest, 0.0)
    if total > 0 and rest > 0.005 * total:  # below half a percent it would only be a distraction
        phases["rest"] = rest
    shares = {name: seconds / total if total else 0.0 for name, seconds in phases.items()}
    bars = {name: (share, f"{share:4.0%}  {phases[name]:,.2f} s") for name, share in shares.items()}
    return [_bars("where the time went", bars)]


def _device_bars(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Return how the device spent the profiled window."""
    perf = summary.get("perf")
    if not perf:
        return []
    shares = {
        "works": perf["kernel_busy_frac"],
        "waits for the bus": perf["exposed_copy_frac"],
        "waits for the host": perf["idle_no_copy_frac"],
    }
    bars = {name: (share, f"{share:4.0%}") for name, share in shares.items()}
    return [_bars(f"what the device did in {perf['window_s']:,.2f} s of it", bars)]


def _memory_bars(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Return what held the memory at its peak: by category where counted, and as measured."""
    memory = summary.get("memory") or {}
    forecast, counted = (_categories(memory.get(key)) for key in ("forecast", "ledger"))
    measured = {
        key.removesuffix("_gib").replace("_", " "): float(gib)
        for key, gib in (memory.get("measured") or {}).items()
        if isinstance(gib, float)
    }
    columns = {"forecast": forecast, "counted": counted}
    columns = {head: sizes for head, sizes in columns.items() if sizes}
    host_gib = measured.pop("host", None)  # the whole process: Python and torch are most of it
    sizes_gib = [*forecast.values(), *counted.values(), *measured.values()]
    largest = max(sizes_gib, default=0.0) or 1.0
    table = _block("where the memory went (peak)")
    if columns:
        table.add_row("", "", *(Text(head, "dim", justify="right") for head in columns))
    for name in forecast or counted:
        sizes = [column[name] for column in columns.values()]
        if any(sizes):
            table.add_row(Text(name), _bar(max(sizes) / largest), *map(_size, sizes))
    empty = [""] * (len(columns) - 1)
    for name, gib in measured.items():
        table.add_row(Text(name), _bar(gib / largest), *empty, _size(gib))
    if host_gib is not None:
        table.add_row(Text("host"), _bar(0.0 if sizes_gib else 1.0), *empty, _size(host_gib))
    return [table] if table.row_count else []


def _categories(section: Mapping[str, Any] | None) -> dict[str, float]:
    """Return GiB by category, the sum as total; empty where memory was not counted that way."""
    if not section:
        return {}
    return {**section["categories_gib"], "total": section["peak_gib"]}


def _size(gib: float) -> Text:
    """Return a size as a person reads it."""
    text = f"{gib:,.2f} GiB" if gib >= 1.0 else f"{gib * 1024:,.1f} MiB"
    return Text(text, justify="right")


def _bars(title: str, bars: Mapping[str, tuple[float, str]]) -> Table:
    """Return a titled block of bars; each value is a share in [0, 1] and its text."""
    table = _block(title)
    for name, (share, text) in bars.items():
        table.add_row(Text(name), _bar(share), text)
    return table


def _block(title: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    return table


def _bar(share: float) -> Text:
    return Text("█" * round(_BAR_CELLS * min(share, 1.0)), "cyan")


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why jobs did not finish, a line each; empty when all did."""
    return "\n".join(
        f"job {number} {row['status']}: {row['reason']}"
        for number, row in enumerate(rows)
        if row.get("reason")
    )


def places(summary: Mapping[str, Any]) -> str:
    """Return where to look next, a line each, paths relative to the current folder."""
    here = f"{Path.cwd()}/"
    lines = [
        f"{label:<8}{str(summary[key]).replace(here, '')}"
        for label, key in (("folder", "folder"), ("W&B", "wandb"))
        if summary.get(key)
    ]
    return "\n".join(lines)


def _override_values(row: Mapping[str, Any]) -> dict[str, str]:
    pairs = (str(override).partition("=") for override in row.get("overrides") or ())
    return {key: value for key, _, value in pairs}


def _varying(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ between jobs, in order of appearance; all for one job."""
    keys = list(dict.fromkeys(key for chosen in overrides for key in chosen))
    if len(overrides) == 1:
        return keys
    return [key for key in keys if len({chosen.get(key) for chosen in overrides}) > 1]


def _result_cells(row: Mapping[str, Any]) -> list[str]:
    collapsed = row.get("collapsed")
    return [
        _number(row.get("final_return")),
        _number(row.get("best_return")),
        _ABSENT if collapsed is None else ("yes" if collapsed else "no"),
        _number(row.get("env_steps_per_s"), 0),
        _duration(row.get("wall_time_s")),
    ]


def _status(row: Mapping[str, Any]) -> Text:
    status = str(row.get("status", "finished"))
    return Text(status, "green" if status == "finished" else "red")


def _number(value: Any, num_digits: int = 1) -> str:  # noqa: ANN401 - a summary's value
    return _ABSENT if value is None else f"{float(value):,.{num_digits}f}"


def _duration(seconds: Any) -> str:  # noqa: ANN401 - a summary's value
    if seconds is None:
        return _ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{second:02d}"
