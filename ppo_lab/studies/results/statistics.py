"""Statistics of a study: intervals over seeds, importance, the Pareto front, gains."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import stdtrit

from ppo_lab.config.study import Aggregate
from ppo_lab.studies.definition.objective import all_known
from ppo_lab.utils.format import CONFIDENCE, t_half_width

__all__ = ["CONFIDENCE", "Gain", "compare_with_default", "half_width", "importance", "pareto"]

_FEWEST_TRIALS = 10
_FEWEST_AT_TOP = 5  # trials that the top quantile should hold, by Optuna's documentation


def half_width(
    values: Sequence[float | None], aggregate: Aggregate = Aggregate.mean
) -> float | None:
    """Return half the t interval of the mean, or of the IQM, over seeds; None for fewer than two.

    The IQM's is that of a trimmed mean, from the winsorised deviation and the degrees of freedom
    of what is kept (Tukey and McLaughlin 1963, Sankhya A 25:331).

    Example:
        >>> round(half_width([10.0, 14.0]), 2)
        25.41
    """
    known = all_known(values)
    if (num_seeds := len(known)) < 2:
        return None
    if aggregate is Aggregate.iqm:
        num_cut, ranked = num_seeds // 4, sorted(known)
        num_kept = num_seeds - 2 * num_cut
        low, high = ranked[num_cut], ranked[-num_cut - 1]
        winsorised = [min(max(value, low), high) for value in ranked]
        error = statistics.stdev(winsorised) / (0.5 * math.sqrt(num_seeds))
    else:
        num_kept = num_seeds
        error = statistics.stdev(known) / math.sqrt(num_seeds)
    return t_half_width(error, num_kept - 1)


def importance(study: Study, objective: int = 0) -> dict[str, float] | None:
    """Return each parameter's importance for reaching the top of ``objective``, largest first.

    PED-ANOVA (arXiv:2304.10255) compares a parameter's distribution over the best trials with that
    over all trials. Optuna counts finished trials only, but pruning leaves the better ones, and
    what they have in common would look unimportant. So pruned trials are counted too, with the
    worst value. The top is a tenth of the trials, at least 5. The shares sum to 1; None for fewer
    than 10 trials, or if fewer trials than the top are better than the worst.
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
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile)
    return get_param_importances(whole, evaluator=evaluator)


def pareto(study: Study) -> list[FrozenTrial]:
    """Return the Pareto front of the trials within limits, best in the first objective first."""
    sign = -1.0 if study.directions[0] is StudyDirection.MAXIMIZE else 1.0
    return sorted(study.best_trials, key=lambda trial: sign * trial.values[0])


@dataclass(frozen=True)
class Gain:
    """A candidate's mean return minus the defaults', with its interval; positive is better."""

    mean: float
    low: float
    high: float


def compare_with_default(
    candidates: Mapping[int, Sequence[float | None]],
    default: Sequence[float | None],
    *,
    is_maximised: bool,
) -> dict[int, Gain | None]:
    """Return each candidate's gain over the defaults; None if a run of either has no return.

    Intervals are Welch's t (1947, Biometrika 34:28, unequal variances) at level
    1 - (1 - CONFIDENCE) / k for k candidates (Bonferroni): all k hold together, so the winner's
    does although it was selected. Without any spread the interval is the difference itself.
    ``candidates`` and ``default`` hold one return per fresh seed.
    """
    level = 1 - (1 - CONFIDENCE) / max(len(candidates), 1)
    sign = 1.0 if is_maximised else -1.0
    return {number: _gain(returns, default, sign, level) for number, returns in candidates.items()}


def _gain(
    candidate: Sequence[float | None], default: Sequence[float | None], sign: float, level: float
) -> Gain | None:
    ours = [sign * value for value in all_known(candidate)]
    theirs = [sign * value for value in all_known(default)]
    if min(len(ours), len(theirs)) < 2:
        return None
    mean = statistics.fmean(ours) - statistics.fmean(theirs)
    errors = [statistics.variance(values) / len(values) for values in (ours, theirs)]
    if not (error := sum(errors)):
        return Gain(mean, mean, mean)
    sizes = (len(ours), len(theirs))
    dof = error**2 / sum(e**2 / (size - 1) for e, size in zip(errors, sizes))
    half = float(stdtrit(dof, (1 + level) / 2)) * math.sqrt(error)
    return Gain(mean, mean - half, mean + half)
