"""Pruning on the confidence bound of the mean over seeds."""

import math

import optuna
import pytest
from optuna.pruners import (
    HyperbandPruner,
    MedianPruner,
    NopPruner,
    PatientPruner,
    SuccessiveHalvingPruner,
)
from optuna.trial import TrialState
from scipy.special import polygamma

from benchmarks.pruning import draw_arms, run_study
from ppo_lab.studies.definition.pruning import (
    SPREAD,
    ConfidencePruner,
    Spread,
    _inverse_trigamma,
    moderated,
    report,
)


def study_with(finals, *, pruner, direction="maximize", spread=()):
    """A study with one finished trial per entry of ``finals``, each with seeds at -d, 0, +d."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    for final, d in zip(finals, spread or [0.0] * len(finals)):
        trial = study.ask()
        report(trial, 10, [final - d, final, final + d])
        study.tell(trial, final)
    return study


def test_a_report_is_the_mean_and_keeps_the_variance():
    study = optuna.create_study(direction="maximize")
    trial = study.ask()
    # mean 3; deviations -2, -1, 3: variance (4 + 1 + 9) / 2 = 7
    assert report(trial, 10, [1.0, 2.0, 6.0])
    report(trial, 20, [5.0, 5.0, 5.0])
    (frozen,) = study.trials
    assert frozen.intermediate_values == {10: 3.0, 20: 5.0}
    assert frozen.user_attrs[SPREAD] == {"10": [7.0, 3], "20": [0.0, 3]}


@pytest.mark.parametrize("missing", [None, math.nan, -math.inf])
def test_nothing_is_told_before_every_seed_has_a_return(missing):
    study = optuna.create_study()
    trial = study.ask()
    assert not report(trial, 10, [1.0, missing])
    assert study.trials[0].intermediate_values == {}
    assert not trial.should_prune()


def test_one_seed_has_no_spread():
    study = optuna.create_study()
    trial = study.ask()
    assert report(trial, 10, [1.5])
    assert study.trials[0].intermediate_values == {10: 1.5}
    assert SPREAD not in study.trials[0].user_attrs


@pytest.mark.parametrize(
    ("seeds", "is_pruned"),
    [
        # Three seeds m - 1, m, m + 1: s = 1; with three trials too few to learn from (t with 2
        # degrees of freedom at 95 % = 2.9200), the bound is m + 2.92 / sqrt(3) = m + 1.6859.
        # The median of the finished trials, 0, 10 and 20, is 10.
        ([7.3, 8.3, 9.3], True),  # bound 9.986
        ([7.4, 8.4, 9.4], False),  # bound 10.086
        # Two seeds m +- 0.5: s = sqrt(0.5), t with 1 degree of freedom 6.3138: m + 3.1569
        ([6.3, 7.3], True),  # 6.8 + 3.157 = 9.957
        ([6.4, 7.4], False),  # 6.9 + 3.157 = 10.057
        ([9.9], True),  # one seed: the plain rule
        ([10.1], False),
    ],
)
def test_a_trial_is_pruned_when_its_bound_is_below_the_median(seeds, is_pruned):
    pruner = ConfidencePruner(MedianPruner(n_startup_trials=3), confidence=0.95)
    study = study_with([0.0, 10.0, 20.0], pruner=pruner)
    trial = study.ask()
    report(trial, 10, seeds)
    assert trial.should_prune() is is_pruned
    assert study.trials[-1].intermediate_values == {10: pytest.approx(sum(seeds) / len(seeds))}


def test_minimising_mirrors_the_bound():
    pruner = ConfidencePruner(MedianPruner(n_startup_trials=3), confidence=0.95)
    study = study_with([0.0, 10.0, 20.0], pruner=pruner, direction="minimize")
    for centre, is_pruned in [(11.7, True), (11.6, False)]:  # bounds 10.014 and 9.914
        trial = study.ask()
        report(trial, 10, [centre - 1, centre, centre + 1])
        assert trial.should_prune() is is_pruned


def test_trials_that_agree_lend_each_other_their_spread():
    # Six trials of variance 1 and 2 degrees of freedom: no spread in the variances, so d0 is
    # infinite, v0 = exp(mean(log 1 - digamma(1) + log(1))) = exp(0.57722) = 1.7811 (the mean of a
    # log variance lies below the log of the mean), and the bound has all 12 degrees of freedom.
    variance, dof = moderated(Spread(1.0, 3), [Spread(1.0, 3)] * 5)
    assert variance == pytest.approx(math.exp(0.5772157))
    assert dof == 12


def test_mostly_ceilings_lend_nothing():
    assert moderated(Spread(2.0, 3), [Spread(0.0, 3)] * 9) == (2.0, 2)


@pytest.mark.parametrize("y", [0.01, 0.5, 1.0, 20.0, 1e4])
def test_the_inverse_of_trigamma(y):
    assert _inverse_trigamma(float(polygamma(1, y))) == pytest.approx(y, rel=1e-6)


@pytest.mark.parametrize(
    "inner",
    [
        SuccessiveHalvingPruner(min_resource=10, reduction_factor=2),
        HyperbandPruner(min_resource=10, max_resource=20, reduction_factor=2),
    ],
    ids=["halving", "hyperband"],
)
def test_halvings_rungs_hold_means_not_bounds(inner):
    study = study_with(
        [float(i) for i in range(20)],
        pruner=ConfidencePruner(inner, confidence=0.95),
        spread=[0.5] * 20,
    )
    for number in range(20, 30):
        trial = study.ask()
        report(trial, 10, [2.0, 3.0, 4.0])
        trial.should_prune()
        rungs = {
            key: value
            for key, value in study.trials[number].system_attrs.items()
            if key.startswith("completed_rung")
        }
        assert set(rungs.values()) <= {3.0}
    assert any("completed_rung_0" in trial.system_attrs for trial in study.trials)


def test_halving_spares_a_trial_whose_bound_is_among_the_best():
    # Five values, 8 to 0, and this trial at 7 +- 5: its bound is in the better half, its mean not.
    def decision(pruner):
        study = optuna.create_study(direction="maximize", pruner=pruner)
        for final in [8.0, 7.5, 7.4, 7.3, 0.0]:
            trial = study.ask()
            report(trial, 10, [final - 5, final, final + 5])
            trial.should_prune()
            study.tell(trial, final)
        trial = study.ask()
        report(trial, 10, [2.0, 7.0, 12.0])
        return trial.should_prune()

    halving = SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)
    assert decision(halving)
    assert not decision(ConfidencePruner(halving, confidence=0.95))


def test_a_confidence_of_one_half_is_the_plain_rule():
    pruner = ConfidencePruner(MedianPruner(n_startup_trials=3), confidence=0.5)
    study = study_with([0.0, 10.0, 20.0], pruner=pruner)
    for centre, is_pruned in [(9.9, True), (10.1, False)]:
        trial = study.ask()
        report(trial, 10, [centre - 5, centre, centre + 5])
        assert trial.should_prune() is is_pruned


def test_the_bound_reads_what_another_process_stored(tmp_path):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    pruner = ConfidencePruner(MedianPruner(n_startup_trials=5), confidence=0.95)
    study = optuna.create_study(
        storage=storage, study_name="s", direction="maximize", pruner=pruner
    )
    for _ in range(5):
        trial = study.ask()
        report(trial, 10, [9.9, 10.0, 10.1])
        study.tell(trial, 10.0)
    trial = study.ask()
    report(trial, 10, [8.9, 9.5, 10.1])  # own t interval: 9.5 + 2.92 * 0.6 / 1.73 = 10.51, kept
    reloaded = optuna.load_study(storage=storage, study_name="s", pruner=pruner)
    frozen = reloaded.trials[-1]
    assert frozen.state is TrialState.RUNNING
    lent = pruner.half_width(Spread(0.36, 3), [Spread(0.01, 3)] * 5)
    alone = pruner.half_width(Spread(0.36, 3), [])
    assert lent < 0.4 * alone
    assert pruner.prune(reloaded, frozen) is (9.5 + lent < 10.0)


def test_the_best_arm_survives_and_steps_are_saved():
    # benchmarks/pruning.py in small. Its noise is fixed by the seeds, so the counts are too.
    def outcomes(pruner):
        arms = [draw_arms(seed, noise=0.1, num_arms=25, num_seeds=3) for seed in range(12)]
        return [run_study(*drawn, pruner()) for drawn in arms]

    def median():
        return MedianPruner(n_startup_trials=5, n_warmup_steps=4)

    plain = outcomes(median)
    bound = outcomes(lambda: ConfidencePruner(median(), confidence=0.95))
    never = outcomes(NopPruner)
    assert sum(outcome.is_best_pruned for outcome in bound) == 0
    assert sum(outcome.is_best_pruned for outcome in plain) >= 1
    assert sum(outcome.saved_frac for outcome in bound) / 12 >= 0.35
    assert all(outcome.saved_frac == 0 for outcome in never)


def test_patience_is_judged_on_means():
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        pruner = PatientPruner(
            ConfidencePruner(MedianPruner(n_startup_trials=1), confidence=0.95), patience=1
        )
    study = optuna.create_study(direction="maximize", pruner=pruner)
    first = study.ask()
    for step in (10, 20, 30):
        report(first, step, [10.0, 10.0, 10.0])
    study.tell(first, 10.0)
    trial = study.ask()
    # Below the median from the start, but better at each mark: patience holds the pruner back.
    for step, value in [(10, 1.0), (20, 2.0), (30, 3.0)]:
        report(trial, step, [value - 0.1, value, value + 0.1])
        assert not trial.should_prune()
    report(trial, 40, [1.0, 1.1, 1.2])
    report(trial, 50, [1.0, 1.1, 1.2])
    assert not trial.should_prune()  # no other trial to compare with at step 50
