"""Native environments against Gymnasium's own, step by step, from Gymnasium's states."""

import itertools

import gymnasium
import numpy as np
import pytest
import torch

from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import DiscreteActions

NUM_STEPS = 10_000

# The box of states that half of the steps begin in: beyond the limits, so that episodes end.
WIDE = {
    "CartPole-v1": (2.5, 3.0, 0.22, 3.0),
    "Acrobot-v1": (np.pi, np.pi, 4 * np.pi, 9 * np.pi),
    "Pendulum-v1": (10.0, 8.0),
}


# Gymnasium's environment beside one that only we have, and the observations that ours shows.
REFERENCES = {"CartPoleMasked-v0": ("CartPole-v1", [0, 2])}


def record(env_id):
    """Return states, actions, new states, observations, rewards, terminated of NUM_STEPS steps."""
    env = gymnasium.make(env_id).unwrapped
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    env.action_space.seed(0)
    wide = np.array(WIDE[env_id])
    rows = []
    for index in range(NUM_STEPS):
        if index % 2:
            env.reset()
            env.state = rng.uniform(-wide, wide)
        state = np.array(env.state, dtype=np.float64)
        action = env.action_space.sample()
        if not isinstance(env.action_space, gymnasium.spaces.Discrete):
            action = 2 * action  # half of them outside the box
        observation, reward, terminated, truncated, _ = env.step(action)
        assert not truncated
        rows.append((state, action, np.array(env.state), observation, reward, terminated))
        if terminated:
            env.reset()
    return [torch.as_tensor(np.array(column)).unsqueeze(0) for column in zip(*rows, strict=True)]


@pytest.fixture(scope="module", params=sorted(NATIVE_ENVS))
def recorded(request):
    reference, shown = REFERENCES.get(request.param, (request.param, slice(None)))
    columns = record(reference)
    columns[3] = columns[3][..., shown]
    return request.param, columns


def native(env_id, dtype):
    return NATIVE_ENVS[env_id](seeds=torch.tensor([0]), num_envs=NUM_STEPS, dtype=dtype)


def test_ten_thousand_steps_equal_gymnasiums_in_float64(recorded):
    env_id, (states, actions, new_states, observations, rewards, terminated) = recorded
    env = native(env_id, torch.float64)
    if not isinstance(env.spec.actions, DiscreteActions):
        actions = actions.double()
    ours, our_rewards, our_terminated = env.transition(states, actions)
    torch.testing.assert_close(ours, new_states.double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(our_rewards, rewards.double(), rtol=0, atol=1e-6)
    assert torch.equal(our_terminated, terminated)
    # Gymnasium rounds observations to float32: 28 rad/s to 1e-6, so the tolerance is relative
    torch.testing.assert_close(env.observe(ours), observations.double(), rtol=1e-6, atol=1e-6)


def test_the_recording_contains_both_outcomes(recorded):
    env_id, columns = recorded
    ended = columns[-1].sum().item()
    assert ended == 0 if env_id == "Pendulum-v1" else 100 < ended < NUM_STEPS / 2


# float32 rounds to 6e-8 relative. CartPole: speeds of 3, 20 operations: 2e-6. Pendulum: angles of
# 10, costs of 17: 2e-5. Acrobot: at 28 rad/s each of four stages multiplies an error by up to 0.2 s
# * 2 * 28 / s = 11: 11^3 * 28 * 6e-8 = 2e-3 and a few such; yet 99 of 100 numbers are within 1e-5.
FLOAT32_TOLERANCE = {
    "Acrobot-v1": 1e-2,
    "CartPole-v1": 2e-6,
    "CartPoleMasked-v0": 2e-6,
    "Pendulum-v1": 2e-5,
}


def test_ten_thousand_steps_equal_gymnasiums_in_float32_but_for_rounding(recorded):
    env_id, (states, actions, _, observations, rewards, terminated) = recorded
    env = native(env_id, torch.float32)
    ours, our_rewards, our_terminated = env.transition(states.float(), actions)
    tolerance = FLOAT32_TOLERANCE[env_id]
    # Observations, not states: an angle of pi may be rounded to -pi.
    errors = (env.observe(ours) - observations).abs()
    assert errors.max() < tolerance
    assert errors.flatten().quantile(0.99) < 1e-5
    same = our_terminated == terminated
    assert (~same).sum() <= 1  # a state within rounding of the limit
    torch.testing.assert_close(our_rewards[same], rewards[same].float(), rtol=1e-6, atol=tolerance)


def test_no_sequence_of_pushes_ends_cartpole_before_its_shortest_episode():
    cls = NATIVE_ENVS["CartPole-v1"]
    corners = torch.tensor(list(itertools.product((-0.05, 0.0, 0.05), repeat=4))).double()
    pushes = torch.tensor(list(itertools.product((0, 1), repeat=cls.shortest_episode)))
    env = cls(seeds=torch.tensor([0]), num_envs=1, dtype=torch.float64)
    state = corners.unsqueeze(0).expand(len(pushes), -1, -1)
    for step in range(cls.shortest_episode):
        state, _, terminated = env.transition(state, pushes[:, step, None].expand(-1, len(corners)))
        assert bool(terminated.any()) == (step + 1 == cls.shortest_episode)


def test_the_fastest_known_swings_of_acrobot_are_longer_than_its_shortest_episode():
    cls = NATIVE_ENVS["Acrobot-v1"]
    env = cls(seeds=torch.tensor([0]), num_envs=4096, dtype=torch.float64)
    env.reset()
    for _ in range(20):  # pump: push the elbow along its motion; 57 steps is what a search found
        step = env.step(torch.where(env._state[..., 3] > 0, 2, 0))
        assert not step.terminated.any()
    assert cls.shortest_episode < 20
