"""Diagnostics where not all rows are live: those of the live rows, each counting the same."""

import dataclasses
import math

import pytest
import torch

from ppo_lab.ppo.after_update import after_update
from ppo_lab.ppo.diagnostics import (
    UpdateLog,
    apply_target_kl,
    clip_fractions,
    ratio_diagnostics,
    ratio_histogram,
)
from ppo_lab.ppo.losses import ClipRange, standard_deviation
from ppo_lab.ppo.row_weights import Aggregation, live_weights, row_weights
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import config, lanes_of, numbers_of, record_rows, weights


def clip_of(*epsilons):
    return ClipRange(torch.tensor(epsilons), torch.tensor(epsilons))


def random_rows(num_rows, num_lanes=2):
    generator = torch.Generator().manual_seed(num_rows)
    log_ratio = 0.3 * torch.randn(num_lanes, num_rows, generator=generator)
    advantages = torch.randn(num_lanes, num_rows, generator=generator)
    live = torch.rand(num_lanes, num_rows, generator=generator) < 0.6
    live[:, 0] = True
    return log_ratio, advantages, live


@pytest.mark.parametrize("spoilt", [0.0, 50.0, -math.inf, math.inf, math.nan])
@pytest.mark.parametrize("num_rows", [1, 7, 1000])
def test_diagnostics_of_live_rows_are_those_of_the_live_rows_alone(num_rows, spoilt):
    """Also the percentiles, at other ranks in each lane."""
    log_ratio, advantages, live = random_rows(num_rows)
    spoilt_ratio = log_ratio.masked_fill(~live, spoilt)
    found = ratio_diagnostics(spoilt_ratio, advantages, clip_of(0.2, 0.1), live)
    counts = ratio_histogram(spoilt_ratio, live)
    for lane, epsilon in enumerate((0.2, 0.1)):
        alone = log_ratio[lane, live[lane]].unsqueeze(0)
        own = advantages[lane, live[lane]].unsqueeze(0)
        expected = ratio_diagnostics(alone, own, clip_of(epsilon))
        for mine, reference in zip(found, expected, strict=True):
            torch.testing.assert_close(mine[lane : lane + 1], reference)
        assert torch.equal(counts[lane : lane + 1], ratio_histogram(alone))


def test_with_all_rows_live_the_diagnostics_are_the_same():
    log_ratio, advantages, _ = random_rows(50)
    live = torch.ones_like(log_ratio, dtype=torch.bool)
    plain = ratio_diagnostics(log_ratio, advantages, clip_of(0.2, 0.1))
    for mine, reference in zip(
        ratio_diagnostics(log_ratio, advantages, clip_of(0.2, 0.1), live), plain, strict=True
    ):
        assert torch.equal(mine, reference)


def test_gspos_clip_fractions_are_of_sequences():
    # Geometric means 1.1 and 2 of two live rows each, though the rows' ratios are on both sides.
    log_ratio = torch.tensor([[1.21, 1.0, 99.0, 0.5, 99.0, 8.0]]).log()
    live = torch.tensor([[True, True, False, True, False, True]])
    shares = clip_fractions(
        log_ratio, torch.ones(1, 6), clip_of(0.2), live_weights(live), clipped_steps=3
    )
    expected = {"clip_frac": 0.5, "clip_above_frac": 0.5, "cut_above_frac": 0.5}
    for name, share in shares.items():
        assert share.item() == expected.get(name, 0.0)
    # The KL and the extremes stay those of rows.
    found = ratio_diagnostics(log_ratio, torch.ones(1, 6), clip_of(0.2), live, clipped_steps=3)
    assert found.clip_frac.item() == 0.5
    assert found.ratio_max.item() == pytest.approx(8.0)


def test_the_standard_deviation_of_live_rows():
    live = torch.tensor([[True, True, False, True], [False, True, False, False]])
    x = torch.tensor([[1.0, 2.0, math.nan, 3.0], [9.0, 5.0, 9.0, 9.0]])
    assert standard_deviation(x, live).tolist() == [1.0, 0.0]
    pair = torch.tensor([[False, True, False, True]])
    assert standard_deviation(x[:1], pair).tolist() == [pytest.approx(0.5**0.5)]  # of 2 and 3
    assert standard_deviation(x[:1, :2]).item() == pytest.approx(0.5**0.5)


# Two minibatches of two rows in one lane, three of them live: log ratios 0.1 and 0.3, then -0.2.
LIVE = torch.tensor([[True, True]]), torch.tensor([[False, True]])
LOG_RATIOS = torch.tensor([[0.1, 0.3]]), torch.tensor([[math.nan, -0.2]])
ENTROPIES = torch.tensor([[0.1, 0.2]]), torch.tensor([[math.nan, 0.6]])


def filled_log(**options):
    log = UpdateLog((1, 1, 4), 2, 1, like=torch.zeros(1), has_dead_rows=True, **options)
    for number, step in enumerate(log.steps):
        step.begin(torch.ones(1, 2), LIVE[number])
        step.log_ratios.copy_(LOG_RATIOS[number])
        weighted = (ENTROPIES[number] * step.live_weights).masked_fill(~LIVE[number], 0.0)
        step.entropy.copy_(weighted.mean(-1))
        step.policy_loss.fill_((1.0, 3.0)[number])
    return log


def test_each_live_row_of_an_update_counts_the_same():
    found = filled_log().means(clip_of(0.15))
    assert found.old_approx_kl.item() == pytest.approx(-0.2 / 3)  # -(0.1 + 0.3 - 0.2) / 3
    assert found.entropy.item() == pytest.approx(0.3)  # (0.1 + 0.2 + 0.6) / 3
    assert found.clip_above_frac.item() == found.clip_below_frac.item() == pytest.approx(1 / 3)
    assert found.ratio_min.item() == pytest.approx(math.exp(-0.2))
    assert found.ratio_max.item() == pytest.approx(math.exp(0.3))
    assert found.policy_loss.item() == 2.0  # a step's loss is what it minimized
    assert found.gradient_steps.tolist() == [2]


def test_extremes_are_of_live_rows_even_if_all_are_on_one_side():
    log = filled_log()
    log.steps[1].log_ratios.fill_(0.5)
    found = log.means(clip_of(0.15))
    assert found.ratio_min.item() == pytest.approx(math.exp(0.1))  # not the 1 of a dead row


def test_a_minibatch_without_live_rows_counts_in_no_mean_of_rows():
    log = filled_log()
    log.steps[1].begin(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    log.steps[1].entropy.zero_()
    found = log.means(clip_of(0.15))
    assert found.old_approx_kl.item() == pytest.approx(-0.2)
    assert found.entropy.item() == pytest.approx(0.15)
    assert found.clip_frac.item() == pytest.approx(0.5)


def test_rows_of_a_step_that_was_not_taken_do_not_count():
    log = filled_log()
    log.steps[1].active.zero_()
    found = log.means(clip_of(0.15))
    assert found.old_approx_kl.item() == pytest.approx(-0.2)
    assert found.entropy.item() == pytest.approx(0.15)


def test_the_limit_of_kl_is_on_the_live_rows():
    log = UpdateLog((1, 1, 2), 1, 1, like=torch.zeros(1), has_dead_rows=True)
    (step,) = log.steps
    step.begin(torch.ones(1, 2), torch.tensor([[True, False]]))
    step.log_ratios[:] = torch.tensor([math.log(2.0), math.nan])  # k3 = 1 - log 2 = 0.30685
    assert apply_target_kl(step, None, torch.tensor([0.3069 / 1.5])).item() is True
    assert apply_target_kl(step, None, torch.tensor([0.3068 / 1.5])).item() is False


def test_parts_of_a_step_have_the_weights_of_the_whole_minibatch():
    log = UpdateLog((1, 1, 4), 1, 1, like=torch.zeros(1), has_dead_rows=True)
    (step,) = log.steps
    step.begin(torch.arange(4.0).unsqueeze(0), torch.tensor([[True, False, False, False]]))
    first, second = step.split(2)
    assert first.live_weights.tolist() == [[4.0, 0.0]]
    assert second.live_weights.tolist() == [[0.0, 0.0]]
    assert second.advantages.tolist() == [[2.0, 3.0]]
    second.log_ratios.fill_(1.0)
    assert step.log_ratios.tolist() == [[0.0, 0.0, 1.0, 1.0]]  # views


def test_without_a_critic_there_is_no_value_loss_and_losses_are_counted_without_it():
    log = filled_log(has_critic=False)
    assert log.steps[0].value_loss is None
    log.steps[1].grad_norms[0, 0] = math.inf  # policy loss and norm, policy loss, norm
    found = log.means(clip_of(0.15))
    assert found.value_loss is None
    assert found.first_bad.tolist() == [3]


SMALL = ("num_envs=4", "num_steps=5", "num_epochs=3", "num_minibatches=2")


@pytest.fixture(scope="module")
def trainer():
    return Trainer(lanes_of(config(*SMALL), {"seed": 1}, {"seed": 2}))


def with_dead_rows(rows, aggregation):
    """Return rows of four sequences with 1 to 5 live steps."""
    live = torch.arange(5) < torch.tensor([[3], [1], [5], [2]])
    live = live.flatten().expand(len(rows.advantages), -1)
    return rows._replace(live=live, weights=row_weights(live, 5, aggregation))


def test_diagnostics_after_an_update_do_not_see_dead_rows(trainer):
    rows = with_dead_rows(record_rows(trainer), Aggregation.token_mean)
    clip = clip_of(0.2, 0.2)
    found = after_update(trainer.model, rows, clip, trainer.plan)
    dead = ~rows.live
    spoilt = rows._replace(
        log_probs=rows.log_probs.masked_fill(dead, 40.0),
        advantages=rows.advantages.masked_fill(dead, -70.0),
        values=rows.values.masked_fill(dead, 70.0),
    )
    again = after_update(trainer.model, spoilt, clip, trainer.plan)
    for mine, reference in zip((*again[0], *again[1:]), (*found[0], *found[1:]), strict=True):
        assert torch.equal(mine, reference)
    assert found.ratio_counts.sum(-1).tolist() == [11.0, 11.0]
    for lane in range(2):
        live = rows.live[lane]
        expected = rows.advantages[lane, live].std().item()
        assert found.advantages_std[lane].item() == pytest.approx(expected, rel=1e-5)


def test_without_a_critic_no_variance_is_explained(trainer):
    rows = record_rows(trainer)._replace(values=None, value_targets=None)
    found = after_update(trainer.model, rows, clip_of(0.2, 0.2), trainer.plan)
    assert found.explained_variance is None


@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("num_parts", [1, 2])
def test_an_update_never_sees_what_dead_rows_hold(aggregation, num_parts):
    base = config(*SMALL, f"memory.num_micro_batches={num_parts}")
    results = []
    for spoilt in (None, 30.0):
        trainer = Trainer([base])
        trainer.plan = dataclasses.replace(trainer.plan, aggregation=aggregation)
        rows = with_dead_rows(record_rows(trainer), aggregation)
        if spoilt is not None:
            columns = ("log_probs", "advantages", "values", "value_targets")
            dead = {name: getattr(rows, name).masked_fill(~rows.live, spoilt) for name in columns}
            rows = rows._replace(**dead)
        found = trainer.update(rows)
        results.append((*numbers_of(found), weights(trainer)))
    for mine, reference in zip(*results, strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("aggregation", Aggregation)
def test_an_update_with_micro_batches_is_that_without(aggregation):
    results = []
    for num_parts in (1, 2, 5):
        trainer = Trainer([config(*SMALL, f"memory.num_micro_batches={num_parts}")])
        trainer.plan = dataclasses.replace(trainer.plan, aggregation=aggregation)
        found = trainer.update(with_dead_rows(record_rows(trainer), aggregation))
        results.append((*numbers_of(found), weights(trainer)))
    for split in results[1:]:
        for mine, reference in zip(split, results[0], strict=True):
            torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)
