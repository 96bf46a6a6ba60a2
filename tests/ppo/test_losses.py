"""PPO's arithmetic, by hand."""

import math

import pytest
import torch

from ppo_lab.ppo.losses import (
    ClipRange,
    approx_kl_k3,
    clipped_surrogate,
    explained_variance,
    normalize_advantages,
    value_loss,
)


def clip_of(low, high=None):
    return ClipRange(torch.tensor([low]), torch.tensor([low if high is None else high]))


def loss_and_gradient(ratio, advantage, clip, dual_clip=None):
    """Return the loss of one row and its derivative by the log ratio."""
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    bound = None if dual_clip is None else torch.tensor([dual_clip])
    loss = clipped_surrogate(log_ratio, torch.tensor([[advantage]]), clip, bound)
    loss.sum().backward()
    return loss.item(), log_ratio.grad.item()


# The loss is -min(r A, clip(r) A). Where the first wins, d loss / d log r = -r A; else 0.
HAND = {
    "above, good: cut": (1.5, 2.0, -2.4, 0.0),  # min(3.0, 1.2 * 2 = 2.4)
    "above, bad: pulled back": (1.5, -2.0, 3.0, 3.0),  # min(-3.0, -2.4)
    "below, good: pulled back": (0.5, 2.0, -1.0, -1.0),  # min(1.0, 0.8 * 2 = 1.6)
    "below, bad: cut": (0.5, -2.0, 1.6, 0.0),  # min(-1.0, -1.6)
    "inside, good": (1.1, 2.0, -2.2, -2.2),
    "inside, bad": (0.9, -2.0, 1.8, 1.8),
}


@pytest.mark.parametrize("case", HAND)
def test_the_clipped_surrogate_and_its_gradient_are_those_worked_out_by_hand(case):
    ratio, advantage, loss, gradient = HAND[case]
    expected = pytest.approx((loss, gradient), rel=1e-6)
    assert loss_and_gradient(ratio, advantage, clip_of(0.2)) == expected


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (1.4, 1.0, -1.4, -1.4),  # inside 1 + 0.5
        (1.6, 1.0, -1.5, 0.0),  # above it
        (0.7, -1.0, 0.8, 0.0),  # below 1 - 0.2
        (0.85, -1.0, 0.85, 0.85),  # inside
    ],
)
def test_an_asymmetric_clip_has_its_own_width_on_each_side(ratio, advantage, loss, gradient):
    expected = pytest.approx((loss, gradient), rel=1e-6)
    assert loss_and_gradient(ratio, advantage, clip_of(0.2, 0.5)) == expected


@pytest.mark.parametrize("ratio", [1e-3, 0.5, 1.0, 3.0, 1e3])
@pytest.mark.parametrize("advantage", [2.0, -2.0])
def test_an_infinite_epsilon_is_no_clip(ratio, advantage):
    # The unclipped objective is r A: loss and gradient are both -r A.
    expected = pytest.approx((-ratio * advantage, -ratio * advantage), rel=1e-5)
    assert loss_and_gradient(ratio, advantage, clip_of(math.inf)) == expected


@pytest.mark.parametrize("epsilon", [0.05, 0.2, math.inf])
def test_at_ratio_one_the_loss_is_minus_the_mean_advantage(epsilon):
    advantages = torch.tensor([[1.0, -4.0, 6.0, 9.0]])  # mean 3
    loss = clipped_surrogate(torch.zeros(1, 4), advantages, clip_of(epsilon))
    assert loss.tolist() == [-3.0]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        (5.0, -2.0, 6.0, 0.0),  # max(min(-10, -2.4), 3 * -2 = -6): held, and cut
        (2.0, -2.0, 4.0, 4.0),  # max(min(-4, -2.4), -6) = -4: not yet held
        (5.0, 2.0, -2.4, 0.0),  # a good action is clipped as ever
        (0.5, 0.0, 0.0, 0.0),
    ],
)
def test_dual_clip_bounds_the_objective_of_a_bad_action(ratio, advantage, loss, gradient):
    expected = pytest.approx((loss, gradient), rel=1e-6)
    assert loss_and_gradient(ratio, advantage, clip_of(0.2), dual_clip=3.0) == expected


def test_an_infinite_dual_clip_is_none_even_for_an_advantage_of_zero():
    for ratio in (0.5, 1.0, 50.0):
        for advantage in (-2.0, 0.0, 2.0):
            with_it = loss_and_gradient(ratio, advantage, clip_of(0.2), dual_clip=math.inf)
            assert with_it == loss_and_gradient(ratio, advantage, clip_of(0.2))


def test_each_lane_has_its_own_epsilon_and_its_own_mean():
    ratios = torch.tensor([[1.5, 1.0], [1.5, 1.0], [1.5, 1.0]])
    advantages = torch.ones(3, 2)
    epsilon = torch.tensor([0.1, 0.3, math.inf])
    loss = clipped_surrogate(ratios.log(), advantages, ClipRange(epsilon, epsilon))
    # Means of (1.1, 1), (1.3, 1) and (1.5, 1).
    assert loss.tolist() == pytest.approx([-1.05, -1.15, -1.25])


def test_the_value_loss_is_half_the_mean_squared_error():
    values, targets = torch.tensor([[1.0, 5.0]]), torch.tensor([[2.0, 2.0]])
    # Errors -1 and 3: (1 + 9) / 2 / 2 = 2.5.
    assert value_loss(values, torch.zeros(1, 2), targets).tolist() == [2.5]


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        # The old value is 0 and epsilon 0.5. Held at 0.5: (0.5 - 2)^2 = 2.25 > (1 - 2)^2 = 1.
        (1.0, 2.0, 1.125, 0.0),
        # Moving away from the target: (2 + 1)^2 = 9 > (0.5 + 1)^2 = 2.25, and pulled back by 3.
        (2.0, -1.0, 4.5, 3.0),
        # Within epsilon there is no difference: 0.5 * (0.25 - 1)^2, gradient -0.75.
        (0.25, 1.0, 0.28125, -0.75),
        (-1.0, -2.0, 1.125, 0.0),  # the lower side, held at -0.5
    ],
)
def test_value_clipping_takes_the_larger_of_both_errors(value, target, loss, gradient):
    values = torch.tensor([[value]], requires_grad=True)
    result = value_loss(
        values, torch.zeros(1, 1), torch.tensor([[target]]), epsilon=torch.tensor([0.5])
    )
    result.sum().backward()
    assert result.item() == pytest.approx(loss)
    assert values.grad.item() == pytest.approx(gradient)


def test_an_infinite_value_epsilon_is_none_in_its_lane_alone():
    values, old = torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1)
    targets = torch.tensor([[2.0], [2.0]])
    loss = value_loss(values, old, targets, epsilon=torch.tensor([0.5, math.inf]))
    assert loss.tolist() == [1.125, 0.5]


def test_advantages_are_normalised_with_the_unbiased_deviation():
    # Mean 2, squares 1 + 0 + 1 over n - 1 = 2: deviation 1. A population deviation would be
    # sqrt(2/3) and give -1.2247, 0, 1.2247.
    normalized = normalize_advantages(torch.tensor([[1.0, 2.0, 3.0], [10.0, 30.0, 50.0]]))
    assert normalized.tolist() == [
        pytest.approx([-1.0, 0.0, 1.0], abs=1e-6),
        pytest.approx([-1.0, 0.0, 1.0], abs=1e-6),
    ]


def test_a_minibatch_of_one_row_is_left_as_it_is():
    assert normalize_advantages(torch.tensor([[3.0], [-2.0]])).tolist() == [[3.0], [-2.0]]


def test_constant_advantages_become_zero_and_not_nan():
    assert normalize_advantages(torch.full((1, 4), 2.0)).tolist() == [[0.0] * 4]


def test_k3_is_the_mean_of_r_minus_one_minus_log_r():
    # r = 2: 1 - 0.693147 = 0.306853; r = 0.5: -0.5 + 0.693147 = 0.193147; mean 0.25.
    log_ratio = torch.tensor([[math.log(2.0), math.log(0.5)], [0.0, 0.0]])
    assert approx_kl_k3(log_ratio).tolist() == pytest.approx([0.25, 0.0])


def test_k3_of_tiny_ratios_does_not_drown_in_rounding():
    # r - 1 - log r is x^2 / 2 for small x; computed as exp(x) - 1 - x in float32 it would be 0.
    assert approx_kl_k3(torch.tensor([[1e-3]])).item() == pytest.approx(5e-7, rel=1e-2)


def test_explained_variance_of_perfect_constant_and_worse_critics():
    targets = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, -1)  # variance 1
    values = torch.tensor(
        [
            [1.0, 2.0, 3.0],  # perfect: 1
            [5.0, 6.0, 7.0],  # perfect but for a constant, which variance does not see: 1
            [2.0, 2.0, 2.0],  # constant: 1 - 1 / 1 = 0
            [3.0, 2.0, 1.0],  # errors -2, 0, 2, variance 4: 1 - 4 = -3
        ]
    )
    assert explained_variance(values, targets).tolist() == pytest.approx([1.0, 1.0, 0.0, -3.0])


def test_explained_variance_of_constant_targets_is_nan_in_that_lane_alone():
    targets = torch.tensor([[2.0, 2.0], [1.0, 2.0]])
    explained = explained_variance(torch.tensor([[1.0, 2.0], [1.0, 2.0]]), targets)
    assert math.isnan(explained[0])
    assert explained[1] == 1.0


def test_a_gradient_never_crosses_lanes_whatever_the_other_lane_holds():
    def gradient_of_lane_0(other_log_ratio, other_advantage, other_value):
        log_ratio = torch.tensor([[0.3, -0.1], [other_log_ratio, 0.2]], requires_grad=True)
        values = torch.tensor([[1.0, 2.0], [other_value, 0.0]], requires_grad=True)
        advantages = torch.tensor([[1.0, -2.0], [other_advantage, 0.5]])
        epsilon = torch.tensor([0.2, math.inf])
        policy = clipped_surrogate(
            log_ratio, normalize_advantages(advantages), ClipRange(epsilon, epsilon), epsilon + 3.0
        )
        value = value_loss(values, values.detach() + 0.1, advantages, epsilon)
        (policy + value).sum().backward()
        return log_ratio.grad[0], values.grad[0]

    plain = gradient_of_lane_0(0.5, 1.0, 1.0)
    for other in ((-3.0, 9.0, 7.0), (math.inf, 1.0, math.inf), (math.nan, math.nan, math.nan)):
        for mine, reference in zip(gradient_of_lane_0(*other), plain):
            assert torch.equal(mine, reference)
