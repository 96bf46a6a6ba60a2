"""The moderated variance against Smyth's formulas written out anew, and who lends to whom."""

import math
import statistics

import optuna
import pytest
from optuna.pruners import MedianPruner, NopPruner, SuccessiveHalvingPruner
from scipy import optimize, special, stats

from ppo_lab.studies.definition.pruning import SPREAD, ConfidencePruner, Spread, moderated, report

# Of 3, 4 and 5 seeds; they differ more than samples of one variance would.
OTHERS = [Spread(0.2, 3), Spread(3.0, 4), Spread(0.02, 5), Spread(9.0, 3), Spread(1.0, 4)]

# Little more than samples would: the prior is strong, but not all.
ALIKE = [Spread(v, 3) for v in (0.05, 0.4, 1.0, 2.0, 7.0)]

# Of an excess below 1: the prior is strong, and not all.
MILD = [Spread(v, 3) for v in (0.15, 0.5, 1.0, 2.0, 6.5)]


def smyth(own, others):
    """Return s^2 and its degrees of freedom (Smyth 2004, section 6.2), the prior by bisection."""
    pool = [own, *others]
    floor = 1e-5 * statistics.median(v for v, _ in pool)
    e, trigammas = [], []
    for variance, num_seeds in pool:
        half = (num_seeds - 1) / 2
        e.append(math.log(max(variance, floor)) - special.digamma(half) + math.log(half))
        trigammas.append(special.polygamma(1, half))
    excess = statistics.variance(e) - statistics.fmean(trigammas)
    half = optimize.brentq(lambda y: special.polygamma(1, y) - excess, 1e-3, 1e6, xtol=1e-12)
    prior = math.exp(statistics.fmean(e) + special.digamma(half) - math.log(half))
    dof = own.num_seeds - 1
    variance = (2 * half * prior + dof * own.variance) / (2 * half + dof)
    return variance, min(2 * half + dof, sum(n - 1 for _, n in pool))


@pytest.mark.parametrize("own", [Spread(0.5, 4), Spread(0.0, 3), Spread(50.0, 5)])
@pytest.mark.parametrize(
    "others",
    [OTHERS, [*OTHERS, Spread(0.0, 3)], ALIKE, MILD],
    ids=["positive", "zero", "alike", "mild"],
)
def test_a_moderated_variance_is_smyths(own, others):
    assert moderated(own, others) == pytest.approx(smyth(own, others), rel=1e-6)


def test_all_degrees_of_freedom_are_the_most_that_a_prior_lends():
    # Variances that agree almost as well as samples would: d0 is large, but not the trials' sum.
    others = [Spread(v, 3) for v in (0.12, 0.5, 1.0, 2.0, 4.5)]
    variance, dof = moderated(Spread(1.0, 3), others)
    assert dof == 2 * 6
    assert 0.5 < variance < 4.0


def test_five_trials_are_the_fewest_that_lend():
    own, other = Spread(2.0, 3), Spread(1.0, 3)
    assert moderated(own, [other] * 3) == (2.0, 2)
    assert moderated(own, [other] * 4) != (2.0, 2)


@pytest.mark.parametrize(
    ("variance", "num_seeds", "confidence"), [(4.0, 4, 0.95), (1.0, 2, 0.9), (9.0, 9, 0.5)]
)
def test_a_bound_alone_is_students(variance, num_seeds, confidence):
    pruner = ConfidencePruner(NopPruner(), confidence=confidence)
    t = stats.t.ppf(confidence, num_seeds - 1)
    expected = t * math.sqrt(variance / num_seeds)
    found = pruner.half_width(Spread(variance, num_seeds), [])
    assert found == pytest.approx(expected, abs=1e-12)


class Watched(MedianPruner):
    """Keeps the values it was shown."""

    def __init__(self):
        super().__init__(n_startup_trials=0)
        self.seen = []

    def prune(self, study, trial):
        self.seen.append(dict(trial.intermediate_values))
        return super().prune(study, trial)


@pytest.mark.parametrize(("direction", "sign"), [("maximize", 1), ("minimize", -1)])
def test_the_others_at_the_same_mark_lend_and_the_trial_itself_does_not(direction, sign):
    inner = Watched()
    pruner = ConfidencePruner(inner, confidence=0.95)
    study = optuna.create_study(direction=direction, pruner=pruner)
    for variance, _ in OTHERS:
        trial, d = study.ask(), math.sqrt(variance)
        report(trial, 10, [-d, 0.0, d])  # of three seeds, variance d^2
        report(trial, 20, [-7.0, 0.0, 7.0])  # another mark lends nothing
        study.tell(trial, 0.0)
    trial = study.ask()
    report(trial, 10, [4.0, 5.0, 6.0])
    trial.should_prune()
    variance, dof = smyth(Spread(1.0, 3), [Spread(v, 3) for v, _ in OTHERS])
    width = stats.t.ppf(0.95, dof) * math.sqrt(variance / 3)
    assert inner.seen[-1] == {10: pytest.approx(5.0 + sign * width, rel=1e-6)}
    assert study.trials[-1].user_attrs["spread"] == {"10": [1.0, 3]}
    assert SPREAD == "spread"  # stored in databases


def test_a_trial_without_a_report_is_the_wrapped_pruners_to_judge():
    inner = Watched()
    study = optuna.create_study(pruner=ConfidencePruner(inner, confidence=0.95))
    assert study.ask().should_prune() is False
    assert inner.seen == [{}]


def test_a_rung_that_was_filled_before_keeps_its_own_mean():
    halving = SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)
    study = optuna.create_study(
        direction="maximize", pruner=ConfidencePruner(halving, confidence=0.95)
    )
    trial = study.ask()
    for step, mean in ((10, 3.0), (20, 5.0)):
        report(trial, step, [mean - 1.0, mean, mean + 1.0])
        assert not trial.should_prune()
    rungs = study.trials[0].system_attrs
    assert (rungs["completed_rung_0"], rungs["completed_rung_1"]) == (3.0, 5.0)
