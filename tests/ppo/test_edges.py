"""What PPO's arithmetic does exactly at its limits, and where there is nothing to divide by."""

import dataclasses
import math

import pytest
import torch
from torch.nn import Parameter

from ppo_lab.ppo.adam import BETAS, LaneAdam, clip_coefficient, group_by_size
from ppo_lab.ppo.after_update import after_update
from ppo_lab.ppo.diagnostics import UpdateLog, apply_target_kl, clip_fractions, ratio_diagnostics
from ppo_lab.ppo.losses import ClipRange, explained_variance, normalize_advantages
from ppo_lab.ppo.update import AdvantageNormalization, UpdatePlan
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import TWENTY_STEPS, config, record_rows, state_of


def clip_of(low, high):
    return ClipRange(torch.tensor([low]), torch.tensor([high]))


def test_a_ratio_on_the_border_of_the_clip_is_inside():
    shares = clip_fractions(torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 0.0]]), clip_of(0.0, 0.0))
    assert {name: share.item() for name, share in shares.items()} == dict.fromkeys(shares, 0.0)


def test_a_row_without_an_advantage_is_cut_on_neither_side():
    log_ratio = torch.tensor([[2.0, 0.25]]).log()  # one above, one below
    shares = clip_fractions(log_ratio, torch.zeros(1, 2), clip_of(0.2, 0.2))
    assert shares["clip_above_frac"].item() == shares["clip_below_frac"].item() == 0.5
    assert shares["cut_above_frac"].item() == shares["cut_below_frac"].item() == 0.0
    assert shares["pass_frac"].item() == 1.0


def test_one_row_is_its_own_extreme_and_percentile():
    result = ratio_diagnostics(torch.tensor([[math.log(1.5)]]), torch.ones(1, 1), clip_of(0.2, 0.2))
    names = ("ratio_min", "ratio_p01", "ratio_p99", "ratio_max")
    assert [getattr(result, name).item() for name in names] == pytest.approx([1.5] * 4)
    assert result.ess_frac.item() == pytest.approx(1.0)


def test_percentiles_are_at_the_nearest_rank():
    # 201 ratios 1 .. 201: ranks round(0.01 * 200) = 2 and round(0.99 * 200) = 198.
    result = ratio_diagnostics(
        torch.arange(1.0, 202.0).log().unsqueeze(0), torch.ones(1, 201), clip_of(0.2, 0.2)
    )
    assert (result.ratio_p01.item(), result.ratio_p99.item()) == pytest.approx((3.0, 199.0))


def test_almost_constant_advantages_are_divided_by_their_deviation_and_1e_8():
    # Deviation sqrt(2) 1e-8: -+1e-8 / (1.41421e-8 + 1e-8) = -+0.41421.
    normalized = normalize_advantages(torch.tensor([[0.0, 2e-8]], dtype=torch.float64))
    assert normalized.tolist()[0] == pytest.approx([-0.4142136, 0.4142136], rel=1e-5)


def test_explained_variance_is_of_the_whole_population():
    # Residuals 0, 3, 0 (variance 2), targets 0, 3, 6 (variance 6): 1 - 2 / 6.
    values, targets = torch.tensor([[0.0, 0.0, 6.0]]), torch.tensor([[0.0, 3.0, 6.0]])
    assert explained_variance(values, targets).item() == pytest.approx(2.0 / 3.0)


def log_of(num_steps=2, num_lanes=2, num_groups=1):
    shape = (1, num_lanes, 2 * num_steps)
    return UpdateLog(shape, num_steps, num_groups, like=torch.zeros(1))


def test_a_minibatch_exactly_at_the_limit_of_kl_is_still_taken_and_a_stop_is_for_good():
    log = log_of()
    first, second = log.steps
    second.log_ratios[1] = 1.0  # k3 = e - 2
    for limit, expected in ((0.0, [True, False]), (math.inf, [True, True])):
        target = torch.full((2,), limit)
        assert apply_target_kl(first, None, target).tolist() == [True, True]
        assert apply_target_kl(second, first, target).tolist() == expected
    first.active[0] = False
    assert apply_target_kl(second, first, torch.full((2,), math.inf)).tolist() == [False, True]
    assert apply_target_kl(first, None, None) is None


def test_the_limit_of_kl_is_one_and_a_half_times_the_target():
    (step,) = log_of(num_steps=1, num_lanes=1).steps
    step.log_ratios[:] = torch.tensor([math.log(2.0), -math.log(2.0)])  # k3 = 0.25
    assert apply_target_kl(step, None, torch.tensor([0.25 / 1.49])).item() is True
    assert apply_target_kl(step, None, torch.tensor([0.25 / 1.51])).item() is False


def test_a_lane_that_took_no_step_reports_zeros_and_ratios_of_one():
    log = log_of()
    for step in log.steps:
        step.active[1] = False
        for tensor in (step.log_ratios, step.policy_loss, step.entropy, step.grad_norms):
            tensor.fill_(0.5)
    found = log.means(clip_of(0.2, 0.2))
    assert found.gradient_steps.tolist() == [2, 0]
    assert found.epochs_done.tolist() == [1.0, 0.0]
    assert found.policy_loss.tolist() == found.entropy.tolist() == [0.5, 0.0]
    assert found.grad_norm.tolist() == [0.5, 0.0]
    assert (found.ratio_min[1], found.ratio_max[1]) == (1.0, 1.0)
    assert found.ratio_max[0].item() == found.ratio_min[0].item() == pytest.approx(math.exp(0.5))
    assert found.grad_norm_actor is found.grad_norm_critic is None


def test_a_norm_is_limited_as_torch_does_it():
    # 1e-6 / (1e-6 + 1e-6), and below the limit nothing happens.
    norms, limits = torch.tensor([1e-6, 0.5]), torch.tensor([1e-6, 1.0])
    assert clip_coefficient(norms, limits).tolist() == pytest.approx([0.5, 1.0], rel=1e-6)


def test_buckets_are_of_four_million_numbers_and_full_ones_are_closed():
    half, one = (Parameter(torch.empty(n, device="meta")) for n in (1 << 21, 1))
    assert [len(group) for group in group_by_size([half, half, one])] == [2, 1]
    assert [len(group) for group in group_by_size([half, one, half, one])] == [2, 2]
    assert [len(group) for group in group_by_size([one, one, one], 2)] == [2, 1]


def test_adam_begins_with_its_own_first_step():
    """Bias-corrected moments of one gradient are g and g^2: a step of lr g / (|g| + eps)."""
    weight = Parameter(torch.zeros(1, 1, dtype=torch.float64))
    adam = LaneAdam([weight], eps=0.5)
    weight.grad = torch.full_like(weight, 2.0)
    one = torch.ones(1, dtype=torch.float64)
    norms = adam.step(lr=one, max_grad_norm=math.inf * one)
    assert norms.tolist() == [[2.0]]
    assert weight.item() == pytest.approx(-2.0 / 2.5, rel=1e-9)
    assert BETAS == (0.9, 0.999)


def test_two_groups_are_clipped_by_their_own_norms():
    actor, critic = (Parameter(torch.zeros(1, 2, dtype=torch.float64)) for _ in range(2))
    adam = LaneAdam([actor], [critic], eps=1e-8)
    actor.grad, critic.grad = (
        torch.tensor([[3.0, 4.0]]).double(),
        torch.tensor([[0.0, 0.5]]).double(),
    )
    one = torch.ones(1, dtype=torch.float64)
    norms = adam.step(lr=one, max_grad_norm=one)
    assert adam.num_clip_groups == 2
    assert norms.tolist() == [[5.0], [0.5]]
    first = adam.moments[::2]
    assert first[0][0].tolist() == pytest.approx([0.06, 0.08], rel=1e-6)  # a tenth of 3 / 5, 4 / 5
    assert first[1][0].tolist() == pytest.approx([0.0, 0.05], rel=1e-6)


def test_a_rollout_of_one_row_has_no_deviation_and_is_not_normalised():
    trainer = Trainer([config("num_envs=1", "num_steps=1", "num_minibatches=1", "num_epochs=1")])
    rows = record_rows(trainer)
    found = trainer.update(rows)
    after = after_update(trainer.model, rows, clip_of(0.2, 0.2), trainer.plan)
    assert after.advantages_std.tolist() == [0.0]
    assert found.policy_loss.item() == pytest.approx(-rows.advantages.item())


@pytest.mark.parametrize("mode", AdvantageNormalization)
def test_signs_after_an_update_are_those_of_the_loss(mode):
    """Without normalisation all advantages are good; normalised, half of them are bad."""
    trainer = Trainer([config(*TWENTY_STEPS)])
    rows = record_rows(trainer)
    half = rows.advantages.shape[1] // 2
    advantages = torch.ones_like(rows.advantages)
    advantages[:, half:] = 3.0
    log_probs = rows.log_probs - 1.0  # every ratio is e
    rows = rows._replace(advantages=advantages, log_probs=log_probs)
    plan = dataclasses.replace(trainer.plan, normalization=mode)
    found = after_update(trainer.model, rows, clip_of(0.2, 0.2), plan).ratios
    expected = 1.0 if mode is AdvantageNormalization.none else 0.5
    assert found.clip_above_frac.item() == 1.0
    assert found.cut_above_frac.item() == pytest.approx(expected)


def test_a_plan_splits_only_what_is_longer_than_a_pass():
    sizes = []

    def count(observations, part):
        assert part.stop - part.start == observations.shape[1]
        sizes.append(observations.shape[1])
        return [observations[..., 0]]

    plan = UpdatePlan(1, AdvantageNormalization.none, rows_per_pass=4)
    for num_rows, expected in ((4, [4]), (9, [4, 4, 1])):
        sizes.clear()
        rows = torch.arange(2.0 * num_rows).view(1, num_rows, 2)
        (found,) = plan.in_passes(count, rows)
        assert torch.equal(found, rows[..., 0])
        assert sizes == expected


def test_state_that_is_replaced_takes_the_steps_and_the_former_stands_still():
    def adam_of():
        generator = torch.Generator().manual_seed(0)
        groups = [[Parameter(torch.randn(2, 3, 2, generator=generator))] for _ in range(3)]
        for (parameter,) in groups:
            parameter.grad = torch.randn(2, 3, 2, generator=generator)
        return LaneAdam(*groups, eps=1e-5)

    plain, moved = adam_of(), adam_of()
    former = moved.state_tensors
    before = [tensor.clone() for tensor in former]
    moved.state_tensors = [tensor.clone() for tensor in former]
    for adam in (plain, moved):
        adam.step(lr=torch.tensor([0.1, 0.2]), max_grad_norm=torch.ones(2))
    assert len(before) == 1 + 3 * 3
    for mine, its, old, then in zip(
        moved.state_tensors, plain.state_tensors, former, before, strict=True
    ):
        assert torch.equal(mine, its)
        assert torch.equal(old, then)
        assert not torch.equal(mine, then)
    for mine, its in zip(moved.split_weights(), plain.split_weights()):
        assert torch.equal(mine, its)


def test_a_lane_of_adam_that_is_reset_is_as_new_and_the_others_are_not():
    parameter = Parameter(torch.ones(3, 2))
    adam = LaneAdam([parameter], eps=1e-5)
    parameter.grad = torch.ones_like(parameter)
    adam.step(lr=torch.ones(3), max_grad_norm=torch.ones(3))
    adam.reset_lanes(torch.tensor([1]))
    for tensor in state_of(adam):
        assert not tensor[1].any()
        assert tensor[[0, 2]].all()
