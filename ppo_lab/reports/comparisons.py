"""Figures that compare settings: final returns, who beats whom, memory, time, and the bus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ppo_lab.reports.curves import GREY, slug
from ppo_lab.reports.figure import Figure, escaped, rounded, wrapped
from ppo_lab.reports.groups import Group, Section
from ppo_lab.reports.loading import Run
from ppo_lab.reports.statistics import (
    AGGREGATES,
    estimate,
    pareto_front,
    probability_of_improvement,
)

__all__ = ["cost_figures", "gib_of", "return_figures"]

_KINDS = {"forecast": "memory.forecast", "counted": "memory.ledger"}
_MOST_COLUMN_CHARS = 16
_PHASES = {
    f"{phase}_s": phase
    for phase in ("build", "compile", "rollout", "evaluation", "advantages", "update",
                  "diagnostics", "record", "eval")
}  # fmt: skip
"""Without ``env_s``, which is a part of the rollout's."""
_WAYS = {"h2d_bytes": "host to device", "d2h_bytes": "device to host"}
_Row = tuple[str, dict[str, float]]  # a label, and its parts
_COLORS = (
    "#4c8dff", "#ff9f40", "#2fb380", "#e5484d", "#a66bff", "#e0b400", "#27b5c9", "#f06fb0",
    "#8a8f98", "#7fbf3f",
)  # fmt: skip


def return_figures(section: Section) -> Iterator[Figure]:
    """Yield the final returns, and the probability that one setting beats another."""
    where, groups = slug(section.title), [group for group in section.groups if group.returns]
    if groups:
        shown = groups if len(groups) <= 40 else [g for g in section.colored if g.returns]
        note = (
            "A dot per finished seed; the diamond is their mean or IQM with its 95 % bootstrap "
            "interval. Crosses did not finish, and are in no mean."
        )
        height = 130 + 38 * len(shown)
        x = {"title": "final return", "tickformat": ",~r"}
        y = {"type": "category", "autorange": "reversed", "automargin": True}
        traces = [trace for group in shown for trace in _final(group)]
        more = {"showlegend": False}
        yield Figure(f"final-{where}", "Final return", note, traces, x, y, more, height)
    several = [group for group in section.colored if len(group.returns) > 1]
    if len(several) > 1:
        yield _improvement(several, where)


def _final(group: Group) -> Iterator[dict[str, Any]]:
    label, color = wrapped(group.label), group.color or GREY
    for runs, symbol in ((group.finished, "circle"), (_unfinished(group), "x")):
        if runs:
            yield {
                "type": "scatter",
                "mode": "markers",
                "x": rounded(run.final_return for run in runs),
                "y": [label] * len(runs),
                "text": [escaped(f"seed {run.seed}: {run.status}") for run in runs],
                "hovertemplate": "%{text}, %{x:,.1f}<extra></extra>",
                "marker": {"color": color, "opacity": 0.55, "size": 8, "symbol": symbol},
            }
    for aggregate in AGGREGATES:
        if not group.returns:
            continue
        value, low, high = (
            float(part[0]) for part in estimate(np.array(group.returns)[:, None], aggregate)
        )
        spread = {"array": rounded([high - value]), "arrayminus": rounded([value - low])}
        yield {
            "type": "scatter",
            "mode": "markers",
            "meta": aggregate,
            "x": rounded([value]),
            "y": [label],
            "error_x": {"type": "data", "symmetric": False, "thickness": 2, **spread},
            "marker": {"color": color, "size": 11, "symbol": "diamond"},
            "hovertemplate": f"{aggregate} %{{x:,.1f}} [{low:,.1f}, {high:,.1f}]<extra></extra>",
        }


def _unfinished(group: Group) -> list[Run]:
    return [run for run in group.runs if not run.is_finished and run.final_return is not None]


def _improvement(groups: Sequence[Group], where: str) -> Figure:
    """Return the matrix of P(row > column)."""
    labels = [wrapped(group.label) for group in groups]
    columns = labels
    if max(map(len, labels)) > _MOST_COLUMN_CHARS:
        columns = [f"{number}" for number, _ in enumerate(groups, 1)]
        labels = [f"{label} ({number})" for label, number in zip(labels, columns)]
    cells, texts = [], []
    for ours in groups:
        row = [
            None if ours is theirs else probability_of_improvement(ours.returns, theirs.returns)
            for theirs in groups
        ]
        cells.append(rounded(None if cell is None else float(cell.value[0]) for cell in row))
        texts.append(["" if c is None else f"[{c.low[0]:.2f}, {c.high[0]:.2f}]" for c in row])
    heat = {
        "type": "heatmap",
        "x": columns,
        "y": labels,
        "z": cells,
        "text": texts,
        "zmin": 0,
        "zmax": 1,
        "colorscale": [[0, "#cf6a3a"], [0.5, "#8d939e"], [1, "#2f74d0"]],
        "texttemplate": "%{z:.2f}" if len(groups) <= 12 else "",
        "hovertemplate": "%{y} beats %{x}: %{z:.2f} %{text}<extra></extra>",
        "colorbar": {"thickness": 12, "title": {"text": "P"}},
    }
    note = (
        "The probability that a seed of the row's setting ends with a higher return than one of "
        "the column's; 0.5 is chance. Hover for the 95 % bootstrap interval."
    )
    return Figure(
        f"improvement-{where}",
        "Probability of improvement",
        note,
        [heat],
        {"type": "category", "title": "than", "automargin": True},
        {"type": "category", "autorange": "reversed", "automargin": True},
        height=190 + 38 * len(groups),
    )


def cost_figures(section: Section) -> Iterator[Figure]:
    """Yield memory, time, bytes over PCIe, and return against memory."""
    where = slug(section.title)
    groups = [group for group in section.colored if group.finished]
    if rows := _memory(groups):
        note = (
            "Peak of the device by category. Forecast: before the run. Counted: every tensor of "
            "the first iteration. Measured: by CUDA's allocator. Of one seed."
        )
        unit = "GiB" if max(sum(parts.values()) for _, parts in rows) >= 0.5 else "MiB"
        yield _bars(f"memory-{where}", "Memory", note, rows, unit)
    if rows := _means(groups, "time", _PHASES):
        note = "Mean over finished seeds. In a stack, of all its lanes while the run was in it."
        yield _bars(f"time-{where}", "Time by phase", note, rows, "seconds")
    rows = _means(groups, "pcie", _WAYS)
    if any(sum(parts.values()) for _, parts in rows):
        note = "Bytes that crossed between host and device in the whole run, mean over seeds."
        yield _bars(f"pcie-{where}", "Bytes over PCIe", note, rows, "bytes")
    yield from _front(groups, where)


def _memory(groups: Sequence[Group]) -> list[_Row]:
    """Return GiB by category for each setting and kind that its runs have."""
    rows = []
    for group in groups:
        kinds = {
            kind: next((c for r in group.finished if (c := r.numbers(f"{key}.categories_gib"))), {})
            for kind, key in _KINDS.items()
        }
        measured = (run.number("memory.measured.allocated_gib") for run in group.finished)
        gib = next((value for value in measured if value is not None), None)
        kinds["measured"] = {} if gib is None else {"allocated": gib}
        rows += [
            (f"{wrapped(group.label)}<br>{kind}", parts) for kind, parts in kinds.items() if parts
        ]
    return rows


def _means(groups: Sequence[Group], section: str, names: Mapping[str, str]) -> list[_Row]:
    """Return the means of a summary's section over each setting's seeds, by our ``names``."""
    rows = []
    for group in groups:
        runs = [run.numbers(section) for run in group.finished]
        known = [key for key in names if any(key in numbers for numbers in runs)]
        parts = {names[key]: float(np.mean([n.get(key, 0.0) for n in runs])) for key in known}
        rows.append((wrapped(group.label), parts))
    return rows if any(parts for _, parts in rows) else []


def _bars(name: str, title: str, note: str, rows: Sequence[_Row], unit: str) -> Figure:
    """Return a horizontal bar per row, stacked from its parts."""
    scale = 1024.0 if unit == "MiB" else 1.0
    sizes = {
        part: sum(parts.get(part, 0.0) for _, parts in rows) for _, parts in rows for part in parts
    }
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": escaped(part),
            "y": [label for label, _ in rows],
            "x": rounded(scale * parts[part] if part in parts else None for _, parts in rows),
            "marker": {"color": _COLORS[index % len(_COLORS)]},
            "hovertemplate": f"%{{x:,.3~g}} {unit}",
        }
        for index, part in enumerate(part for part, size in sizes.items() if size)
    ]
    x = {"title": unit, "rangemode": "tozero", "tickformat": "~s" if unit == "bytes" else ",~r"}
    y = {"type": "category", "autorange": "reversed", "automargin": True}
    stack = {"barmode": "stack", "legend": {"traceorder": "normal"}}
    return Figure(name, title, note, bars, x, y, stack, 180 + 46 * len(rows), is_small=True)


def gib_of(run: Run) -> float | None:
    """Return the device memory of a run: measured, else counted, else forecast."""
    keys = ("measured.allocated_gib", "ledger.peak_gib", "forecast.peak_gib")
    found = (run.number(f"memory.{key}") for key in keys)
    return next((gib for gib in found if gib is not None), None)


def _front(groups: Sequence[Group], where: str) -> Iterator[Figure]:
    points = [
        (gib, group.mean_return, group)
        for group in groups
        if (gib := next((g for r in group.finished if (g := gib_of(r)) is not None), None))
        and group.mean_return is not None
    ]
    if len({gib for gib, _, _ in points}) < 2:
        return
    chosen = pareto_front([(gib, mean) for gib, mean, _ in points])
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": rounded(points[i][0] for i in chosen),
        "y": rounded(points[i][1] for i in chosen),
        "line": {"shape": "hv", "color": GREY, "dash": "dash"},
        "hoverinfo": "skip",
    }
    dots = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": escaped(group.label),
            "x": rounded([gib]),
            "y": rounded([mean]),
            "marker": {"color": group.color, "size": 12},
        }
        for gib, mean, group in points
    ]
    note = "On the front no other setting has a higher mean return with less memory."
    x = {"title": "GiB of the device", "type": "log"}
    y = {"title": "final return, mean"}
    yield Figure(f"front-{where}", "Return against memory", note, [line, *dots], x, y)
