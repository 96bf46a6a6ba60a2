"""Pruning of trials with several seeds, by a confidence bound of their mean.

At each mark a trial reports the mean return of its n seeds, and that mean is stored. The pruner
compares the mean's one-sided confidence bound on the favourable side,

    mean + t(confidence, dof) * s / sqrt(n)        (maximise; minus for minimise),

so a trial is pruned only when that bound is beyond the pruner's threshold. Of n = 2 or 3 seeds
the standard deviation is poorly known: t(0.95, 1) = 6.3 and t(0.95, 2) = 2.9, against 1.6 for a
known one. The seeds of other trials at the same mark help, but only in part, since seeds of a
fragile setting differ more. So s is Smyth's moderated standard deviation, which shrinks the trial's
own variance v (n - 1 degrees of freedom) towards the study's, more so the better the variances of
its trials agree:

    s^2 = (d0 * v0 + (n - 1) * v) / (d0 + n - 1),    dof = d0 + n - 1,

with v0 and d0 fitted to the trials' variances at the mark (Smyth 2004, Stat. Appl. Genet. Mol.
Biol. 3(1):3, sections 3 and 6.2, https://doi.org/10.2202/1544-6115.1027). Where they agree d0 is
large and the bound is that of a known deviation; where they differ widely d0 is near 0 and the
bound is the trial's own t interval. It is not corrected for repeated tests at several marks.

With one seed there is no deviation, and the pruner compares the value itself, as in Optuna.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from optuna.pruners import BasePruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial
from scipy.special import digamma, polygamma, stdtrit

from ppo_lab.studies.definition.objective import all_known

__all__ = ["SPREAD", "ConfidencePruner", "Spread", "moderated", "report"]

SPREAD = "spread"
"""User attribute of a trial: mark to [variance of the seeds' returns, number of seeds]."""

_FEWEST_TRIALS = 5  # to fit a prior to their variances; Optuna's pruners start at 5
_RUNG = "completed_rung_"  # prefix of the system attributes of Optuna's successive halving


class Spread(NamedTuple):
    """Variance between the seeds of a trial at one mark."""

    variance: float
    num_seeds: int


def report(trial: Trial, step: int, returns: Sequence[float | None]) -> bool:
    """Report the mean of ``returns``, one per seed, at environment step ``step``.

    Returns False and reports nothing unless every seed has a finite return, since means over fewer
    seeds are not comparable.
    """
    if not (known := all_known(returns)):
        return False
    if len(known) > 1:
        spread = {str(step): [statistics.variance(known), len(known)]}
        trial.set_user_attr(SPREAD, trial.user_attrs.get(SPREAD, {}) | spread)
    trial.report(statistics.fmean(known), step)
    return True


class ConfidencePruner(BasePruner):
    """Gives another pruner the confidence bound of a trial's last value in place of the value."""

    def __init__(self, wrapped: BasePruner, *, confidence: float) -> None:
        """Wrap a pruner that compares trials with each other; ``confidence`` is one-sided."""
        self.wrapped, self.confidence = wrapped, confidence

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Return whether the wrapped pruner would prune ``trial`` even at its bound."""
        step = trial.last_step
        own = None if step is None else _spread(trial, step)
        if step is None or own is None:
            return bool(self.wrapped.prune(study, trial))  # Optuna returns numpy.bool
        trials = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        others = [spread for t in trials if (spread := _spread(t, step)) is not None]
        width = self.half_width(own, others)
        is_maximised = study.direction is StudyDirection.MAXIMIZE
        mean, view = trial.intermediate_values[step], copy.copy(trial)
        bound = mean + width if is_maximised else mean - width
        view.intermediate_values = trial.intermediate_values | {step: bound}
        is_pruned = bool(self.wrapped.prune(study, view))
        _keep_means(study, trial, mean)
        return is_pruned

    def half_width(self, own: Spread, others: Sequence[Spread]) -> float:
        """Return the distance of the bound from the trial's mean; see the module's formula."""
        variance, dof = moderated(own, others)
        return float(stdtrit(dof, self.confidence)) * math.sqrt(variance / own.num_seeds)


def moderated(own: Spread, others: Sequence[Spread]) -> tuple[float, float]:
    """Return a trial's variance, shrunk towards those of ``others``, and its degrees of freedom.

    Zero variances (all seeds at a task's ceiling) have no logarithm: as in limma's fitFDist, they
    are raised to 1e-5 of the median for the fit. Where the median is zero nothing is shrunk.
    """
    own_dof = own.num_seeds - 1
    pool = [own, *others]
    floor = 1e-5 * statistics.median(spread.variance for spread in pool)
    if len(pool) < _FEWEST_TRIALS or floor == 0.0:
        return own.variance, own_dof
    dofs = np.array([spread.num_seeds - 1 for spread in pool], dtype=float)
    variances = np.array([max(spread.variance, floor) for spread in pool])
    prior_dof, prior_variance = _fit_prior(variances, dofs)
    if math.isinf(prior_dof):
        return prior_variance, float(dofs.sum())
    variance = (prior_dof * prior_variance + own_dof * own.variance) / (prior_dof + own_dof)
    return variance, min(prior_dof + own_dof, float(dofs.sum()))


def _fit_prior(variances: np.ndarray, dofs: np.ndarray) -> tuple[float, float]:
    """Return d0 and v0, fitted to the moments of the log variances (Smyth 2004, section 6.2)."""
    centred = np.log(variances) - digamma(dofs / 2) + np.log(dofs / 2)
    mean = float(centred.mean())
    excess = float(centred.var(ddof=1) - polygamma(1, dofs / 2).mean())
    if excess <= 0:  # the variances differ no more than samples of one variance would
        return math.inf, math.exp(mean)
    half_dof = _inverse_trigamma(excess)
    return 2 * half_dof, math.exp(mean + float(digamma(half_dof)) - math.log(half_dof))


def _inverse_trigamma(value: float) -> float:
    """Return y with trigamma(y) = ``value`` > 0.

    Newton's method on 1 / trigamma, which is convex (Smyth 2004, appendix): from 1/2 + 1/value it
    converges in fewer than ten steps.
    """
    y = 0.5 + 1.0 / value
    for _ in range(50):
        trigamma = float(polygamma(1, y))
        step = trigamma * (1 - trigamma / value) / float(polygamma(2, y))
        y += step
        if abs(step) < 1e-8 * y:
            break
    return y


def _spread(trial: FrozenTrial, step: int) -> Spread | None:
    stored = trial.user_attrs.get(SPREAD, {}).get(str(step))
    return None if stored is None else Spread(*stored)


def _keep_means(study: Study, trial: FrozenTrial, mean: float) -> None:
    """Store the mean in place of the bound in rungs that the pruner has just filled.

    Optuna's successive halving stores the value it was given, and compares later trials with it.
    Comparing bounds with bounds would favour noise. Its pruners use the same storage call.
    """
    storage, trial_id = study._storage, trial._trial_id
    for key in storage.get_trial_system_attrs(trial_id):
        if key.startswith(_RUNG) and key not in trial.system_attrs:
            storage.set_trial_system_attr(trial_id, key, mean)
