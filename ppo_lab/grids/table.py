"""The table of a grid's jobs: what varies, returns over seeds, memory, speed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ppo_lab.grids.results import memory_of
from ppo_lab.runner.run_record import Status
from ppo_lab.tracking.tables import duration, override_values, state_of, varying_keys
from ppo_lab.tracking.wide_table import TextColumn, WideTable
from ppo_lab.utils.format import number_text, score_text, t_half_width
from ppo_lab.utils.redaction import printable

__all__ = ["grid_table"]

_ABSENT, _FINISHED = "-", Status.finished.value
_MEMORY = ("forecast", "counted", "measured", "host", "PCIe")

Summary = Mapping[str, Any]


def grid_table(summaries: Sequence[Summary]) -> RenderableType:
    """Return the table of a grid; its rows are jobs, or settings where seeds vary.

    What all jobs share is above it. ``±`` is the 95 % interval of the mean over seeds.
    """
    overrides = [override_values(summary) for summary in summaries]
    varying = varying_keys(overrides)
    rows = _rows(overrides, varying)
    keys = [key for key in varying if key != "seed" or len(rows) == len(summaries)]
    groups = [[summaries[number] for number in numbers] for numbers in rows]
    parts: list[RenderableType] = []
    if overrides and (shared := {k: v for k, v in overrides[0].items() if k not in varying}):
        parts += [Text(printable(" ".join(f"{k}={v}" for k, v in shared.items())), "dim"), Text()]
    firsts = [numbers[0] for numbers in rows]
    columns = [TextColumn("#", [_span(numbers) for numbers in rows])]
    columns += [
        TextColumn(printable(k), [printable(overrides[n].get(k, _ABSENT)) for n in firsts])
        for k in keys
    ]
    memory, note = _memory_columns(groups)
    measured = [*_score_columns(groups), *memory, *_speed_columns(groups)]
    parts.append(WideTable([*columns, *measured], num_fixed=len(columns)))
    notes = [note]
    if len(rows) < len(summaries):
        notes.append("±: 95 % interval of the mean over the seeds that finished")
    if len(summaries) > 1 and not any(column.heading == "status" for column in measured):
        notes.append(f"all {len(summaries)} jobs finished")
    parts += [Text(text, "dim") for text in notes if text]
    return Group(*parts)


def _rows(overrides: Sequence[Mapping[str, str]], varying: Sequence[str]) -> list[list[int]]:
    """Return the numbers of the jobs of each row: those that differ in their seed only."""
    groups: dict[tuple[str | None, ...], list[int]] = {}
    for number, values in enumerate(overrides):
        setting = tuple(values.get(key) for key in varying if key != "seed")
        groups.setdefault(setting, []).append(number)
    return list(groups.values()) if "seed" in varying else [[n] for n in range(len(overrides))]


def _span(numbers: Sequence[int]) -> str:
    """Return ``3``, ``0-4`` for numbers in a row, or ``0,5,…,20``."""
    first, *_, last = [*numbers, numbers[-1]]
    if len(numbers) > 1 and last - first == len(numbers) - 1:
        return f"{first}-{last}"
    shown = [*numbers[:2], "…", last] if len(numbers) > 3 else numbers
    return ",".join(map(str, shown))


def _score_columns(groups: Sequence[Sequence[Summary]]) -> list[TextColumn]:
    columns = []
    if any(len(group) > 1 for group in groups):
        columns.append(TextColumn("seeds", [str(len(group)) for group in groups]))
    columns.append(TextColumn("return", [_mean(group, "final_return") for group in groups]))
    best = [[s["best_return"] for s in g if s.get("best_return") is not None] for g in groups]
    columns.append(TextColumn("best", [f"{max(v):,.1f}" if v else _ABSENT for v in best]))
    if any(state_of(summary) for group in groups for summary in group):
        columns.append(TextColumn("policy", [_counted(map(state_of, g)) for g in groups], False))
    return columns


def _speed_columns(groups: Sequence[Sequence[Summary]]) -> list[TextColumn]:
    speeds = [[s["env_steps_per_s"] for s in g if s.get("env_steps_per_s")] for g in groups]
    times = [[s["wall_time_s"] for s in g if s.get("wall_time_s")] for g in groups]
    states = [_counted([printable(s.get("status", _FINISHED)) for s in g]) for g in groups]
    columns = [
        TextColumn("steps/s", [f"{statistics.fmean(v):,.0f}" if v else _ABSENT for v in speeds]),
        TextColumn("time", [duration(statistics.fmean(v)) if v else _ABSENT for v in times]),
    ]
    if set(states) != {_FINISHED}:
        cells = [Text(state, "green" if state == _FINISHED else "red") for state in states]
        columns.append(TextColumn("status", cells, is_number=False))
    return columns


def _counted(words: Any) -> str:  # noqa: ANN401 - an iterable of texts
    """Return ``dead``, or ``3 finished, 1 failed`` for different words; empty ones are left out."""
    counts = Counter(words)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{number} {word}" for word, number in counts.items() if word)


def _mean(group: Sequence[Summary], key: str) -> str:
    finished = [summary for summary in group if summary.get("status") == _FINISHED] or group
    values = [float(summary[key]) for summary in finished if summary.get(key) is not None]
    if not values:
        return _ABSENT
    if len(values) == 1:
        return f"{values[0]:,.1f}"
    error = statistics.stdev(values) / len(values) ** 0.5
    return score_text(statistics.fmean(values), t_half_width(error, len(values) - 1))


def _memory_columns(groups: Sequence[Sequence[Summary]]) -> tuple[list[TextColumn], str]:
    """Return the columns of jobs whose memory was forecast or counted, and the note about them."""
    sizes = [memory_of(group[0]) for group in groups]
    if not any(size.get("forecast_gib") or size.get("counted_gib") for size in sizes):
        return [], ""
    values = {name: [size.get(f"{name.lower()}_gib") for size in sizes] for name in _MEMORY}
    most = max(v for name in _MEMORY[:3] for v in values[name] if v is not None)
    unit, factor = ("GiB", 1.0) if most >= 1.0 else ("MiB", 1024.0)
    columns = [
        TextColumn(name, [_ABSENT if v is None else number_text(v * factor) for v in values[name]])
        for name in _MEMORY
        if any(value is not None for value in values[name])
    ]
    note = f"{unit}: peak of the device's tensors as forecast, counted and measured (CUDA only)"
    return columns, f"{note}; host: the process; PCIe: over the run"
