"""Results on the terminal: the panel of one run, and what follows it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ppo_lab.tracking.terminal import format_duration
from ppo_lab.utils.redaction import printable

__all__ = ["duration", "next_steps", "overridden_keys", "override_values", "places", "reasons"]
__all__ += ["state_of", "summary_panel", "varying_keys"]

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
    title = Text(f"{status} in {duration(summary.get('wall_time_s'))}")
    return Panel(Group(*parts), title=title, border_style=status.style, expand=False)


def reasons(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return why jobs did not finish, one line each; empty when all did."""
    return "\n".join(
        printable(f"job {number} {row['status']}: {row['reason']}")
        for number, row in enumerate(rows)
        if row.get("reason")
    )


def places(summary: Mapping[str, Any]) -> str:
    """Return a run's folder, policy and W&B link, one a line, relative to the current folder."""
    here = f"{Path.cwd()}/"
    return "\n".join(
        f"{label:<8}{printable(summary[key]).replace(here, '')}"
        for label, key in (("folder", "folder"), ("policy", "policy"), ("W&B", "wandb"))
        if summary.get(key)
    )


def next_steps(folder: Path, *, has_policy: bool, is_resumable: bool, tracked: bool) -> str:
    """Return the commands that follow a run or grid in ``folder``, one line each."""
    path = shlex.quote(printable(folder).replace(f"{Path.cwd()}/", ""))
    commands = {
        "resume": f"python -m ppo_lab resume={path}" if is_resumable else "",
        "play": f"python -m ppo_lab.play {path}" if has_policy else "",
        "report": f"python -m ppo_lab.report {path}",
        "browse": "python -m ppo_lab.browse" if tracked else "",
    }
    return "\n".join(f"{label:<8}{command}" for label, command in commands.items() if command)


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
    if "final_eval_return" in summary:
        text.append(f"   {_number(summary['final_eval_return'])} evaluated")
    if "env_steps_per_s" in summary:
        text.append(f"   {_number(summary['env_steps_per_s'], 0)} steps/s")
    if state := state_of(summary):
        text.append(f"   {state}", "red")
    return text


def state_of(summary: Mapping[str, Any]) -> str:
    """Return ``dead`` or ``collapsed`` if the policy is, else an empty text."""
    return next((name for name in ("dead", "collapsed") if summary.get(name)), "")


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


def duration(seconds: float | None) -> str:
    """Return seconds with a decimal, or minutes and more without; ``-`` if unknown."""
    if seconds is None:
        return _ABSENT
    return f"{seconds:.1f} s" if seconds < 60 else format_duration(seconds)
