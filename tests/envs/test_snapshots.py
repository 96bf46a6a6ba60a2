"""A restored environment continues bit by bit as the one that its state was taken from."""

import json

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import DiscreteActions
from ppo_lab.envs.gymnasium_env import GymnasiumEnv
from ppo_lab.envs.snapshots import is_exact, restore, snapshot


class Drifter(gymnasium.Env):
    """Walks at random by its own generator, and saves its own state."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Discrete(2)

    def __init__(self, forgets: bool = False) -> None:
        self._own = np.random.default_rng(0)
        self._forgets = forgets

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._place, self._visits = self.np_random.normal(size=2), {"left": 0}
        return self._place.copy(), {}

    def step(self, action):
        self._visits["left"] += int(action == 0)
        self._place = self._place + self._own.normal(size=2) + self._visits["left"]
        return self._place.copy(), 0.0, bool(abs(self._place[0]) > 20), False, {}

    def state_dict(self):
        kept = {} if self._forgets else {"own": self._own.bit_generator.state}
        return {"place": self._place, "visits": self._visits, "pair": (1, None), **kept}

    def load_state_dict(self, state):
        assert state["pair"] == (1, None)
        self._place, self._visits = state["place"], state["visits"]
        if not self._forgets:
            self._own.bit_generator.state = state["own"]


class Loud(gymnasium.RewardWrapper):
    """A wrapper that the package does not know."""

    def reward(self, reward):
        return 2 * reward


class Unknown(gymnasium.Env):
    """An environment that cannot be snapshot."""

    observation_space, action_space = Drifter.observation_space, Drifter.action_space


gymnasium.register("Drifter-v0", Drifter, max_episode_steps=30)
gymnasium.register("Unknown-v0", Unknown)

MUJOCO = ["HalfCheetah", "Hopper", "Walker2d", "Ant", "Humanoid", "InvertedPendulum", "Pusher"]
CLASSIC = ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCar-v0"]


def build(env_id, seeds, **kwargs):
    placement = Placement(torch.device("cpu"))
    env = GymnasiumEnv(env_id, torch.tensor(seeds), 2, placement, torch.float64, **kwargs)
    env.reset()
    return env


def actions(env, num_steps, seed):
    generator, shape = torch.Generator().manual_seed(seed), (num_steps, 1, 2)
    if isinstance(env.spec.actions, DiscreteActions):
        return torch.randint(env.spec.actions.num_actions, shape, generator=generator)
    return torch.randn(*shape, len(env.spec.actions.low), generator=generator)


def run(env, batches):
    steps = [env.step(batch) for batch in batches]
    return [torch.stack(column) for column in zip(*steps, strict=True)]


@pytest.mark.parametrize("env_id", [*(f"{name}-v5" for name in MUJOCO), *CLASSIC, "Drifter-v0"])
def test_a_restored_lane_continues_bit_by_bit_in_another_stack(env_id):
    if env_id.endswith("-v5"):
        pytest.importorskip("mujoco")
    env = build(env_id, [3], max_episode_steps=70)  # a time limit in the second half
    assert env.state_mode == "exact"
    run(env, actions(env, 50, seed=0))
    tensors, numbers = env.lane_state(0)
    numbers = json.loads(json.dumps(numbers))
    batches = actions(env, 50, seed=1)
    expected = run(env, batches)
    assert expected[4].any() or expected[3].any()  # an episode ended

    other = build(env_id, [8, 9], max_episode_steps=70)
    both = torch.cat([batches, batches], dim=1)
    run(other, both[:3])
    other.load_lane_state(1, tensors, numbers)
    restored = run(other, both)
    assert all(torch.equal(ours[:, 1:], theirs) for ours, theirs in zip(restored, expected))
    assert not torch.equal(restored[0][:, :1], expected[0])


@pytest.mark.parametrize("env_id", ["Taxi-v4", "FrozenLake-v1", "CliffWalking-v1", "Blackjack-v1"])
def test_toy_text_continues_too(env_id):
    env, other = gymnasium.make(env_id), gymnasium.make(env_id)
    env.reset(seed=1), other.reset(seed=2)
    for _ in range(20):
        if any(env.step(0)[2:4]):
            env.reset()
    tensors = {}
    packed = snapshot(env, "toy", tensors)
    restore(other, packed, tensors)

    def walk(env):
        for number in range(40):
            observation, *rest, _ = env.step(number % 2)
            yield observation, rest
            if rest[1] or rest[2]:
                yield env.reset()[0]

    assert list(walk(env)) == list(walk(other))


def test_what_is_not_known_is_not_exact():
    assert not is_exact(gymnasium.make("Unknown-v0"))
    assert not is_exact(Loud(gymnasium.make("CartPole-v1")))
    env = build("Drifter-v0", [1])
    assert env.state_mode == "exact"
    env._envs[0].unwrapped._visits = {1}
    with pytest.raises(TypeError, match="a set, neither an array nor a JSON value"):
        snapshot(env._envs[0], "0", {})
