"""How exactly a trial's seeds tell its value."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from scipy.special import stdtrit

from ppo_lab.config.study import Aggregate

__all__ = ["CONFIDENCE", "half_width"]

CONFIDENCE = 0.95
"""Of every interval that a study shows."""


def half_width(
    values: Sequence[float | None], aggregate: Aggregate = Aggregate.mean
) -> float | None:
    """Return half the t interval of the mean, or of the IQM, over seeds; None for fewer than two.

    The IQM's is that of a trimmed mean, from the winsorised deviation and the degrees of freedom
    of what is kept (Tukey and McLaughlin 1963, Sankhya A 25:331).
    """
    known = [value for value in values if value is not None and math.isfinite(value)]
    num_seeds = len(known)
    if num_seeds < 2 or num_seeds < len(values):
        return None
    if aggregate is Aggregate.iqm:
        num_kept = num_seeds - 2 * (num_seeds // 4)
        from scipy.stats.mstats import trimmed_stde  # all of scipy.stats: 0.6 s

        error = float(trimmed_stde(known, limits=(0.25, 0.25)))
    else:
        num_kept = num_seeds
        error = statistics.stdev(known) / math.sqrt(num_seeds)
    return float(stdtrit(num_kept - 1, (1 + CONFIDENCE) / 2)) * error
