"""Critic-free advantages, by hand and against plain versions of the published formulas."""

import numpy as np
import pytest
import torch
import yaml

from ppo_lab.ppo.baselines import (
    BASELINES,
    AutoBaseline,
    GroupBaseline,
    Grpo,
    PerStep,
    ReinforcePP,
    dr_grpo,
    grpo,
    no_signal_frac,
    per_step,
    reinforce_pp,
    return_to_go,
    rloo,
)
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR

# One group of three episodes with 3, 1 and 2 live steps; what dead steps hold does not matter.
LIVE = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 0, 0]], dtype=torch.bool).unsqueeze(1)  # (3, 1, 3)
REWARDS = torch.tensor([[1.0, 1.0, 2.0], [1.0, 9.0, 1.0], [4.0, 9.0, torch.nan]]).unsqueeze(1)
# Returns 6, 1 and 3 - hence R - 10/3 is 8/3, -7/3 and -1/3.
HALF, ONE = torch.tensor([0.5]), torch.tensor([1.0])


def spread(*advantages):
    """Return each episode's advantage at its live steps, 0 at the others."""
    return torch.where(LIVE, torch.tensor(advantages), 0.0)


def test_the_advantages_of_whole_episodes_are_those_worked_out_by_hand():
    rewards = torch.where(LIVE, REWARDS, 0.0)
    assert torch.allclose(dr_grpo(REWARDS, LIVE, 3), spread(8 / 3, -7 / 3, -1 / 3))
    # The others' means: (1 + 3) / 2, (6 + 3) / 2 and (6 + 1) / 2.
    assert torch.allclose(rloo(REWARDS, LIVE, 3), spread(4.0, -3.5, -0.5))
    # Squares 64/9 + 49/9 + 1/9 = 114/9 over n - 1 = 2: deviation sqrt(19/3) = 2.51661.
    assert torch.allclose(grpo(rewards, LIVE, 3), spread(1.059626, -0.927173, -0.132453))


def test_a_group_of_equal_returns_has_no_advantages_and_is_counted():
    live = torch.ones(2, 2, 4, dtype=torch.bool)
    # Lane 0: returns 3 3 | 3 3; lane 1: 3 3 | 1 4.
    rewards = torch.tensor([[[1.0, 2, 3, 0], [1, 2, 1, 4]], [[2.0, 1, 0, 3], [2, 1, 0, 0]]])
    assert no_signal_frac(rewards, live, 2).tolist() == [1.0, 0.5]
    for baseline in (grpo, dr_grpo, rloo):
        assert not baseline(rewards, live, 2)[:, 0].any()
        assert baseline(rewards, live, 2)[:, 1, 2:].all()


def test_rewards_of_dead_steps_do_not_make_a_signal():
    live = torch.tensor([[[True, True]], [[False, True]]])
    rewards = torch.tensor([[[2.0, 1.0]], [[7.0, 1.0]]])
    assert no_signal_frac(rewards, live, 2).tolist() == [1.0]


def test_in_a_group_of_one_the_mean_is_0_and_the_deviation_1():
    rewards, live = torch.tensor([[[3.0, -2.0]]]), torch.ones(1, 1, 2, dtype=torch.bool)
    assert torch.equal(dr_grpo(rewards, live, 1), rewards)
    assert torch.equal(rloo(rewards, live, 1), rewards)
    torch.testing.assert_close(grpo(rewards, live, 1), rewards / (1.0 + 1e-6))
    assert no_signal_frac(rewards, live, 1).tolist() == [0.0]


def test_the_return_to_go_is_discounted_within_the_episode():
    # 1 + 0.5 (1 + 0.5 * 4) = 2.5, 1 + 0.5 * 4 = 3, 4; 1; 2 + 0.5 = 2.5, 1.
    found = return_to_go(REWARDS, LIVE, HALF)[:, 0]
    assert found.tolist() == [[2.5, 1.0, 2.5], [3.0, 0.0, 1.0], [4.0, 0.0, 0.0]]


def test_per_step_subtracts_the_mean_of_those_that_are_live_at_the_step():
    # Means 2, 2 and 4 of (2.5, 1, 2.5), (3, 1) and (4).
    found = per_step(REWARDS, LIVE, HALF, 3)[:, 0]
    assert found.tolist() == [[0.5, -1.0, 0.5], [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]]


def test_reinforce_pp_whitens_the_return_to_go_over_all_live_steps():
    # 2.5 1 2.5 3 1 4: mean 14/6, squares 39.5 - 6 (14/6)^2 = 6.83333, deviation sqrt(6.83333 / 5).
    found = reinforce_pp(REWARDS, LIVE, HALF, 3, group_baseline=False)
    expected = (return_to_go(REWARDS, LIVE, HALF) - 14 / 6) / (6.833333 / 5) ** 0.5
    torch.testing.assert_close(found, expected.masked_fill(~LIVE, 0.0))


def test_the_group_baseline_of_reinforce_pp_subtracts_each_groups_mean_return_first():
    # With a reward at the end and no discount: returns 1, 3 | 10, 20, less 2 and 15 at all steps.
    live = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 1]], dtype=torch.bool).unsqueeze(1)
    rewards = torch.tensor([[0.0, 0.0, 10.0, 0.0], [1.0, 3.0, 0.0, 20.0]]).unsqueeze(1)
    # Live: -1, -5, 5 | -1, 1, 5. Mean 4/6, squares 78 - 16/6.
    centered = torch.tensor([[-1.0, 0.0, -5.0, 5.0], [-1.0, 1.0, 0.0, 5.0]]).unsqueeze(1)
    expected = (centered - 4 / 6) / ((78 - 16 / 6) / 5) ** 0.5
    found = reinforce_pp(rewards, live, ONE, 2, group_baseline=True)
    torch.testing.assert_close(found, expected.masked_fill(~live, 0.0))


def ragged(seed, num_steps=6, num_lanes=2, num_envs=12):
    """Return rewards (T, L, N) and live; prompts of 0 to 2 steps, then 1 to T - 2 live ones."""
    random = np.random.default_rng(seed)
    begin = random.integers(0, 3, (num_lanes, num_envs))
    end = begin + random.integers(1, num_steps - 1, (num_lanes, num_envs))
    steps = np.arange(num_steps)[:, None, None]
    rewards = random.normal(size=(num_steps, num_lanes, num_envs))
    return rewards, (begin <= steps) & (steps < end)


def plain_grpo(group):
    return [(r - np.mean(group)) / (np.std(group, ddof=1) + 1e-6) for r in group]


def plain_rloo(group):
    return [r - (sum(group) - r) / (len(group) - 1) for r in group]


def plain_dr_grpo(group):
    return [r - np.mean(group) for r in group]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("group_size", [2, 4, 12])
@pytest.mark.parametrize(
    ("baseline", "plain"), [(grpo, plain_grpo), (rloo, plain_rloo), (dr_grpo, plain_dr_grpo)]
)
def test_on_ragged_episodes_they_are_the_published_formulas(baseline, plain, group_size, seed):
    rewards, live = ragged(seed)
    found = baseline(torch.from_numpy(rewards), torch.from_numpy(live), group_size).numpy()
    for lane in range(2):
        for begin in range(0, 12, group_size):
            members = range(begin, begin + group_size)
            returns = [rewards[live[:, lane, n], lane, n].sum() for n in members]
            for n, advantage in zip(members, plain(returns), strict=True):
                expected = np.where(live[:, lane, n], advantage, 0.0)
                np.testing.assert_allclose(found[:, lane, n], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_on_ragged_episodes_per_step_is_the_return_less_the_mean_of_the_live(seed):
    rewards, live = ragged(seed)
    gamma = np.array([0.9, 1.0])
    found = per_step(*map(torch.from_numpy, (rewards, live, gamma)), 4).numpy()
    to_go = np.zeros_like(rewards)
    for t in reversed(range(len(rewards))):
        later = to_go[t + 1] if t + 1 < len(rewards) else 0.0
        to_go[t] = live[t] * (rewards[t] + gamma[:, None] * later)
    for t, lane, n in np.argwhere(live):
        group = slice(n // 4 * 4, n // 4 * 4 + 4)
        peers = to_go[t, lane, group][live[t, lane, group]]
        assert found[t, lane, n] == pytest.approx(to_go[t, lane, n] - peers.mean())
    assert not found[~live].any()


def choices():
    """Return every baseline that compares groups, and each option."""
    kinds = [kind for kind in BASELINES.values() if issubclass(kind, GroupBaseline)]
    return [*(kind(group_size=4) for kind in kinds), ReinforcePP(group_size=4, group_baseline=True)]


@pytest.mark.parametrize("baseline", choices(), ids=repr)
def test_a_lane_of_a_stack_is_the_lane_alone(baseline):
    rewards, live = map(torch.from_numpy, ragged(7))
    gamma = torch.tensor([0.9, 0.5], dtype=torch.float64)
    stacked = baseline.advantages(rewards, live, gamma)
    for lane in range(2):
        own = slice(lane, lane + 1)
        alone = baseline.advantages(rewards[:, own], live[:, own], gamma[own])
        assert torch.equal(stacked[:, own], alone)


@pytest.mark.parametrize("baseline", choices(), ids=repr)
def test_every_baseline_gives_zeros_at_dead_steps_whatever_their_rewards_are(baseline):
    rewards, live = map(torch.from_numpy, ragged(8))
    gamma = torch.ones(2, dtype=torch.float64)
    found = baseline.advantages(rewards, live, gamma)
    assert found.shape == rewards.shape
    assert not found[~live].any()
    spoilt = rewards.masked_fill(~live, torch.nan)
    assert torch.equal(baseline.advantages(spoilt, live, gamma), found)


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        (Grpo(group_size=5), "baseline.group_size=5: must be at least 1 and divide num_envs=12"),
        (Grpo(group_size=0), "baseline.group_size=0: must be at least 1 and divide num_envs=12"),
        (PerStep(group_size=1), "baseline.group_size=1: must be at least 2 and divide num_envs=12"),
        (
            ReinforcePP(group_baseline=True),
            "baseline.group_size=1: must be at least 2 with baseline.group_baseline=true",
        ),
    ],
)
def test_groups_that_do_not_work_are_refused_in_one_line(baseline, message):
    with pytest.raises(ConfigError) as caught:
        baseline.check(12)
    assert str(caught.value) == message


def test_groups_that_work_are_accepted():
    for kind in (AutoBaseline, *BASELINES.values()):
        kind().check(16)
    assert [name for name, kind in BASELINES.items() if kind.needs_critic] == ["gae"]


def test_every_baseline_has_a_yaml_of_its_name():
    paths = sorted((CONF_DIR / "baseline").glob("*.yaml"))
    assert {path.stem for path in paths} == {"auto", *BASELINES}
    for path in paths:
        text = path.read_text()
        assert text.startswith("# ")
        assert yaml.safe_load(text)["defaults"] == [f"schema/{path.stem}@_here_", "_self_"]
