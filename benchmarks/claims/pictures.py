"""Pictures of docs/ppo.md, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims.grids import setting_values
from benchmarks.runs import SeedRun

__all__ = ["COLOURS", "axes", "curves", "draw_bands", "ratio_map", "save"]

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "claims"
COLOURS = ("#0072b2", "#009e73", "#e69f00", "#d55e00", "#cc79a7", "#56b4e9")
"""Distinct for the colour-blind (Okabe and Ito)."""
_POINTS = 120
Drawn = Mapping[str, Sequence[SeedRun]]
mpl.use("Agg")


def axes(titles: Sequence[str], height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels in a row, one a title."""
    figure = Figure(figsize=(4.2 * len(titles), height), layout="constrained")
    panels = list(np.atleast_1d(figure.subplots(1, len(titles))))
    for panel, title in zip(panels, titles):
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8)
    return figure, panels


def save(figure: Figure, name: str) -> Path:
    """Save a picture of the page; return its path."""
    PICTURES.mkdir(exist_ok=True)
    figure.savefig(path := PICTURES / f"{name}.png", dpi=110)
    return path


def curves(runs: Iterable[SeedRun], metric: str) -> tuple[Any, Any]:
    """Return steps (p,) and each run's metric there (n, p); a dead run keeps its last value."""
    known = [
        [(row["global_step"], row[metric]) for row in run.rows if row.get(metric) is not None]
        for run in runs
    ]
    last = max(pairs[-1][0] for pairs in known)
    steps = np.linspace(max(pairs[0][0] for pairs in known), last, _POINTS)
    columns = [np.array(pairs, dtype=float).T for pairs in known]
    return steps, np.array([np.interp(steps, at, values) for at, values in columns])


def draw_bands(panel: Axes, groups: Drawn, metric: str) -> None:
    """Draw each setting's mean, with its 95 % interval over seeds as a band."""
    for colour, (label, runs) in zip(COLOURS, groups.items()):
        steps, values = curves(runs, metric)
        mean = values.mean(0)
        half = 1.96 * values.std(0, ddof=1) / len(values) ** 0.5
        panel.plot(steps, mean, color=colour, label=label, linewidth=1.6)
        panel.fill_between(steps, mean - half, mean + half, color=colour, alpha=0.18, linewidth=0)
    panel.set_xlabel("environment steps", fontsize=8)
    panel.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


def ratio_map(panel: Axes, runs: Sequence[SeedRun]) -> None:
    """Draw the density of ppo/ratio over training, of all seeds, with the clip's bounds."""
    rows = [row for run in runs for row in run.rows if "ppo/ratio" in row]
    edges = np.array(rows[0]["ppo/ratio"]["edges"])
    last = max(row["global_step"] for row in rows)
    columns = np.zeros((_POINTS // 2, len(edges) - 1))
    for row in rows:
        column = min(int(row["global_step"] / last * len(columns)), len(columns) - 1)
        columns[column] += row["ppo/ratio"]["counts"]
    share = columns / np.maximum(columns.sum(1, keepdims=True), 1)
    steps = np.linspace(0, last, len(columns) + 1)
    density = np.ma.masked_less(share.T, 1e-6)
    norm = mpl.colors.LogNorm(1e-6, 1)
    panel.pcolormesh(steps, edges, density, norm=norm, cmap="viridis", rasterized=True)
    panel.set_yscale("log")
    panel.set_xlabel("environment steps", fontsize=8)
    panel.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))
    epsilon = setting_values(runs[0])["epsilon"]
    if epsilon != "none":
        for bound in (1 - float(epsilon), 1 + float(epsilon)):
            panel.axhline(bound, color="#d55e00", linewidth=1.0, linestyle="--")
