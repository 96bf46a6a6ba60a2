"""Results on the terminal: a panel for one run, a table for the jobs of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ppo_lab.tracking.terminal import format_duration
from ppo_lab.utils.redaction import printable

__all__ = ["grid_table", "places", "plain_table", "reasons", "summary_panel"]
__all__ += ["overridden_keys", "override_values", "varying_keys"]

_BAR_CELLS = 24
_ABSENT = "-"
# Sums of other entries, which would be counted twice.
_TIME_TOTALS = frozenset({"total_s", "elapsed_s"})


def summary_panel(summary: Mapping[str, Any]) -> RenderableType:
    """Return a panel of one run's result: its return, and where its time and memory went."""
    status = _status(summary)
    parts: list[RenderableType] = []
    if reason := summary.get("reason"):
        parts.append(Text(printable(reason), "red"))
    for name, failure in (summary.get("tracking_failures") or {}).items():
        parts.append(Text(f"tracking: {printable(name)} {printable(failure)}", "yellow"))
    if "final_return" in summary:
        parts.append(_returns(summary))
    parts += [*_time_bars(summary), *_device_bars(summary), *_memory_bars(summary)]
    title = Text(f"{status} in {_duration(summary.get('wall_time_s'))}")
    return Panel(Group(*parts), title=title, border_style=status.style, expand=False)


def grid_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return a table with one row per job's summary: the settings that vary, and the results."""
    overrides = [override_values(row) for row in rows]
    varying = varying_keys(overrides) if len(rows) != 1 else [*overrides[0]]
    table = plain_table()
    table.add_column("#", justify="right")
    for key in varying:
        table.add_column(Text(printable(key)), overflow="fold")
    for heading in ("return", "best", "collapsed", "steps/s", "time"):
        table.add_column(heading, justify="right")
    table.add_column("status", no_wrap=True)
    for number, (row, values) in enumerate(zip(rows, overrides)):
        collapsed = row.get("collapsed")
        cells = [
            str(number),
            *(printable(values.get(key, _ABSENT)) for key in varying),
            _number(row.get("final_return")),
            _number(row.get("best_return")),
            _ABSENT if collapsed is None else ("yes" if collapsed else "no"),
            _number(row.get("env_steps_per_s"), 0),
            _duration(row.get("wall_time_s")),
        ]
        table.add_row(*map(Text, cells), _status(row))
    return table


def plain_table(title: str | None = None) -> Table:
    """Return an empty table in the project's style."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    return table


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why jobs did not finish, one line each; empty when all did."""
    return "\n".join(
        printable(f"job {number} {row['status']}: {row['reason']}")
        for number, row in enumerate(rows)
        if row.get("reason")
    )


def places(summary: Mapping[str, Any]) -> str:
    """Return the run's folder and W&B link, one line each, relative to the current folder."""
    here = f"{Path.cwd()}/"
    return "\n".join(
        f"{label:<8}{printable(summary[key]).replace(here, '')}"
        for label, key in (("folder", "folder"), ("W&B", "wandb"))
        if summary.get(key)
    )


def override_values(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return a summary's command-line overrides by key.

    Example:
        >>> override_values({"overrides": ["env=cartpole", "+env.kwargs.g=9.8"]})
        {'env': 'cartpole', 'env.kwargs.g': '9.8'}
    """
    overrides = summary.get("overrides")
    words = overrides if isinstance(overrides, list | tuple) else ()  # a file may hold anything
    pairs = (str(override).partition("=") for override in words)
    return {key.lstrip("+"): value for key, _, value in pairs}


def varying_keys(overrides: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the keys whose values differ between jobs, in order of first appearance.

    Example:
        >>> varying_keys([{"env": "cartpole", "seed": "1"}, {"env": "cartpole", "seed": "2"}])
        ['seed']
    """
    keys = dict.fromkeys(key for values in overrides for key in values)
    return [key for key in keys if len({values.get(key) for values in overrides}) > 1]


def overridden_keys(jobs: Sequence[Sequence[str]]) -> list[str] | None:
    """Return the keys that differ between the overrides of a grid's jobs; None if none does."""
    return varying_keys([override_values({"overrides": job}) for job in jobs]) or None


def _returns(summary: Mapping[str, Any]) -> Text:
    final, best = (_number(summary.get(f"{name}_return")) for name in ("final", "best"))
    text = Text.assemble("return  ", (final, "bold"), " final, ", (best, "bold"), " best")
    if "env_steps_per_s" in summary:
        text.append(f"   {_number(summary['env_steps_per_s'], 0)} steps/s")
    if summary.get("collapsed"):
        text.append("   collapsed", "red")
    return text


def _time_bars(summary: Mapping[str, Any]) -> list[Table]:
    seconds = {
        key.removesuffix("_s").replace("_", " "): float(phase_s)
        for key, phase_s in (summary.get("time") or {}).items()
        if key not in _TIME_TOTALS
    }
    if not seconds:
        return []
    phases_s = sum(seconds.values())
    total_s = max(float(summary.get("wall_time_s") or 0.0), phases_s)
    if total_s - phases_s > 0.005 * total_s:  # less than half a percent is not worth a row
        seconds["rest"] = total_s - phases_s
    table = _block("where the time went")
    for name, phase_s in seconds.items():
        share = phase_s / total_s if total_s else 0.0
        table.add_row(name, _bar(share), f"{share:4.0%}  {phase_s:,.2f} s")
    return [table]


def _device_bars(summary: Mapping[str, Any]) -> list[Table]:
    """Return how the device spent the profiled window."""
    perf = summary.get("perf")
    if not perf:
        return []
    table = _block(f"device time, profiled for {perf['window_s']:,.2f} s")
    names = "busy", "waits for the bus", "waits for the host"
    keys = "kernel_busy_frac", "exposed_copy_frac", "idle_no_copy_frac"
    for name, key in zip(names, keys):
        table.add_row(name, _bar(perf[key]), f"{perf[key]:4.0%}")
    return [table]


def _memory_bars(summary: Mapping[str, Any]) -> list[Table]:
    """Return peak memory: forecast and counted by category, and as measured."""
    memory = summary.get("memory") or {}
    columns = {
        heading: {**counted["categories_gib"], "total": counted["peak_gib"]}
        for heading, key in (("forecast", "forecast"), ("counted", "ledger"))
        if (counted := memory.get(key))
    }
    measured = {
        key.removesuffix("_gib").replace("_", " "): gib
        for key, gib in (memory.get("measured") or {}).items()
        if isinstance(gib, float)
    }
    host_gib = measured.pop("host", None)  # the whole process: mostly Python and torch
    sizes_gib = [gib for column in (*columns.values(), measured) for gib in column.values()]
    longest_gib = max(sizes_gib, default=0.0) or 1.0
    table = _block("where the memory went (peak)")
    if columns:
        table.add_row("", "", *(Text(heading, "dim", justify="right") for heading in columns))
    for name in next(iter(columns.values()), ()):
        sizes = [column[name] for column in columns.values()]
        if any(sizes):
            table.add_row(Text(name), _bar(max(sizes) / longest_gib), *map(_size, sizes))
    blank = [""] * (len(columns) - 1)
    for name, gib in measured.items():
        table.add_row(Text(name), _bar(gib / longest_gib), *blank, _size(gib))
    if host_gib is not None:
        table.add_row(Text("host"), _bar(0.0 if sizes_gib else 1.0), *blank, _size(host_gib))
    return [table] if table.row_count else []


def _block(title: str) -> Table:
    table = Table.grid(padding=(0, 2))
    table.title, table.title_justify, table.title_style = f"\n{title}", "left", "bold"
    return table


def _bar(share: float) -> Text:
    return Text("█" * round(_BAR_CELLS * min(share, 1.0)), "cyan")


def _size(gib: float) -> Text:
    text = f"{gib:,.2f} GiB" if gib >= 1.0 else f"{gib * 1024:,.1f} MiB"
    return Text(text, justify="right")


def _status(summary: Mapping[str, Any]) -> Text:
    status = printable(summary.get("status", "finished"))
    return Text(status, "green" if status == "finished" else "red")


def _number(value: float | None, num_digits: int = 1) -> str:
    return _ABSENT if value is None else f"{float(value):,.{num_digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return _ABSENT
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)
