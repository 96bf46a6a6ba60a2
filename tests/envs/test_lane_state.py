"""A lane's environments go on exactly from their state, in a stack of another size and age."""

import pytest
import torch

from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import DiscreteActions
from ppo_lab.envs.normalized import NormalizedEnv

NUM_ENVS = 3


def build(env_id, *seeds, normalised):
    env = NATIVE_ENVS[env_id](
        seeds=torch.tensor(seeds), num_envs=NUM_ENVS, max_episode_steps=11, dtype=torch.float32
    )
    if normalised:
        gamma = torch.full((len(seeds),), 0.9)
        env = NormalizedEnv(env, observations=True, rewards=True, gamma=gamma)
    return env


def actions_of(env, step):
    """Return actions that depend on the step alone, the same in every lane."""
    wave = (7 * torch.arange(NUM_ENVS) + 3 * step) % 10
    wave = wave.expand(env.num_lanes, -1)
    if isinstance(env.spec.actions, DiscreteActions):
        return wave % env.spec.actions.num_actions
    return wave.unsqueeze(-1) / 5.0 - 1.0


def play(env, lane, begin, end):
    """Return all that a lane's steps give."""
    steps = [env.step(actions_of(env, step)) for step in range(begin, end)]
    return [[tensor[lane].clone() for tensor in step] for step in steps]


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("env_id", sorted(NATIVE_ENVS))
def test_a_lane_goes_on_bit_by_bit_in_another_stack(env_id, normalised):
    env = build(env_id, 5, normalised=normalised)
    env.reset()
    play(env, 0, 0, 30)
    tensors, numbers = env.lane_state(0)
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    expected = play(env, 0, 30, 60)
    assert all(torch.equal(tensors[name], kept[name]) for name in kept)  # it was a copy

    other = build(env_id, 1, 2, normalised=normalised)
    other.reset()
    play(other, 0, 0, 200)  # past the first block of initial states
    before = other.lane_state(0)[0]
    other.load_lane_state(1, tensors, numbers)
    assert all(torch.equal(value, before[name]) for name, value in other.lane_state(0)[0].items())
    for mine, its in zip(play(other, 1, 30, 60), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, its, strict=True))


@pytest.mark.parametrize("name", ["state", "deadlines", "key", "normalizer.mean"])
def test_a_state_of_another_shape_is_refused(name):
    env = build("CartPole-v1", 5, normalised=True)
    env.reset()
    tensors, numbers = env.lane_state(0)
    with pytest.raises(ValueError, match="has shape"):
        env.load_lane_state(0, tensors | {name: tensors[name].unsqueeze(0)}, numbers)


def test_a_restarted_lane_keeps_its_statistics_and_forgets_its_returns():
    env = build("CartPole-v1", 5, 6, normalised=True)
    env.reset()
    play(env, 0, 0, 4)
    before = [env.lane_state(lane)[0] for lane in range(2)]
    assert bool((before[0]["normalizer.latest"][:, -1] > 0).all())
    observations = env.reset_lane(0, 9, is_same_run=True)
    after = [env.lane_state(lane)[0] for lane in range(2)]
    assert all(torch.equal(value, before[1][name]) for name, value in after[1].items())
    # The first observations are counted, as at any other start: 3 more samples than the 4 * 3 + 3.
    assert after[0]["normalizer.count"][0, 0] == before[0]["normalizer.count"][0, 0] + NUM_ENVS
    assert not after[0]["normalizer.latest"][:, -1].any()
    fresh = NATIVE_ENVS["CartPole-v1"](seeds=torch.tensor([9]), num_envs=NUM_ENVS)
    own = env.normalizer.normalize(fresh.reset().expand(2, -1, -1))
    assert torch.equal(observations[0], own[0])
