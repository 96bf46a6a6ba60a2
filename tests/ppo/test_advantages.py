"""Generalised advantage estimation, by hand and against the double sum that defines it."""

import math

import pytest
import torch

from ppo_lab.ppo.advantages import gae


def column(*numbers):
    """Return one environment of one lane, (T, 1, 1)."""
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1)


def flags(*numbers):
    return torch.tensor(numbers, dtype=torch.bool).view(-1, 1, 1)


HALF = torch.tensor([0.5], dtype=torch.float64)
NEVER = flags(0, 0, 0)


def by_hand(next_values, terminated, truncated):
    return gae(
        column(1.0, 2.0, 3.0),
        column(1.0, 1.0, 1.0),
        column(*next_values),
        terminated,
        truncated,
        gamma=HALF,
        gae_lambda=HALF,
    )


# Everywhere gamma = lambda = 0.5, rewards 1 2 3, values 1 1 1. delta_0 = 1 + 0.5 * 1 - 1 = 0.5 and
# delta_2 = 3 + 0.5 * 2 - 1 = 3; what differs is the step between. gamma * lambda = 0.25.


def test_three_steps_without_an_end_are_those_worked_out_by_hand():
    # delta_1 = 2 + 0.5 - 1 = 1.5; A_2 = 3, A_1 = 1.5 + 0.25 * 3 = 2.25, A_0 = 0.5 + 0.25 * 2.25.
    result = by_hand([1.0, 1.0, 2.0], NEVER, NEVER)
    assert result.advantages.flatten().tolist() == [1.0625, 2.25, 3.0]
    assert result.value_targets.flatten().tolist() == [2.0625, 3.25, 4.0]


def test_a_truncation_bootstraps_the_true_last_observation_and_stops_the_trace():
    # delta_1 = 2 + 0.5 * 4 - 1 = 3 and nothing of step 2 comes in: A_0 = 0.5 + 0.25 * 3 = 1.25.
    result = by_hand([1.0, 4.0, 2.0], NEVER, flags(0, 1, 0))
    assert result.advantages.flatten().tolist() == [1.25, 3.0, 3.0]


def test_a_termination_ignores_the_next_value_whatever_it_is():
    # delta_1 = 2 - 1 = 1; A_0 = 0.5 + 0.25 * 1 = 0.75.
    for nonsense in (100.0, math.inf, math.nan):
        result = by_hand([1.0, nonsense, 2.0], flags(0, 1, 0), NEVER)
        assert result.advantages.flatten().tolist() == [0.75, 1.0, 3.0]
        assert result.value_targets.flatten().tolist() == [1.75, 2.0, 4.0]


def test_the_last_step_bootstraps_unless_the_episode_terminated_there():
    assert by_hand([1.0, 1.0, 2.0], flags(0, 0, 1), NEVER).advantages[2].item() == 2.0  # 3 - 1
    assert by_hand([1.0, 1.0, 2.0], NEVER, flags(0, 0, 1)).advantages[2].item() == 3.0


def random_inputs(num_steps=13, num_lanes=3, num_envs=4):
    generator = torch.Generator().manual_seed(0)
    shape = (num_steps, num_lanes, num_envs)

    def normal():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    draw = torch.rand(shape, generator=generator)
    terminated, truncated = draw < 0.15, (draw > 0.15) & (draw < 0.3)
    assert terminated.any()
    assert truncated.any()
    return normal(), normal(), normal(), terminated, truncated


def double_sum(inputs, gamma, gae_lambda):
    """Return advantages by their definition, A_t = sum_k (gamma lambda)^k delta_(t+k), in loops."""
    rewards, values, next_values, terminated, truncated = inputs
    advantages = torch.zeros_like(rewards)
    num_steps, num_lanes, num_envs = rewards.shape
    for lane in range(num_lanes):
        for env in range(num_envs):
            for t in range(num_steps):
                for k in range(num_steps - t):
                    at = (t + k, lane, env)
                    delta = float(rewards[at] - values[at])
                    if not terminated[at]:
                        delta += gamma[lane] * float(next_values[at])
                    advantages[t, lane, env] += (gamma[lane] * gae_lambda[lane]) ** k * delta
                    if terminated[at] or truncated[at]:
                        break
    return advantages


@pytest.mark.parametrize(
    ("gamma", "gae_lambda"),
    [((0.99, 0.9, 0.5), (0.95, 0.8, 0.3)), ((1.0, 0.0, 1.0), (1.0, 0.7, 0.0))],
)
def test_random_episodes_agree_with_the_double_sum_and_each_lane_has_its_own_discount(
    gamma, gae_lambda
):
    inputs = random_inputs()
    result = gae(
        *inputs,
        gamma=torch.tensor(gamma, dtype=torch.float64),
        gae_lambda=torch.tensor(gae_lambda, dtype=torch.float64),
    )
    expected = double_sum(inputs, gamma, gae_lambda)
    torch.testing.assert_close(result.advantages, expected, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(result.value_targets, expected + inputs[1], rtol=0.0, atol=1e-12)


def test_lambda_zero_is_the_one_step_error():
    inputs = random_inputs()
    rewards, values, next_values, terminated, _ = inputs
    gamma = torch.full((3,), 0.9, dtype=torch.float64)
    result = gae(*inputs, gamma=gamma, gae_lambda=torch.zeros(3, dtype=torch.float64))
    future = torch.where(terminated, 0.0, 0.9 * next_values)
    torch.testing.assert_close(result.advantages, rewards + future - values)


def test_lambda_one_is_the_discounted_return_less_the_value():
    rewards, values, next_values, terminated, truncated = random_inputs()
    # With lambda 1 the values in between cancel only if each next value is the next row's value.
    ended = terminated | truncated
    chained = torch.where(ended[:-1], next_values[:-1], values[1:])
    next_values = torch.cat((chained, next_values[-1:]))
    one = torch.ones(3, dtype=torch.float64)
    result = gae(
        rewards, values, next_values, terminated, truncated, gamma=0.9 * one, gae_lambda=one
    )
    returns = next_values[-1]
    for t in reversed(range(len(rewards))):
        after = torch.where(truncated[t], next_values[t], returns)
        after = torch.where(terminated[t], torch.zeros_like(after), after)
        returns = rewards[t] + 0.9 * after
        torch.testing.assert_close(result.value_targets[t], returns)


def test_nothing_that_was_passed_in_is_changed():
    inputs = random_inputs()
    copies = [tensor.clone() for tensor in inputs]
    half = torch.full((3,), 0.5, dtype=torch.float64)
    gae(*inputs, gamma=half, gae_lambda=half)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies))
