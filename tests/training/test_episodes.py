"""Episode returns and lengths against a loop that adds up one step at a time."""

import pytest
import torch

from ppo_lab.training.recorder import EpisodeMeter

NUM_LANES, NUM_ENVS = 2, 3


def naive(rollouts):
    """Return, rollout by rollout, what ended where: {(t, lane, env): (return, length)}."""
    sums = {(lane, env): (0.0, 0) for lane in range(NUM_LANES) for env in range(NUM_ENVS)}
    for rewards, ended in rollouts:
        found = {}
        for t in range(len(rewards)):
            for lane, env in sums:
                total, length = sums[lane, env]
                total, length = total + rewards[t, lane, env].item(), length + 1
                if ended[t, lane, env]:
                    found[t, lane, env] = (total, length)
                    total, length = 0.0, 0
                sums[lane, env] = (total, length)
        yield found


@pytest.mark.parametrize("end_frac", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [1, 7, 32])
def test_returns_and_lengths_equal_a_naive_loop_over_several_rollouts(end_frac, num_steps):
    generator = torch.Generator().manual_seed(num_steps)
    shape = (num_steps, NUM_LANES, NUM_ENVS)
    rollouts = [
        (torch.randn(shape, generator=generator), torch.rand(shape, generator=generator) < end_frac)
        for _ in range(6)
    ]
    meter = EpisodeMeter(NUM_LANES, NUM_ENVS, torch.device("cpu"))
    for (rewards, ended), expected in zip(rollouts, naive(rollouts)):
        totals = meter.count(rewards, ended)
        assert torch.equal(totals.ended, ended)
        found = {
            at: (totals.returns[at].item(), totals.lengths[at].item())
            for at in (tuple(index) for index in ended.nonzero().tolist())
        }
        assert found.keys() == expected.keys()
        for at, (total, length) in expected.items():
            assert found[at] == (pytest.approx(total, abs=1e-9), length)


def test_an_unfinished_episode_is_carried_over_every_rollout_until_it_ends():
    meter = EpisodeMeter(1, 1, torch.device("cpu"))
    one, no = torch.ones(4, 1, 1), torch.zeros(4, 1, 1, dtype=torch.bool)
    yes = torch.tensor([False, True, False, True]).view(4, 1, 1)
    meter.count(one, no)  # 4 steps
    meter.count(2.0 * one, no)  # 8 steps, return 4 + 8 = 12
    totals = meter.count(3.0 * one, yes)
    # Ends after 2 more steps: 12 + 6 = 18 in 10 steps; then 2 steps of its own: 6 in 2.
    assert totals.returns[yes].tolist() == [18.0, 6.0]
    assert totals.lengths[yes].tolist() == [10.0, 2.0]
    totals = meter.count(one, yes)  # nothing is carried over an end at the last step
    assert totals.returns[yes].tolist() == [2.0, 2.0]


def test_a_long_episode_of_small_rewards_does_not_lose_them_to_rounding():
    # float32 numbers near 1e6 are 0.0625 apart: a sum in float32 would add 0.125 for every 0.1.
    meter = EpisodeMeter(1, 1, torch.device("cpu"))
    quiet = torch.zeros(5000, 1, 1, dtype=torch.bool)
    end = quiet.clone()
    end[-1] = True
    rewards = torch.full((5000, 1, 1), 0.1)
    first = rewards.clone()
    first[0] = 1e6
    meter.count(first, quiet)
    totals = meter.count(rewards, end)
    assert totals.returns[-1].item() == pytest.approx(1e6 + 999.9, abs=1e-3)
