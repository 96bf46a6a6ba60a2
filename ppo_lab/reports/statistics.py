"""Statistics over seeds: means and IQMs with bootstrap intervals, and who beats whom.

arXiv:2108.13264 recommends interquartile means, intervals from a bootstrap that resamples the runs
of each setting separately (stratified), and the probability of improvement. Environments are never
aggregated, so a stratum is one setting in one environment. Resampling has a fixed seed.

Shapes: n = seeds, K = points of a curve, B = resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["AGGREGATES", "Estimate", "estimate", "pareto_front", "probability_of_improvement"]

Floats = NDArray[np.float64]

_NUM_RESAMPLES = 2000
_MOST_NUMBERS = 1 << 21  # resampled at once
_LEVELS = (2.5, 97.5)  # percent: a 95 % interval


class Estimate(NamedTuple):
    """A statistic (K,) and its 95 % interval, NaN for a single seed."""

    value: Floats
    low: Floats
    high: Floats


def _mean(values: Floats) -> Floats:
    return np.asarray(values.mean(-2))


def _iqm(values: Floats) -> Floats:
    """Return the mean without the lowest and highest quarter of the seeds, rounded down."""
    num_cut = values.shape[-2] // 4
    ranked = np.sort(values, axis=-2)
    return _mean(ranked[..., num_cut : values.shape[-2] - num_cut, :])


AGGREGATES: dict[str, Callable[[Floats], Floats]] = {"mean": _mean, "IQM": _iqm}
"""Statistics over the axis of seeds, the last but one."""


def estimate(values: Floats, aggregate: str) -> Estimate:
    """Return the ``aggregate`` of ``values`` (n, K) over seeds, with its percentile interval.

    Example:
        >>> [round(float(part[0]), 2) for part in estimate(np.array([[1.0], [2.0], [3.0]]), "mean")]
        [2.0, 1.0, 3.0]
    """
    of_seeds = AGGREGATES[aggregate]
    num_seeds, num_points = values.shape
    value = of_seeds(values)
    if num_seeds < 2:
        return Estimate(value, np.full(num_points, np.nan), np.full(num_points, np.nan))
    chosen = np.random.default_rng(0).integers(num_seeds, size=(_NUM_RESAMPLES, num_seeds))
    width = max(_MOST_NUMBERS // chosen.size, 1)
    bounds = [
        np.percentile(of_seeds(values[:, first : first + width][chosen]), _LEVELS, axis=0)
        for first in range(0, num_points, width)
    ]
    low, high = np.concatenate(bounds, axis=1)
    return Estimate(value, low, high)


def probability_of_improvement(ours: Sequence[float], theirs: Sequence[float]) -> Estimate:
    """Return P(a run of ours > a run of theirs), ties counting half, and its interval, (1,) each.

    Example:
        >>> float(probability_of_improvement([2.0, 3.0], [1.0, 2.0]).value[0])
        0.875
    """
    x, y = np.asarray(ours, np.float64)[:, None], np.asarray(theirs, np.float64)[None]
    wins = (x > y) + 0.5 * (x == y)  # (n, m)
    rng = np.random.default_rng(0)
    # How often each seed is drawn: a resample's mean is then a product with the matrix.
    rows, columns = (
        rng.multinomial(n, np.full(n, 1 / n), _NUM_RESAMPLES) / n for n in wins.shape
    )  # (B, n), (B, m)
    low, high = np.percentile(((rows @ wins) * columns).sum(1), _LEVELS)
    return Estimate(np.array([wins.mean()]), np.array([low]), np.array([high]))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indices of ``(cost, score)`` that no other beats in both, cheapest first.

    Example:
        >>> pareto_front([(2.0, 5.0), (1.0, 3.0), (3.0, 4.0)])
        [1, 0]
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
