"""The gymnasium backend on an environment with known numbers."""

import numpy as np
import pytest
import torch

import tests.helpers.clock_env  # noqa: F401 (registers Clock-v0)
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.gymnasium_env import GymnasiumEnv, env_seeds


def build(env_id="Clock-v0", seeds=(1, 2), num_envs=3, **kwargs):
    placement = Placement(torch.device("cpu"))
    env = GymnasiumEnv(
        env_id, seeds=torch.tensor(seeds), num_envs=num_envs, placement=placement, **kwargs
    )
    return env, placement


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_every_row_belongs_to_its_own_action_and_observation(shape):
    env, _ = build(kwargs={"lengths": (3, 1, 4), "shape": shape})
    generator = torch.Generator().manual_seed(0)
    observations = env.reset()
    assert torch.equal(observations, torch.zeros(2, 3, 2))
    num_ended = 0
    for _ in range(50):
        actions = torch.randint(4, (2, 3), generator=generator)
        step = env.step(actions)
        episode, time = observations.unbind(-1)
        assert torch.equal(step.rewards, 100 * episode + 10 * time + actions)  # no garbage row
        assert torch.equal(step.last_observations, torch.stack((episode, time + 1), -1))
        length = torch.tensor([3, 1, 4])[episode.long() % 3]
        assert torch.equal(step.terminated, time + 1 == length)
        assert not step.truncated.any()
        next_episode = torch.stack((episode + 1, torch.zeros(2, 3)), -1)
        expected = torch.where(step.terminated[..., None], next_episode, step.last_observations)
        assert torch.equal(step.observations, expected)
        num_ended += int(step.terminated.sum())
        observations = step.observations
    assert num_ended == 6 * 18  # 6 cycles of 8 steps, 3 episodes each, in 6 rows
    env.close()


def test_the_time_limit_truncates_and_loses_to_termination():
    env, _ = build(kwargs={"lengths": (2, 5, 3)}, max_episode_steps=3)
    env.reset()
    flags = []
    for _ in range(8):  # episodes of 2 (terminated), 5 (cut off at 3), 3 (both at once)
        step = env.step(torch.zeros(2, 3, dtype=torch.int64))
        assert len(step.terminated.unique()) == len(step.truncated.unique()) == 1
        flags.append((bool(step.terminated[0, 0]), bool(step.truncated[0, 0])))
    neither, terminated, truncated = (False, False), (True, False), (False, True)
    assert flags == [neither, terminated, neither, neither, truncated, neither, neither, terminated]


def test_only_the_rows_that_ended_have_another_last_observation():
    env, _ = build("CartPole-v1", seeds=(1,), num_envs=8)
    env.reset()
    mixed = 0
    for _ in range(60):
        step = env.step(torch.ones(1, 8, dtype=torch.int64))
        ended = step.terminated | step.truncated
        differs = (step.last_observations != step.observations).any(-1)
        assert torch.equal(differs, ended)
        mixed += int(ended.any() and not ended.all())
    assert mixed > 5


def test_returned_tensors_are_never_written():
    env, _ = build()
    kept = []
    kept.append((env.reset(), torch.zeros(2, 3, 2)))
    for _ in range(10):
        step = env.step(torch.zeros(2, 3, dtype=torch.int64))
        kept += [(tensor, tensor.clone()) for tensor in step]
    env.reset_lane(0, 9)
    assert all(torch.equal(tensor, copy) for tensor, copy in kept)


def test_bytes_are_counted_and_flags_cost_none_while_nothing_ends():
    env, placement = build(kwargs={"lengths": (2,)})
    env.reset()
    before = placement.traffic.h2d_bytes
    env.step(torch.zeros(2, 3, dtype=torch.int64))
    # 6 rows of 2 observations and 1 reward, 4 bytes each
    assert placement.traffic.h2d_bytes - before == 6 * 3 * 4
    assert placement.traffic.d2h_bytes == 6 * 8  # the actions
    env.step(torch.zeros(2, 3, dtype=torch.int64))
    # the same, both flags, and the last observations
    assert placement.traffic.h2d_bytes - before == 2 * 72 + 6 * 2 + 6 * 2 * 4


def test_actions_are_clipped_to_the_box():
    env, _ = build("Pendulum-v1", seeds=(1,), num_envs=2, dtype=torch.float64)
    env.reset()
    other, _ = build("Pendulum-v1", seeds=(1,), num_envs=2, dtype=torch.float64)
    other.reset()
    wide = env.step(torch.tensor([[[-70.0], [70.0]]]))
    edge = other.step(torch.tensor([[[-2.0], [2.0]]]))
    assert torch.equal(wide.observations, edge.observations)
    assert torch.equal(wide.rewards, edge.rewards)


def test_seeds_are_distinct_and_depend_on_lane_seed_and_index_alone():
    seeds = env_seeds(torch.tensor([1, 2, 3]), 1000)
    assert len(set(seeds)) == 3000
    assert seeds[1000:2000] == env_seeds(torch.tensor([2]), 1000)
    assert seeds[:10] == env_seeds(torch.tensor([1]), 10)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_restarted_lane_begins_as_if_built_with_that_seed_and_the_others_go_on():
    env, _ = build("CartPole-v1", seeds=(1, 2), num_envs=3)
    alone, _ = build("CartPole-v1", seeds=(7,), num_envs=3)
    env.reset()
    actions = torch.ones(2, 3, dtype=torch.int64)
    for _ in range(5):
        before = env.step(actions).observations
    observations = env.reset_lane(1, 7)
    assert torch.equal(observations[0], before[0])
    assert torch.equal(observations[1:], alone.reset())
    for _ in range(30):
        assert torch.equal(env.step(actions).observations[1:], alone.step(actions[1:]).observations)


def test_a_new_run_gets_new_environments_unless_a_reset_is_known_to_clear_them():
    env, _ = build(seeds=(1, 2))
    env.reset()
    before = list(env._envs)
    env.reset_lane(1, 7)
    is_kept = [old is new for old, new in zip(before, env._envs, strict=True)]
    assert is_kept == [True] * 3 + [False] * 3


def test_infinite_boxes_do_not_clip():
    env, _ = build("Pendulum-v1", seeds=(1,), num_envs=2)
    env._low, env._high = np.float32([-np.inf]), np.float32([np.inf])
    actions = torch.tensor([[[-7e6], [7e6]]])
    assert np.array_equal(env._env_actions(actions), np.float32([[-7e6], [7e6]]))
