"""A figure as plain data, which the page and the pictures both draw."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ppo_lab.reports.groups import Section
from ppo_lab.reports.loading import Series

__all__ = ["NUM_POINTS", "Figure", "Grid", "escaped", "rounded", "wrapped"]

_LABEL_CHARS = 24  # of a line

NUM_POINTS = 100
"""Of a curve."""


@dataclass(frozen=True)
class Figure:
    """Traces and layout in plotly's JSON; texts in them are escaped (see ``escaped``).

    A trace's ``meta`` is the statistic that it shows, where the page lets a person choose one.
    """

    name: str
    """Of its file."""
    title: str
    note: str
    """What it shows, in a sentence or two."""
    data: Sequence[dict[str, Any]]
    x: dict[str, Any] = field(default_factory=dict)
    """The axis."""
    y: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)
    """The rest."""
    height: int = 400
    is_small: bool = False
    """Whether several fit beside each other."""


@dataclass(frozen=True)
class Grid:
    """Evenly spaced environment steps, to which the curves of a section are averaged."""

    first: float
    width: float
    count: int = NUM_POINTS

    @classmethod
    def of(cls, section: Section) -> Grid | None:
        """Return the grid over all curves of ``section``; None if there are none."""
        series = [s for group in section.groups for run in group.runs for s in run.series.values()]
        if not series:
            return None
        first, last = min(s.steps[0] for s in series), max(s.steps[-1] for s in series)
        if last <= first:
            return cls(first, 1.0, 1)
        return cls(first, (last - first) / (NUM_POINTS - 1))

    @property
    def x(self) -> dict[str, float | str]:
        """The steps, for a trace."""
        return {"x0": self.first, "dx": self.width}

    def values(self, series: Series) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return a metric at the grid's steps, NaN outside of the run.

        Where a run has more rows than points, each point is the mean of the rows around it.
        """
        steps, values = series.steps, series.values
        finite = np.isfinite(values)
        steps, values = steps[finite], values[finite]
        points = self.first + self.width * np.arange(self.count)
        if not len(steps):
            return np.full(self.count, np.nan)
        bins = np.clip(np.rint((steps - self.first) / self.width), 0, self.count - 1).astype(int)
        count = np.bincount(bins, minlength=self.count)
        filled = count > 0
        means = np.bincount(bins, values, self.count)[filled] / count[filled]
        half = self.width / 2
        inside = (points >= steps[0] - half) & (points <= steps[-1] + half)
        return np.where(inside, np.interp(points, points[filled], means), np.nan)


def rounded(values: Iterable[float | None]) -> list[float | None]:
    """Return numbers with five digits, None for what is not finite.

    Example:
        >>> rounded([0.1234567, float("nan")])
        [0.12346, None]
    """
    return [
        None if value is None or not math.isfinite(value) else float(f"{value:.5g}")
        for value in values
    ]


def wrapped(label: str) -> str:
    """Return an escaped label in short lines, for an axis."""
    return "<br>".join(map(escaped, textwrap.wrap(label, _LABEL_CHARS)))


def escaped(text: object) -> str:
    """Return ``text`` for plotly, which reads a kind of HTML."""
    return html.escape(str(text), quote=False)
