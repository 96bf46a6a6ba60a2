"""Starts, lanes, time limits and autoreset of native environments."""

import gymnasium
import numpy as np
import pytest
import torch

from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import DiscreteActions

REFERENCES = {"CartPoleMasked-v0": "CartPole-v1"}


def build(env_id, seeds=(3,), num_envs=4, **kwargs):
    return NATIVE_ENVS[env_id](seeds=torch.tensor(seeds), num_envs=num_envs, **kwargs)


def push_right(env):
    return torch.ones(env.num_lanes, env.num_envs, dtype=torch.int64)


def balance(observations):
    """Return CartPole actions that keep the pole up for ever."""
    weights = torch.tensor([0.1, 0.3, 3.0, 1.0], dtype=observations.dtype)
    return (observations @ weights > 0).long()


def idle(env):
    """Return Acrobot actions of no torque: it never gets anywhere."""
    return torch.ones(env.num_lanes, env.num_envs, dtype=torch.int64)


@pytest.mark.parametrize("env_id", sorted(NATIVE_ENVS))
def test_starts_fill_the_box_that_gymnasium_draws_from(env_id):
    env = build(env_id, num_envs=20_000, dtype=torch.float64)
    env.reset()
    starts = env._state[0]
    low = torch.tensor(env.start_low, dtype=torch.float64)
    high = torch.tensor(env.start_high, dtype=torch.float64)
    assert bool(((starts > low) & (starts < high)).all())
    # A uniform sample of 20,000: mean within 5 standard errors (span / sqrt(12 * 20,000)), the
    # extremes within 1 % of the ends.
    span = high - low
    assert bool(((starts.mean(0) - (low + high) / 2).abs() < 5 * span / 240_000**0.5).all())
    assert bool((starts.amin(0) < low + 0.01 * span).all())
    assert bool((starts.amax(0) > high - 0.01 * span).all())
    reference = gymnasium.make(REFERENCES.get(env_id, env_id)).unwrapped
    theirs = []
    for seed in range(300):
        reference.reset(seed=seed)
        theirs.append(np.array(reference.state, dtype=np.float64))
    theirs = torch.as_tensor(np.array(theirs))
    assert bool(((theirs >= low - 1e-6) & (theirs <= high + 1e-6)).all())
    assert bool((theirs.amax(0) > high - 0.05 * span).all())


@pytest.mark.parametrize(("env_id", "limit"), [("Pendulum-v1", 200), ("Acrobot-v1", 500)])
def test_an_episode_is_truncated_when_gymnasiums_is(env_id, limit):
    assert gymnasium.spec(env_id).max_episode_steps == limit
    env = build(env_id)
    env.reset()
    actions = idle(env) if env_id == "Acrobot-v1" else torch.zeros(1, 4, 1)
    for count in range(1, 2 * limit + 1):
        step = env.step(actions)
        assert bool((step.truncated == (count % limit == 0)).all())
        assert not step.terminated.any()


def test_a_balanced_pole_is_truncated_after_500_steps_beside_gymnasium():
    env = build("CartPole-v1", num_envs=1, dtype=torch.float64)
    reference = gymnasium.make("CartPole-v1")
    reference.reset(seed=0)
    observations = env.reset()
    reference.unwrapped.state = observations[0, 0].numpy().copy()
    truncated = False
    for _ in range(500):
        actions = balance(observations)
        step = env.step(actions)
        assert not truncated
        theirs, reward, terminated, truncated, _ = reference.step(actions.item())
        np.testing.assert_allclose(step.last_observations[0, 0], theirs, rtol=1e-6, atol=1e-6)
        assert step.rewards.item() == reward
        assert (step.terminated.item(), step.truncated.item()) == (terminated, truncated)
        observations = step.observations
        # The same state again: a pole amplifies even the rounding of float64 within 500 steps.
        reference.unwrapped.state = observations[0, 0].numpy().copy()
    assert truncated  # in the 500th step, and not before


def test_termination_wins_over_the_time_limit():
    # Pushed to one side the pole falls; the step at which it does is then made the time limit.
    env = build("CartPole-v1", num_envs=1)
    env.reset()
    fall = next(count for count in range(1, 100) if env.step(push_right(env)).terminated.any())
    for limit, truncated in ((fall, False), (fall - 1, True)):
        env = build("CartPole-v1", num_envs=1, max_episode_steps=limit)
        env.reset()
        steps = [env.step(push_right(env)) for _ in range(limit)]
        assert [bool(step.truncated) for step in steps] == [False] * (limit - 1) + [truncated]
        assert bool(steps[-1].terminated) is not truncated


def test_the_next_episode_begins_in_the_step_that_ended_the_last():
    env = build("CartPole-v1", seeds=(3, 4), num_envs=16)
    observations = env.reset()
    num_ended = 0
    for _ in range(60):
        state, _, _ = env.transition(observations, push_right(env))
        step = env.step(push_right(env))
        ended = step.terminated | step.truncated
        assert torch.equal(step.last_observations, state)  # the true one, whatever ended
        assert torch.equal(step.observations[~ended], state[~ended])
        assert bool((step.observations[ended].abs() <= 0.05).all())
        num_ended += int(ended.sum())
        observations = step.observations
    assert num_ended > 100


def test_no_two_episodes_begin_alike():
    env = build("CartPole-v1", seeds=(3, 4), num_envs=16)
    starts = [env.reset().flatten(0, 1)]
    for _ in range(400):  # several blocks of starts
        step = env.step(push_right(env))
        starts.append(step.observations[step.terminated | step.truncated])
    rows = torch.cat(starts)
    assert len(rows) > 1000
    assert len(rows.unique(dim=0)) == len(rows)


def random_actions(env, generator):
    shape = (env.num_lanes, env.num_envs)
    if isinstance(env.spec.actions, DiscreteActions):
        return torch.randint(env.spec.actions.num_actions, shape, generator=generator)
    return torch.randn(*shape, len(env.spec.actions.low), generator=generator)


@pytest.mark.parametrize("env_id", sorted(NATIVE_ENVS))
def test_a_restarted_lane_goes_on_as_if_built_with_that_seed_and_the_others_as_they_were(env_id):
    # 133 steps: neither a multiple of a window of starts nor of a block.
    generator = torch.Generator().manual_seed(0)
    env, untouched = build(env_id, seeds=(3, 4)), build(env_id, seeds=(3, 4))
    alone = build(env_id, seeds=(9,))
    env.reset(), untouched.reset()
    for _ in range(133):
        actions = random_actions(env, generator)
        before = env.step(actions).observations
        untouched.step(actions)
    kept = before.clone()
    observations = env.reset_lane(1, 9)
    assert torch.equal(before, kept)  # what was returned is not written into
    assert torch.equal(observations[1:], alone.reset())
    for _ in range(300):
        actions = random_actions(env, generator)
        step = env.step(actions)
        for name, ours, own in zip(step._fields, step, alone.step(actions[1:]), strict=True):
            torch.testing.assert_close(ours[1:], own, rtol=1e-6, atol=1e-6, msg=name)
        other = untouched.step(actions)
        assert torch.equal(step.observations[0], other.observations[0])
        assert torch.equal(step.truncated[0], other.truncated[0])


def test_a_step_may_run_in_inference_mode_and_the_next_outside():
    env = build("CartPole-v1")
    with torch.inference_mode():
        env.reset()
        env.step(push_right(env))
    env.step(push_right(env))
    env.reset_lane(0, 5)
