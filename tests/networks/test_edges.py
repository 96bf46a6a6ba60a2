"""Sizes and limits of action distributions."""

import math

import pytest
import torch

from ppo_lab.envs.base import ContinuousActions, DiscreteActions
from ppo_lab.networks import distribution_for
from ppo_lab.utils.rng import Stream, lane_keys, uniform


@pytest.mark.parametrize(
    ("actions", "num_parameters", "noise_size", "max_entropy", "has_free_std"),
    [
        (DiscreteActions(1), 1, 1, None, False),  # nothing to choose: no share of log 1 = 0
        (DiscreteActions(2), 2, 2, math.log(2.0), False),
        (ContinuousActions((0.0,) * 3, (1.0,) * 3), 6, 3, None, True),
    ],
)
def test_a_distribution_says_its_sizes(
    actions, num_parameters, noise_size, max_entropy, has_free_std
):
    found = distribution_for(actions)
    assert (found.num_parameters, found.noise_size) == (num_parameters, noise_size)
    assert (found.max_entropy, found.has_free_std) == (max_entropy, has_free_std)


def test_gumbel_noise_is_minus_the_log_of_minus_the_log():
    keys = lane_keys(torch.tensor([3]), Stream.ACTION)
    noise = distribution_for(DiscreteActions(2)).noise(keys, 3, torch.float64)
    u = uniform(keys, 6, dtype=torch.float64).view(1, 3, 2)
    torch.testing.assert_close(noise, -(-u.log()).log())


def test_samples_and_modes_of_a_gaussian_by_hand():
    gaussian = distribution_for(ContinuousActions((0.0,) * 2, (1.0,) * 2))
    parameters = torch.tensor([[1.0, 2.0, 0.0, math.log(3.0)]])
    assert gaussian.sample(parameters, torch.tensor([[0.5, -1.0]])).tolist() == [
        pytest.approx([1.5, -1.0])  # 1 + 0.5 and 2 - 3
    ]
    assert gaussian.mode(parameters).tolist() == [[1.0, 2.0]]
    # Two normal densities at their means: -2 log sqrt(2 pi) - log 3; entropies log sqrt(2 pi e).
    density = gaussian.log_prob(parameters, torch.tensor([[1.0, 2.0]])).item()
    assert density == pytest.approx(-math.log(2.0 * math.pi) - math.log(3.0))
    entropy = gaussian.entropy(parameters).item()
    assert entropy == pytest.approx(math.log(2.0 * math.pi * math.e) + math.log(3.0))
