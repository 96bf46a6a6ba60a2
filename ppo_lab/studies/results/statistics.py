"""What a study found: its best trials, what mattered, trade-offs, and whether a gain is real."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import stdtrit

from ppo_lab.config.study import Aggregate

__all__ = [
    "CONFIDENCE",
    "Confirmation",
    "Gain",
    "ParetoRow",
    "best_trials",
    "confirm",
    "half_width",
    "importance",
    "pareto",
]

_FEWEST_TRIALS = 10
_FEWEST_AT_TOP = 5  # trials that the top quantile should hold, says Optuna's documentation


class ParetoRow(NamedTuple):
    """A trial that no other beats in every objective."""

    number: int
    values: tuple[float, ...]
    params: Mapping[str, Any]


class Gain(NamedTuple):
    """How much better than the default one candidate is, in returns; positive is better."""

    mean: float
    low: float
    high: float


class Confirmation(NamedTuple):
    """What fresh seeds say about the best trials of a study."""

    winner: int | None
    """Number of the candidate with the best mean; None if none beats the default."""
    gains: Mapping[int, Gain | None]
    """Of every candidate over the default; None where a run has no return."""


def best_trials(study: Study, top: int) -> list[FrozenTrial]:
    """Return the best ``top`` trials of one objective, best first: complete and within limits."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    feasible = [t for t in complete if all(value <= 0 for value in t.constraints.values())]
    is_maximised = study.direction is StudyDirection.MAXIMIZE
    ranked = sorted(feasible, key=lambda t: -t.values[0] if is_maximised else t.values[0])
    return ranked[:top]


def importance(study: Study, objective: int = 0) -> dict[str, float] | None:
    """Return each parameter's share in what reaches the top of ``objective``, largest first.

    PED-ANOVA (arXiv:2304.10255): how unlike the parameter's distribution over the best trials is
    to that over all. Optuna's counts finished trials only, but where trials are pruned those are
    the better ones already, and what they have in common would look unimportant. So pruned trials
    are counted too, as no better than the worst. The top is a tenth, or 5 trials where that is
    more. None for fewer than 10 trials, or where fewer than that top are better than the worst.
    """
    states = (TrialState.COMPLETE, TrialState.PRUNED)
    trials = [t for t in study.get_trials(deepcopy=False, states=states) if t.params]
    direction = study.directions[objective]
    values = [t.values[objective] for t in trials if t.state is TrialState.COMPLETE]
    if len(trials) < _FEWEST_TRIALS or not values:
        return None
    worst = min(values) if direction is StudyDirection.MAXIMIZE else max(values)
    quantile = max(0.1, _FEWEST_AT_TOP / len(trials))
    if sum(value != worst for value in values) < math.ceil(quantile * len(trials)):
        return None
    whole = optuna.create_study(direction=direction)
    whole.add_trials(
        optuna.create_trial(
            params=trial.params,
            distributions=trial.distributions,
            value=trial.values[objective] if trial.state is TrialState.COMPLETE else worst,
        )
        for trial in trials
    )
    return get_param_importances(
        whole, evaluator=PedAnovaImportanceEvaluator(target_quantile=quantile)
    )


def pareto(study: Study) -> list[ParetoRow]:
    """Return the Pareto front of the trials within limits, best in the first objective first."""
    sign = -1.0 if study.directions[0] is StudyDirection.MAXIMIZE else 1.0
    front = sorted(study.best_trials, key=lambda trial: sign * trial.values[0])
    return [ParetoRow(trial.number, tuple(trial.values), trial.params) for trial in front]


def confirm(
    candidates: Mapping[int, Sequence[float | None]],
    default: Sequence[float | None],
    *,
    is_maximised: bool,
    confidence: float = 0.95,
) -> Confirmation:
    """Compare candidates, one return per fresh seed each, with the default's returns.

    The winner has the best mean. Each gain is a difference of means with Welch's t interval (1947,
    Biometrika 34:28, unequal variances), at level 1 - (1 - confidence) / k for k candidates
    (Bonferroni): all k intervals hold together, so the winner's does although it was chosen. Where
    neither side has any spread the interval is the difference itself. A candidate with a run that
    has no return cannot win.
    """
    level = 1 - (1 - confidence) / max(len(candidates), 1)
    gains = {
        number: _gain(returns, default, is_maximised=is_maximised, level=level)
        for number, returns in candidates.items()
    }
    known = {number: gain.mean for number, gain in gains.items() if gain is not None}
    best = max(known, key=known.__getitem__, default=None)
    return Confirmation(best if best is not None and known[best] > 0 else None, gains)


def _gain(
    candidate: Sequence[float | None],
    default: Sequence[float | None],
    *,
    is_maximised: bool,
    level: float,
) -> Gain | None:
    ours = [value for value in candidate if value is not None]
    theirs = [value for value in default if value is not None]
    if len(ours) < len(candidate) or len(theirs) < len(default) or min(len(ours), len(theirs)) < 2:
        return None
    if not is_maximised:
        ours, theirs = [-value for value in ours], [-value for value in theirs]
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    if np.ptp(ours) == 0 and np.ptp(theirs) == 0:
        return Gain(mean, mean, mean)
    from scipy.stats import ttest_ind  # 0.6 s, for studies that confirm

    interval = ttest_ind(ours, theirs, equal_var=False).confidence_interval(level)
    assert math.isfinite(interval.low)
    return Gain(mean, float(interval.low), float(interval.high))


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
