"""Plot finished runs: python -m ppo_lab.report outputs/grids/... -o returns.png.

Plots return against environment steps: one colour per setting, a thin line per seed and a thick one
for their mean. Reads only the runs' own files; needs no account and no network.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.studies.results.format import score_text
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.tracking.tables import override_values, varying_keys
from ppo_lab.utils.redaction import printable

__all__ = ["Curve", "draw_returns", "find_curves", "main"]

_RETURN = "charts/episodic_return_last100"
_NUM_POINTS = 200  # of a setting's mean curve
_FORMATS = (".png", ".svg", ".pdf")
_MAX_LABEL_CHARS = 120


@dataclass(frozen=True)
class Curve:
    """One run's return over its environment steps."""

    setting: str  # the overrides that distinguish the run from the others, except its seed
    steps: NDArray[np.float64]
    returns: NDArray[np.float64]  # mean of the last 100 episodes, in the environment's own units
    env: str


def find_curves(folders: Sequence[Path]) -> list[Curve]:
    """Return the return curve of each run in or below ``folders`` in which an episode ended.

    Curves are sorted by setting, numbers in it by value. Runs with an unreadable file are skipped
    with a message.

    Raises:
        FileNotFoundError: The folders contain no run.
    """
    runs: list[tuple[dict[str, Any], list[dict[str, Any]]]] = []
    found = [sorted(folder.rglob(SUMMARY_FILE), key=_natural) for folder in folders]
    if not any(found):
        raise FileNotFoundError(f"no {SUMMARY_FILE} in or below {', '.join(map(str, folders))}")
    for path in itertools.chain(*found):
        try:
            rows = [row for row in read_metrics(path.parent / METRICS_FILE) if _has_return(row)]
            runs.append((read_summary(path), rows))
        except (OSError, ValueError) as error:
            sys.stderr.write(f"ppo_lab.report: skipped {printable(error)}\n")
    settings = [override_values(summary) for summary, _ in runs]
    varying = [key for key in varying_keys(settings) if key != "seed"]
    curves = []
    for (summary, rows), values in zip(runs, settings):
        if rows:
            label = ", ".join(f"{key} {values.get(key, '(default)')}" for key in varying)
            steps = np.array([row["global_step"] for row in rows], dtype=np.float64)
            returns = np.array([row[_RETURN] for row in rows], dtype=np.float64)
            env = _plain(summary.get("env", "unknown environment"))
            curves.append(Curve(_plain(label) or "all runs", steps, returns, env))
    return sorted(curves, key=lambda curve: _natural(curve.setting))


def _has_return(row: dict[str, Any]) -> bool:
    return isinstance(row.get(_RETURN), int | float)


def _plain(text: object) -> str:
    """Return text for a plot, in which matplotlib finds no formula."""
    return printable(text)[:_MAX_LABEL_CHARS].replace("$", r"\$")


def draw_returns(curves: Sequence[Curve], output: Path) -> None:
    """Write the plot to ``output``, whose suffix decides the format (png, svg, pdf)."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings = list(dict.fromkeys(curve.setting for curve in curves))
    colors = mpl.colormaps["viridis"](np.linspace(0.0, 0.85, max(len(settings), 2)))
    figure = Figure(figsize=(8.0, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for setting, color in zip(settings, colors):
        group = [curve for curve in curves if curve.setting == setting]
        if setting.endswith(" none"):  # no clipping: set it apart
            color = "crimson"
        for curve in group:
            axes.plot(curve.steps, curve.returns, color=color, linewidth=0.7, alpha=0.4)
        steps, mean = _mean_curve(group)
        finals = [curve.returns[-1] for curve in group]
        label = f"{setting}: {score_text(float(np.mean(finals)), float(np.std(finals)))}"
        axes.plot(steps, mean, color=color, linewidth=2.4, label=label)
    seeds = {sum(curve.setting == setting for curve in curves) for setting in settings}
    counts = " or ".join(map(str, sorted(seeds))) + (" seed" if seeds == {1} else " seeds")
    axes.set_title(f"{', '.join(sorted({c.env for c in curves}))}: {counts} per setting")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return, mean of the last 100 episodes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
    axes.legend(title="final return, mean ± sd", frameon=False, loc="best")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.2)
    figure.savefig(output, dpi=140)


def main(arguments: Sequence[str] | None = None) -> int:
    """Plot the runs named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of runs or grids")
    where = "image file; default returns.png in the first folder"
    parser.add_argument("-o", "--output", type=Path, help=where)
    parsed = parser.parse_args(arguments)
    output = parsed.output or parsed.folders[0] / "returns.png"
    if output.suffix.lower() not in _FORMATS:
        return _fail(f"-o {output}: must end in one of {', '.join(_FORMATS)}")
    if not output.parent.is_dir() or output.is_dir() or output.is_fifo():
        return _fail(f"-o {output}: must be a file in a folder that exists")
    try:
        curves = find_curves(parsed.folders)
    except FileNotFoundError as error:
        return _fail(str(error))
    if not curves:
        return _fail("in these runs no episode ended, or none of them could be read")
    try:
        draw_returns(curves, output)
    except OSError as error:
        return _fail(f"-o {output}: {error.strerror}")
    sys.stdout.write(f"{output}\n")
    return 0


def _fail(message: str) -> int:
    sys.stderr.write(f"ppo_lab.report: {printable(message)}\n")
    return 2


def _mean_curve(curves: Sequence[Curve]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curves' mean over the steps that all of them cover."""
    first = max(curve.steps[0] for curve in curves)
    last = min(curve.steps[-1] for curve in curves)
    steps = np.linspace(first, last, _NUM_POINTS)
    return steps, np.mean([np.interp(steps, c.steps, c.returns) for c in curves], axis=0)


def _natural(text: object) -> list[tuple[int, float, str]]:
    """Return a sort key that orders numbers by value and before words."""
    key = []
    for word in str(text).replace("/", " ").replace(",", " ").split():
        try:
            key.append((0, float(word), ""))
        except ValueError:
            key.append((1, 0.0, word))
    return key


if __name__ == "__main__":
    sys.exit(main())
