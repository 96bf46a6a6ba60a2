"""Figures as image files, drawn by matplotlib without a browser."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.reports.curves import curve_figures
from ppo_lab.reports.figure import Figure
from ppo_lab.reports.groups import Group, Section
from ppo_lab.reports.loading import RETURN
from ppo_lab.studies.results.format import score_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_figure", "draw_returns"]

_DASHES = {"dash": "--", "dot": ":"}
_MARKERS = {"x": "x", "diamond": "D"}
_MOST_LEGEND = 16
_DPI = 120


def draw_figure(figure: Figure, output: Path) -> None:
    """Write a figure of the page to ``output``."""
    from matplotlib.figure import Figure as Canvas

    width, height = 5.6 if figure.is_small else 8.0, max(figure.height / 100, 2.4)
    canvas = Canvas(figsize=(width, height))
    axes = canvas.add_subplot()
    _draw(axes, figure)
    axes.set_title(_plain(figure.title), fontsize=11)
    # Placed by hand: matplotlib's own layouts draw everything twice.
    names = {
        str(name) for t in figure.data if figure.y.get("type") == "category" for name in t["y"]
    }
    left = min(0.75 + 0.075 * max(map(len, names), default=0), width / 2)
    below = 1.1 if "barmode" in figure.layout else 0.6
    canvas.subplots_adjust(left / width, below / height, 1 - 0.25 / width, 1 - 0.4 / height)
    canvas.savefig(output, dpi=_DPI)


def draw_returns(sections: Sequence[Section], output: Path) -> bool:
    """Write the return curves, a panel per environment; return whether there are any.

    The suffix of ``output`` decides the format (png, svg, pdf).
    """
    from matplotlib.figure import Figure as Canvas

    found = [
        (section, figure)
        for section in sections
        for figure in curve_figures(section)
        if figure.name.startswith("returns-")
    ]
    if not found:
        return False
    canvas = Canvas(figsize=(8.0, 4.5 * len(found)), layout="constrained")
    for index, (section, figure) in enumerate(found, 1):
        axes = canvas.add_subplot(len(found), 1, index)
        labels = {group.label: _scored(group) for group in section.groups}
        _draw(axes, figure, labels)
        counts = {sum(RETURN in run.series for run in group.runs) for group in section.groups}
        counts.discard(0)
        seeds = " or ".join(map(str, sorted(counts))) + (" seed" if counts == {1} else " seeds")
        axes.set_title(_plain(f"{section.title}: {seeds} per setting"))
        if (legend := axes.get_legend()) is not None:
            legend.set_title("final return, mean ± sd")
    canvas.savefig(output, dpi=140)
    return True


def _scored(group: Group) -> str:
    """Return the group's label with its final return, and how many runs that is of."""
    if not group.returns:
        return f"{group.label}: none finished"
    deviation = float(np.std(group.returns)) if len(group.returns) > 1 else None
    some = "" if len(group.returns) == len(group.runs) else f" ({len(group.returns)} finished)"
    return f"{group.label}: {score_text(group.mean_return, deviation)}{some}"


def _plain(text: object) -> str:
    """Return text in which matplotlib finds no formula."""
    return html.unescape(str(text).replace("<br>", "\n")).replace("$", r"\$")


def _draw(axes: Axes, figure: Figure, labels: Mapping[str, str] | None = None) -> None:
    below: NDArray[Any] | None = None
    ends: dict[Any, float] = {}
    for trace in figure.data:
        if trace.get("meta", "mean") != "mean":
            continue
        if trace["type"] == "heatmap":
            _heat(axes, trace)
        elif trace["type"] == "bar":
            _bar(axes, trace, ends)
        else:
            label = (labels or {}).get(trace.get("legendgroup", ""), trace.get("name", ""))
            is_named = trace.get("showlegend", True) and figure.y.get("type") != "category"
            below = _scatter(axes, trace, _plain(label) if is_named else "", below)
    for axis, name in ((figure.x, "x"), (figure.y, "y")):
        _axis(axes, axis, name)
    for note in figure.layout.get("annotations", ()):
        point, shift = (note["x"], note["y"]), (0, note["yshift"])
        axes.annotate(_plain(note["text"]), point, shift, textcoords="offset points",
                      ha="center", va="center", fontsize=8)  # fmt: skip
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(alpha=0.2)
    handles, names = axes.get_legend_handles_labels()
    if 0 < len(names) <= _MOST_LEGEND:
        place: dict[str, Any] = {"loc": "best"}
        if "barmode" in figure.layout:  # bars leave no room
            place = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.28), "ncols": 5}
        axes.legend(handles, names, frameon=False, fontsize=8, **place)


def _scatter(
    axes: Axes, trace: Mapping[str, Any], label: str, below: NDArray[Any] | None
) -> NDArray[Any]:
    """Draw lines, bands and markers; return the line, above which the next trace may fill."""
    y: Any = [np.nan if value is None else value for value in trace["y"]]
    x: Any = trace.get("x")
    if x is None:
        x = trace["x0"] + trace["dx"] * np.arange(len(y))
    line, marker, alpha = trace.get("line", {}), trace.get("marker", {}), trace.get("opacity", 1.0)
    if "fill" in trace and below is not None:
        axes.fill_between(x, below, y, color=trace["fillcolor"], linewidth=0)
    elif "lines" in trace["mode"] and line.get("width", 2):
        style = _DASHES.get(line.get("dash", ""), "-")
        steps = "steps-post" if line.get("shape") == "hv" else "default"
        axes.plot(x, y, style, color=line.get("color"), linewidth=0.8 * line.get("width", 2),
                  alpha=alpha, drawstyle=steps, label=label or None)  # fmt: skip
    if "error_x" in trace:
        bounds = [trace["error_x"][key] for key in ("arrayminus", "array")]
        known = [[0.0 if value is None else value for value in bound] for bound in bounds]
        axes.errorbar(x, y, xerr=known, color=marker["color"], linewidth=2)
    if "markers" in trace["mode"]:
        size = [value**2 / 2 for value in np.atleast_1d(marker.get("size", 8))]
        axes.scatter(x, y, s=size, c=marker.get("color"), alpha=marker.get("opacity", alpha),
                     marker=_MARKERS.get(marker.get("symbol", ""), "o"),
                     label=None if "lines" in trace["mode"] else label or None)  # fmt: skip
    return np.asarray(y)


def _bar(axes: Axes, trace: Mapping[str, Any], ends: dict[Any, float]) -> None:
    """Draw bars on those of earlier traces."""
    is_flat = trace.get("orientation") == "h"
    places, sizes = (trace["y"], trace["x"]) if is_flat else (trace["x"], trace["y"])
    if places and isinstance(places[0], list):  # groups and what is in them
        places = [f"{kind}\n{name}" for name, kind in zip(*places)]
    sizes = [value or 0.0 for value in sizes]
    begins = [ends.get(place, 0.0) for place in places]
    ends.update({place: begin + size for place, begin, size in zip(places, begins, sizes)})
    label, color = _plain(trace.get("name", "")) or None, trace["marker"]["color"]
    if is_flat:
        axes.barh(places, sizes, left=begins, color=color, label=label)
    else:
        axes.bar(places, sizes, bottom=begins, color=color, label=label)


def _heat(axes: Axes, trace: Mapping[str, Any]) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    z = np.array([[np.nan if v is None else v for v in row] for row in trace["z"]])
    limits = {"vmin": trace["zmin"], "vmax": trace["zmax"]}
    is_grid = len(trace["x"]) == z.shape[1] + 1
    if is_grid:
        mesh = axes.pcolormesh(trace["x"], trace["y"], z, cmap="viridis", **limits)
    else:
        colors = LinearSegmentedColormap.from_list("", [color for _, color in trace["colorscale"]])
        mesh = axes.pcolormesh(z, cmap=colors, **limits)
        for axis, labels in ((axes.xaxis, trace["x"]), (axes.yaxis, trace["y"])):
            axis.set_ticks(np.arange(len(labels)) + 0.5, [_plain(label) for label in labels])
        for (i, j), value in np.ndenumerate(z):
            if np.isfinite(value):
                axes.text(j + 0.5, i + 0.5, f"{value:.2f}", ha="center", va="center")
    bar = axes.figure.colorbar(mesh)
    if "tickvals" in trace["colorbar"]:
        bar.set_ticks(trace["colorbar"]["tickvals"], labels=trace["colorbar"]["ticktext"])


def _axis(axes: Axes, axis: Mapping[str, Any], name: str) -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter, PercentFormatter

    def decimal(value: float, position: object) -> str:  # noqa: ARG001
        return f"{value:g}"

    ours = axes.xaxis if name == "x" else axes.yaxis
    if axis.get("type") == "log":
        (axes.set_xscale if name == "x" else axes.set_yscale)("log")
        ours.set_major_formatter(decimal)
        low, high = axis.get("range", (0.0, 9.0))
        ours.set_minor_formatter(decimal if high - low < 1.5 else NullFormatter())
    elif axis.get("tickformat") == "~s":
        ours.set_major_formatter(EngFormatter(sep=""))
    elif axis.get("tickformat") == ".0%":
        ours.set_major_formatter(PercentFormatter(1.0))
    if axis.get("autorange") == "reversed":
        ours.set_inverted(True)
    if "range" in axis:
        low, high = (10.0**v if axis.get("type") == "log" else v for v in axis["range"])
        (axes.set_xlim if name == "x" else axes.set_ylim)(low, high)
    ours.set_label_text(_plain(axis.get("title", "")))
