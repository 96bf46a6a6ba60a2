"""Draws finished runs: ``python -m ppo_lab.report outputs/grids/... -o returns.png``.

Return against environment steps, one colour per setting, every seed thin behind its setting's
mean. Reads only the runs' own files: no account, no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.tracking import read_metrics, read_summary

__all__ = ["Curve", "draw_returns", "find_curves", "main"]

_RETURN = "charts/episodic_return_last100"
_NUM_POINTS = 200  # of a setting's mean curve


@dataclass(frozen=True)
class Curve:
    """One run's return over its environment steps."""

    setting: str
    """What distinguishes the run from the others, apart from its seed."""
    steps: NDArray[np.float64]
    returns: NDArray[np.float64]
    """Mean of the last 100 episodes, in the environment's own units."""
    env: str


def find_curves(folders: Sequence[Path]) -> list[Curve]:
    """Return the curve of every run at or below ``folders``, settings in order of their numbers.

    Runs in which no episode ended have no curve and are left out.

    Raises:
        FileNotFoundError: there is no run.
    """
    found = [
        path for folder in folders for path in sorted(folder.rglob("summary.json"), key=_natural)
    ]
    if not found:
        raise FileNotFoundError(f"no summary.json in or below {', '.join(map(str, folders))}")
    found = [path for path in found if _is_whole(path)]
    summaries = [read_summary(path) for path in found]
    chosen = [_settings(summary) for summary in summaries]
    varying = [
        key
        for key in dict.fromkeys(key for settings in chosen for key in settings)
        if len({settings.get(key) for settings in chosen}) > 1
    ]
    curves = []
    for path, summary, settings in zip(found, summaries, chosen):
        rows = [row for row in read_metrics(path.parent / "metrics.jsonl") if _RETURN in row]
        if rows:
            label = ", ".join(f"{key} {settings.get(key, '(default)')}" for key in varying)
            steps = np.array([row["global_step"] for row in rows], dtype=np.float64)
            returns = np.array([row[_RETURN] for row in rows], dtype=np.float64)
            curves.append(Curve(label or "all runs", steps, returns, summary["env"]))
    return sorted(curves, key=lambda curve: _natural_text(curve.setting))


def draw_returns(curves: Sequence[Curve], output: Path) -> None:
    """Write the chart to ``output``; its ending names the format (png, svg, pdf)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(curve.setting for curve in curves))
    colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(settings), 2)))
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for setting, color in zip(settings, colors):
        group = [curve for curve in curves if curve.setting == setting]
        if setting.endswith(" none"):  # no clip at all: the odd one out
            color = "crimson"
        for curve in group:
            axes.plot(curve.steps, curve.returns, color=color, linewidth=0.7, alpha=0.4)
        steps, mean = _mean_curve(group)
        finals = [curve.returns[-1] for curve in group]
        label = f"{setting}: {np.mean(finals):,.0f} ± {np.std(finals):,.0f}"
        axes.plot(steps, mean, color=color, linewidth=2.4, label=label)
    seeds = {sum(curve.setting == setting for curve in curves) for setting in settings}
    counts = " or ".join(map(str, sorted(seeds)))
    axes.set_title(f"{', '.join(sorted({c.env for c in curves}))}: {counts} seeds a setting")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return, mean of the last 100 episodes")
    axes.xaxis.set_major_formatter(mpl.ticker.FuncFormatter(_thousands))
    axes.legend(title="final return, mean ± sd", frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    figure.savefig(output, dpi=140)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the runs named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="runs, grids, or folders of them")
    parser.add_argument("-o", "--output", type=Path, default=None, help="the picture's file")
    parsed = parser.parse_args(arguments)
    try:
        curves = find_curves(parsed.folders)
    except FileNotFoundError as error:
        print(f"ppo_lab.report: {error}", file=sys.stderr)  # noqa: T201 - what the command says
        return 2
    if not curves:
        print("ppo_lab.report: no episode ended in these runs", file=sys.stderr)  # noqa: T201
        return 2
    output = parsed.output or parsed.folders[0] / "returns.png"
    try:
        draw_returns(curves, output)
    except (OSError, ValueError) as error:  # no such folder; a format nobody can write
        print(f"ppo_lab.report: {output}: {error}", file=sys.stderr)  # noqa: T201
        return 2
    print(output)  # noqa: T201
    return 0


def _mean_curve(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curves' mean over the steps that all of them cover."""
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    steps = np.linspace(first, last, _NUM_POINTS)
    return steps, np.mean([np.interp(steps, c.steps, c.returns) for c in curves], axis=0)


def _is_whole(path: Path) -> bool:
    """Return whether a run's summary can be read; say so if not."""
    try:
        read_summary(path)
    except ValueError as error:
        print(f"ppo_lab.report: left out {path}: {error}", file=sys.stderr)  # noqa: T201
        return False
    return True


def _settings(summary: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's overrides by key, without its seed."""
    pairs = (str(override).partition("=") for override in summary["overrides"])
    return {key.lstrip("+"): value for key, _, value in pairs if key.lstrip("+") != "seed"}


def _natural(path: Path) -> list[tuple[int, float, str]]:
    return _natural_text(str(path))


def _natural_text(text: str) -> list[tuple[int, float, str]]:
    """Return a sort key under which numbers stand in order of size, before words."""
    key = []
    for word in text.replace("/", " ").replace(",", " ").split():
        try:
            key.append((0, float(word), ""))
        except ValueError:
            key.append((1, 0.0, word))
    return key


def _thousands(value: float, position: int) -> str:  # noqa: ARG001 - matplotlib's signature
    return f"{value / 1000:g}k"


if __name__ == "__main__":
    sys.exit(main())
