"""What a finished run amounts to, on made-up curves on each side of each threshold."""

import random

import pytest

from ppo_lab.training.scores import (
    History,
    area_under_curve,
    has_collapsed,
    is_dead,
    policy_state,
)


def collapsed(returns, random_return=0.0, target_return=100.0):
    return has_collapsed(returns, random_return=random_return, target_return=target_return)


# Ten entries, so a window is one entry. From 0 to 100 a rise is 20 or more, and a fall leaves less
# than half of the best gain.
@pytest.mark.parametrize(
    ("best", "last", "expected"),
    [
        (20.0, 9.9, True),
        (20.0, 10.0, False),  # kept exactly half
        (19.9, 0.0, False),  # never rose
        (100.0, 49.0, True),
        (100.0, 51.0, False),
        (100.0, -30.0, True),  # below random
        (100.0, 100.0, False),
    ],
)
def test_a_collapse_is_a_rise_of_a_fifth_and_then_the_loss_of_half_of_it(best, last, expected):
    returns = [0.0, 0.0, 5.0, 10.0, best, best, 50.0 if best > 50 else 5.0, 0.0, 0.0, last]
    assert collapsed(returns) is expected
    # The same where all returns are negative, as Pendulum's are: -1238 is random, -438 good.
    scaled = [-1238.0 + 8.0 * r for r in returns]
    assert collapsed(scaled, -1238.0, -438.0) is expected
    # And where less is better.
    assert collapsed([-r for r in returns], 0.0, -100.0) is expected


def test_a_gain_is_counted_from_random_and_not_from_the_first_return():
    # Starts at 50 and ends at 24: of a best gain of 50 less than half is left.
    assert collapsed([50.0] * 9 + [24.0]) is True
    assert collapsed([50.0] * 9 + [26.0]) is False


def test_windows_are_a_tenth_of_the_run_so_one_lucky_entry_is_no_rise():
    # Thirty entries, windows of three: a single 50 among zeros averages 16.7 < 20.
    assert collapsed([0.0] * 15 + [50.0] + [0.0] * 14) is False
    assert collapsed([0.0] * 15 + [50.0] * 3 + [0.0] * 12) is True
    # And one bad entry at the end is no fall: (100 + 100 + 0) / 3 is more than half.
    assert collapsed([100.0] * 29 + [0.0]) is False


def collapsed_by_definition(returns):
    """Add up every window on its own, in time quadratic in the length of the run."""
    width = len(returns) // 10
    gains = [sum(returns[i : i + width]) / width for i in range(len(returns) - width + 1)]
    return max(gains) >= 20.0 and gains[-1] < 0.5 * max(gains)


@pytest.mark.parametrize("whole", [True, False])
def test_every_window_counts_as_if_it_were_added_up_on_its_own(whole):
    drawn, found = random.Random(3), []
    for _ in range(400):
        peaks = [drawn.uniform(0.0, 60.0) for _ in range(6)]
        returns = [peak * drawn.random() for peak in peaks for _ in range(drawn.randrange(2, 30))]
        if whole:  # many equal windows
            returns = [float(round(value)) for value in returns]
        found.append(collapsed(returns))
        assert found[-1] is collapsed_by_definition(returns)
    assert min(found.count(True), found.count(False)) > 50


def test_a_run_of_fewer_than_ten_entries_cannot_be_judged():
    assert collapsed([]) is None
    assert collapsed([100.0] * 5 + [0.0] * 4) is None
    assert collapsed([100.0] * 5 + [0.0] * 5) is True


def dead(returns=(20.0,), entropy_fracs=(0.009,) * 10, kls=(9e-5,) * 10):
    return is_dead(returns, entropy_fracs, kls, random_return=22.0)


def test_a_policy_is_dead_when_it_is_certain_still_and_no_better_than_random():
    assert dead() is True
    assert dead(returns=[500.0, 22.0]) is True  # exactly random is no better
    assert dead(returns=[0.0, 22.1]) is False
    assert dead(entropy_fracs=[0.009] * 9 + [0.01]) is False
    assert dead(kls=[9e-5] * 9 + [1e-4]) is False


def test_only_the_last_ten_updates_count_and_each_of_them_does():
    assert dead(entropy_fracs=[0.9] + [0.0] * 10, kls=[5.0] + [0.0] * 10) is True
    assert dead(entropy_fracs=[0.0] * 5 + [0.02] + [0.0] * 9) is False
    assert dead(kls=[0.0] * 5 + [0.02] + [0.0] * 9) is False


def test_death_cannot_be_told_without_returns_or_a_largest_entropy():
    assert dead(returns=[]) is None
    assert dead(entropy_fracs=[]) is None  # continuous actions
    assert dead(entropy_fracs=[0.0] * 9) is None


def test_the_area_under_the_curve_is_its_mean_over_steps():
    # Trapezoids: 10 * (0 + 10) / 2 = 50 and 20 * (10 + 30) / 2 = 400, over 30 steps: 15.
    assert area_under_curve([10, 20, 40], [0.0, 10.0, 30.0]) == 15.0
    assert area_under_curve([10], [7.0]) == 7.0
    assert area_under_curve([], []) is None


def test_the_final_return_is_the_mean_of_the_last_hundred_episodes():
    history = History()
    history.add(1000, [], 0.9, 0.01)
    assert history.final_return is None
    assert history.best_return is None
    history.add(2000, [10.0, 20.0], 0.8, 0.02)
    assert history.final_return == 15.0  # of all, as there are fewer than 100
    history.add(3000, [float(i) for i in range(150)], 0.7, 0.03)
    assert history.final_return == 99.5  # 50 .. 149
    history.add(4000, [0.0] * 50, None, 0.04)
    assert history.final_return == 62.25  # (100 + .. + 149 = 6225, and fifty zeros) / 100
    history.add(5000, [], None, 0.05)
    assert history.final_return == 62.25
    assert history.best_return == 99.5
    assert history.num_episodes == 202


def test_a_history_has_no_curve_before_the_first_episode_ends():
    history = History()
    history.add(1000, [], 0.9, 0.01)
    history.add(2000, [4.0], 0.8, 0.02)
    history.add(3000, [], None, 0.03)
    assert (history.steps, history.returns) == ([2000, 3000], [4.0, 4.0])
    assert history.entropy_fracs == [0.9, 0.8]
    assert history.kls == [0.01, 0.02, 0.03]


def test_the_state_of_a_run_so_far_is_that_of_its_scores():
    # 5 windows of 20 returns at 0, then 90, then 20 of a good 100: less than half of the gain.
    fallen = History(returns=[0.0] * 50 + [90.0] * 100 + [20.0] * 50)
    assert policy_state(fallen, (0.0, 100.0)) == "collapsed"
    assert policy_state(fallen, None) == ""
    assert policy_state(History(returns=fallen.returns[:150]), (0.0, 100.0)) == ""
    # Of costs, such as Acrobot's -500 to -80, the same.
    costs = [-500.0 + 4.0 * value for value in fallen.returns]
    assert policy_state(History(returns=costs), (-500.0, -100.0)) == "collapsed"
    dead = History(returns=[9.0] * 10, entropy_fracs=[0.0] * 10, kls=[0.0] * 10)
    assert policy_state(dead, (22.0, 500.0)) == "dead"
    assert policy_state(History(), (22.0, 500.0)) == ""


@pytest.mark.parametrize("seed", range(5))
def test_the_state_says_collapsed_exactly_where_the_full_search_does(seed):
    noise = random.Random(seed)
    level, returns = 0.0, []
    for _ in range(200):
        level = min(max(level + noise.gauss(0.5, 12.0), 0.0), 100.0)
        returns.append(level)
        expected = has_collapsed(returns, random_return=0.0, target_return=100.0)
        state = policy_state(History(returns=returns), (0.0, 100.0))
        assert (state == "collapsed") is bool(expected)
