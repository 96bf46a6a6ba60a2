"""Figures over training: returns, clip fractions, KL, entropy, and the ratio's histogram."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.reports.figure import Figure, Grid, escaped, rounded
from ppo_lab.reports.groups import Group, Section
from ppo_lab.reports.loading import RATIO, RETURN, Run, Series
from ppo_lab.reports.statistics import AGGREGATES, estimate

__all__ = ["curve_figures", "ratio_figures", "slug"]

GREY = "#8a8f98"
_STEPS = {"title": "environment steps", "tickformat": "~s"}
_MOST_HEAT_MAPS = 8
_MOST_SEEDS = 240  # thin lines of a figure
_MOST_COLUMNS = 60
_LIMIT_COLOR = "#ff3d7f"
_SMALLEST_SHARE = 1e-4


def curve_figures(section: Section) -> Iterator[Figure]:
    """Yield the figures whose lines are metrics of a section's runs."""
    if (grid := Grid.of(section)) is None:
        return
    where = slug(section.title)
    if traces := _returns(section, grid):
        note = (
            "Thick: the finished seeds of a setting, with a 95 % bootstrap interval. Thin: each "
            "seed; dotted if it did not finish, and then in no mean."
        )
        if len(section.colored) < len(section.groups):
            note += f" The best {len(section.colored)} of {len(section.groups)} settings in colour."
        y = {"title": "return, mean of the last 100 episodes"}
        num_rows = 1 + sum(len(group.label) + 10 for group in section.colored) // 130
        height = 400 + 22 * num_rows
        yield Figure(f"returns-{where}", "Return", note, traces, _STEPS, y, height=height)
    for name, title, note, metrics, y in _DIAGNOSTICS:
        lines = [
            trace
            for group in section.colored
            for index, (metric, side) in enumerate(metrics.items())
            for trace in _mean_line(group, grid, metric, side, index)
        ]
        if lines:
            more = {"showlegend": False}  # colours are those above
            yield Figure(f"{name}-{where}", title, note, lines, _STEPS, y, more, 330, is_small=True)


_DIAGNOSTICS: Sequence[tuple[str, str, str, Mapping[str, str], dict[str, Any]]] = (
    ("clip", "Clip fraction", "Steps of the rollout whose ratio is above 1 + ε (solid) or below "
     "1 - ε (dotted) after the update. Without a clip it is 0 by definition.",
     {"ppo/clip_above_frac": "above", "ppo/clip_below_frac": "below"},
     {"title": "share of steps", "tickformat": ".0%", "rangemode": "tozero"}),
    ("kl", "KL divergence of an update", "From the policy that collected the rollout to the one "
     "after the update (k3 estimator). Above 0.02 is large.",
     {"ppo/kl_k3": ""}, {"title": "nats", "type": "log", "exponentformat": "power"}),
    ("entropy", "Entropy", "Of the policy, over the rollout. Of continuous actions it may be "
     "negative.", {"ppo/entropy": ""}, {"title": "nats"}),
)  # fmt: skip


def _returns(section: Section, grid: Grid) -> list[dict[str, Any]]:
    """Return every seed's curve, then the interval and mean of each setting."""
    seeds, means = [], []
    most = max(_MOST_SEEDS // max(len(section.colored), 1), 1)
    for group in section.groups:
        color, is_shown = group.color or GREY, bool(group.color)
        curves = [run for run in group.runs if RETURN in run.series]
        if is_shown:
            seeds += [_seed_line(run, group, grid, color) for run in curves[:most]]
        finished = [grid.values(run.series[RETURN]) for run in curves if run.is_finished]
        if not finished:
            continue
        values, name = np.array(finished), _name(group)
        for aggregate in AGGREGATES:
            common: dict[str, Any] = {"meta": aggregate, "legendgroup": group.label, **grid.x}
            line = {"color": color, "width": 3 if is_shown else 1}
            shown = dict(common, name=name, line=line, showlegend=is_shown)
            where = ~np.isnan(values).any(0)
            if not where.any():
                continue
            parts = np.full((3, grid.count), np.nan)
            parts[:, where] = estimate(values[:, where], aggregate)
            if is_shown and len(finished) > 1:
                means += _band(parts[1], parts[2], common, color)
            means.append(_line(shown, parts[0], opacity=1.0 if is_shown else 0.5))
    return [*seeds, *means]


def _name(group: Group) -> str:
    """Return the group's label, with how many of its runs are in the mean if not all are."""
    num_finished, num_runs = len(group.finished), len(group.runs)
    some = "" if num_finished == num_runs else f" ({num_finished} of {num_runs} finished)"
    return escaped(group.label + some)


def _line(common: Mapping[str, Any], values: NDArray[np.float64], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"type": "scatter", "mode": "lines", **common, "y": rounded(values), **more}


def _seed_line(run: Run, group: Group, grid: Grid, color: str) -> dict[str, Any]:
    line = {"color": color, "width": 1} | ({} if run.is_finished else {"dash": "dot"})
    name = f"{group.label}, seed {run.seed}"
    if not run.is_finished:
        name += f": {run.status}"
    common = {"name": escaped(name), "legendgroup": group.label, "showlegend": False, **grid.x}
    values = grid.values(run.series[RETURN])
    opacity = 0.45 if run.is_finished else 0.9
    return _line(dict(common, line=line), values, opacity=opacity, hoverinfo="name")


def _band(
    low: NDArray[np.float64], high: NDArray[np.float64], common: Mapping[str, Any], color: str
) -> list[dict[str, Any]]:
    common = dict(common, line={"width": 0}, showlegend=False, hoverinfo="skip")
    fill = {"fill": "tonexty", "fillcolor": f"{color}33"}
    return [_line(common, low), _line(common, high, **fill)]


def _mean_line(
    group: Group, grid: Grid, metric: str, side: str, index: int
) -> Iterator[dict[str, Any]]:
    """Yield the mean of a metric over a setting's finished seeds."""
    curves = [grid.values(r.series[metric]) for r in group.finished if metric in r.series]
    if not curves:
        return
    hover = f"%{{y:.4g}} {side}<extra>{escaped(group.label)}</extra>"
    named = {"name": escaped(group.label), "hovertemplate": hover}
    yield _line(
        {**named, "legendgroup": group.label, **grid.x},
        np.array(curves).mean(0),
        line={"color": group.color, "width": 2} | ({"dash": "dot"} if index else {}),
    )


def ratio_figures(section: Section) -> Iterator[Figure]:
    """Yield a heat map of the ratio's histogram over training for settings that have one."""
    groups = [group for group in section.colored if any(RATIO in r.series for r in group.finished)]
    for group in groups[:_MOST_HEAT_MAPS]:
        runs = [run for run in group.finished if RATIO in run.series]
        edges = runs[0].series[RATIO].edges
        histograms = [r.series[RATIO] for r in runs if r.series[RATIO].edges == edges]
        if min(edges) <= 0:
            continue
        steps, shares = _shares(histograms)
        used = np.flatnonzero(shares.sum(0))
        first, last = max(used[0] - 1, 0), min(used[-1] + 2, shares.shape[1])
        log_shares = np.where(shares > 0, np.log10(np.maximum(shares, _SMALLEST_SHARE)), np.nan)
        ticks = range(round(math.log10(_SMALLEST_SHARE)), 1)
        heat = {
            "type": "heatmap",
            "x": rounded(steps),
            "y": rounded(edges[first : last + 1]),
            "z": [rounded(row) for row in log_shares.T[first:last]],
            "zmin": ticks[0],
            "zmax": 0,
            "colorscale": "Viridis",
            "hovertemplate": "%{x:,.0f} steps, ratio %{y:.3g}: 10^%{z:.2f}<extra></extra>",
            "colorbar": {
                "tickvals": list(ticks),
                "ticktext": [f"{10.0**tick:.2%}".replace(".00%", "%") for tick in ticks],
                "thickness": 12,
                "title": {"text": "share"},
            },
        }
        y = {
            "title": "ratio π_new / π_old",
            "type": "log",
            "tickformat": ".3~g",
            "range": [math.log10(edges[i]) for i in (first, last)],
        }
        note = f"{len(histograms)} seed{'s' if len(histograms) > 1 else ''}, after each update."
        yield Figure(
            f"ratio-{slug(section.title)}-{slug(group.label)}",
            f"Probability ratio, {group.label}",
            note,
            [heat, *_limits(runs, steps)],
            _STEPS,
            y,
            {"showlegend": False},
            height=340,
            is_small=True,
        )


def _shares(
    histograms: Sequence[Series],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return edges of columns in steps, and the share of each bin in each column, over all runs."""
    last = max(histogram.steps[-1] for histogram in histograms)
    count = min(max(len(histogram.steps) for histogram in histograms), _MOST_COLUMNS)
    edges = np.linspace(0.0, last, count + 1)
    total = np.zeros((count, histograms[0].values.shape[1]))
    for histogram in histograms:
        columns = np.clip(np.searchsorted(edges, histogram.steps) - 1, 0, count - 1)
        np.add.at(total, columns, np.nan_to_num(histogram.values))
    return edges, total / np.maximum(total.sum(1, keepdims=True), 1.0)


def _limits(runs: Sequence[Run], steps: NDArray[np.float64]) -> Iterator[dict[str, Any]]:
    """Yield the lines 1 + epsilon and 1 - epsilon, as they were in the first of the runs."""
    run = runs[0]
    if (low := run.series.get("ppo/epsilon")) is None:
        return
    high = low.values
    top, bottom = run.settings.get("epsilon_high"), run.settings.get("epsilon")
    if isinstance(top, int | float) and isinstance(bottom, int | float) and bottom > 0:
        high = high * (top / bottom)  # both follow the schedule
    chosen = np.unique(np.linspace(0, len(low.steps) - 1, _MOST_COLUMNS).astype(int))
    for name, values in (("1 + ε", 1.0 + high), ("1 - ε", 1.0 - low.values)):
        kept = [i for i in chosen if values[i] > 0]  # the axis is logarithmic
        if kept:
            x, y = rounded(low.steps[kept]), rounded(values[kept])
            x, y = [float(steps[0]), *x], [y[0], *y]
            line = {"color": _LIMIT_COLOR, "width": 2, "dash": "dash"}
            yield {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line}


def slug(text: str) -> str:
    """Return ``text`` as part of a file's name.

    Example:
        >>> slug("CartPole-v1: epsilon 0.2")
        'CartPole-v1-epsilon-0.2'
    """
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60]
