"""Importance, Pareto fronts and gains, on studies made by hand."""

import math
import random

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState, create_trial
from scipy.special import stdtrit

from ppo_lab.config.study import Aggregate
from ppo_lab.studies.results.statistics import (
    Gain,
    compare_with_default,
    half_width,
    importance,
    pareto,
)

UNIT = FloatDistribution(0.0, 1.0)


def trial(value, *, state=TrialState.COMPLETE, **params):
    several = isinstance(value, tuple)
    choice = CategoricalDistribution(("a", "b"))
    return create_trial(
        state=state,
        params=params,
        distributions={key: choice if key == "memory" else UNIT for key in params},
        values=(list(value) if several else [value]) if state is TrialState.COMPLETE else None,
    )


def test_what_decides_the_return_is_what_is_important():
    study = optuna.create_study(direction="maximize")
    for i in range(40):
        x, y = (i * 0.618) % 1, (i * 0.414) % 1
        study.add_trial(trial(x, x=x, y=y))
    shares = importance(study)
    assert list(shares) == ["x", "y"]
    assert shares["x"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_pruned_trials_tell_what_the_finished_have_in_common():
    # x below 0.7 is pruned. Among the finished, x matters little and y most; over all trials, x.
    study = optuna.create_study(direction="maximize")
    for i in range(60):
        x, y = (i * 0.618) % 1, (i * 0.414) % 1
        state = TrialState.COMPLETE if x > 0.7 else TrialState.PRUNED
        study.add_trial(trial(1.0 + 0.1 * y, state=state, x=x, y=y))
    finished = optuna.create_study(direction="maximize")
    finished.add_trials(study.get_trials(states=(TrialState.COMPLETE,)))
    assert next(iter(importance(finished))) == "y"
    assert next(iter(importance(study))) == "x"


def test_importance_of_a_conditional_choice():
    study = optuna.create_study(direction="maximize")
    for i in range(40):
        if i % 2:
            study.add_trial(trial(0.001 * i, memory="b"))
        else:
            study.add_trial(trial(1.0 + 0.001 * i, memory="a", x=(i * 0.618) % 1))
    assert set(importance(study)) == {"memory", "x"}


def test_importance_of_each_objective_by_itself():
    study = optuna.create_study(directions=["maximize", "minimize"])
    for i in range(40):
        x, y = (i * 0.618) % 1, (i * 0.414) % 1
        study.add_trial(trial((x, y), x=x, y=y))
    assert next(iter(importance(study, 0))) == "x"
    assert next(iter(importance(study, 1))) == "y"


def test_too_few_or_equal_trials_say_nothing():
    study = optuna.create_study(direction="maximize")
    study.add_trials([trial(float(i), x=i / 9) for i in range(9)])
    assert importance(study) is None
    level = optuna.create_study(direction="maximize")
    level.add_trials([trial(500.0, x=i / 20) for i in range(20)])
    assert importance(level) is None


def test_the_pareto_front_holds_what_nothing_beats():
    # Return up, VRAM down: (3, 3) is beaten by (3, 2); (1, 1), (3, 2) and (5, 9) are not.
    study = optuna.create_study(directions=["maximize", "minimize"])
    for values in [(1, 1), (3, 3), (3, 2), (5, 9)]:
        study.add_trial(trial(tuple(map(float, values)), x=0.5))
    front = pareto(study)
    assert [row.number for row in front] == [3, 2, 0]
    assert front[0].values == [5.0, 9.0]


def test_a_gain_has_welchs_interval():
    # Means 12 and 10, variances 1 and 4 over 3 seeds: standard error sqrt(1/3 + 4/3) = 1.29099;
    # degrees of freedom (5/3)^2 / ((1/3)^2 / 2 + (4/3)^2 / 2) = 2.941; t at 97.5 % is 3.2196 there.
    gains = compare_with_default({7: [11.0, 12.0, 13.0]}, [8.0, 10.0, 12.0], is_maximised=True)
    gain = gains[7]
    assert gain.mean == 2.0
    assert gain.high - 2.0 == pytest.approx(2.0 - gain.low) == pytest.approx(4.156, abs=2e-3)
    assert math.sqrt(5 / 3) == pytest.approx(1.29099, abs=1e-5)


def test_the_intervals_are_those_of_scipy():
    # What replaces the import of scipy.stats, which takes longer than all else of a confirmation.
    from scipy.stats import mstats, ttest_ind

    pick = random.Random(3)
    for num_seeds in range(2, 12):
        ours = [pick.gauss(10, 2) for _ in range(num_seeds)]
        theirs = [pick.gauss(8, 5) for _ in range(4)]
        gain = compare_with_default({1: ours}, theirs, is_maximised=True)[1]
        expected = ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
        assert (gain.low, gain.high) == pytest.approx((expected.low, expected.high))
        if num_seeds >= 4:
            error = half_width(ours, Aggregate.iqm) / stdtrit(
                num_seeds - 2 * (num_seeds // 4) - 1, 0.975
            )
            assert error == pytest.approx(float(mstats.trimmed_stde(ours, limits=(0.25, 0.25))))


def test_more_candidates_widen_every_interval():
    one = compare_with_default({1: [11.0, 12.0, 13.0]}, [8.0, 10.0, 12.0], is_maximised=True)
    three = compare_with_default(
        {1: [11.0, 12.0, 13.0], 2: [9.0, 9.0, 9.3], 3: [13.0, 9.0, 9.0]},
        [8.0, 10.0, 12.0],
        is_maximised=True,
    )
    # 97.5 % becomes 1 - 0.05 / 6 = 99.17 %
    assert three[1].high > one[1].high + 1
    assert three[2].mean == pytest.approx(-0.9)


def test_a_worse_candidate_has_a_negative_gain_and_less_may_be_better():
    for is_maximised, mean in ((True, -4.0), (False, 4.0)):
        found = compare_with_default({4: [1.0, 2.0]}, [5.0, 6.0], is_maximised=is_maximised)
        assert found[4].mean == mean


def test_without_any_spread_the_interval_is_the_difference():
    found = compare_with_default({4: [500.0, 500.0]}, [400.0, 400.0], is_maximised=True)
    assert found[4] == Gain(100.0, 100.0, 100.0)


def test_a_candidate_with_a_lost_run_has_no_gain():
    found = compare_with_default(
        {4: [500.0, None], 5: [401.0, 402.0]}, [400.0, 400.5], is_maximised=True
    )
    assert found[4] is None
    assert found[5] is not None
    assert compare_with_default({5: [1.0, 2.0]}, [0.0, None], is_maximised=True)[5] is None
