"""Means over live rows, by hand and against the published sums over ragged sequences."""

import math

import numpy as np
import pytest
import torch

from ppo_lab.ppo.losses import (
    ClipRange,
    approx_kl_k3,
    cispo,
    clipped_surrogate,
    explained_variance,
    gspo,
    normalize_advantages,
    value_loss,
)
from ppo_lab.ppo.row_weights import (
    Aggregation,
    live_weights,
    row_weights,
    rows_mean,
    scale_weights,
)

# Two sequences of at most 3 steps, with 1 and 3 live ones, and what is averaged over them.
LIVE = torch.tensor([[True, False, False, True, True, True]])
X = torch.tensor([[8.0, math.nan, math.inf, 1.0, 2.0, 3.0]])


def ragged(seed, num_lanes=2, num_sequences=6, num_steps=5):
    """Return random numbers (L, B) and which rows of sequences of 1 to T steps are live."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, num_steps + 1, (num_lanes, num_sequences, 1))
    live = torch.from_numpy(np.arange(num_steps) < lengths).flatten(1)
    x = torch.from_numpy(random.normal(size=live.shape))
    return x, live


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("token_mean", 3.5),  # (8 + 1 + 2 + 3) / 4
        ("sequence_mean", 5.0),  # (8 + (1 + 2 + 3) / 3) / 2
        ("sequence_sum", 14.0 / 6.0),  # (8 + 1 + 2 + 3) / (2 * 3)
    ],
)
def test_the_three_aggregations_are_those_worked_out_by_hand(aggregation, expected):
    how = Aggregation(aggregation)
    weights = scale_weights(row_weights(LIVE, 3, how), how)
    assert rows_mean(X, weights).item() == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aggregation", Aggregation)
def test_on_ragged_sequences_they_are_the_published_sums(aggregation, seed):
    x, live = ragged(seed)
    weights = scale_weights(row_weights(live, 5, aggregation), aggregation)
    found = rows_mean(x, weights)
    for lane in range(2):
        sequences = [
            row[alive]
            for row, alive in zip(
                x[lane].numpy().reshape(-1, 5), live[lane].numpy().reshape(-1, 5), strict=True
            )
        ]
        expected = {
            # DAPO: one over all tokens, times the sum over all tokens.
            Aggregation.token_mean: sum(s.sum() for s in sequences) / sum(map(len, sequences)),
            # GRPO: 1/G sum over i of 1/|o_i| sum over t.
            Aggregation.sequence_mean: sum(s.sum() / len(s) for s in sequences) / len(sequences),
            # Dr. GRPO: 1/G sum over i of 1/L_max sum over t.
            Aggregation.sequence_sum: sum(s.sum() / 5 for s in sequences) / len(sequences),
        }
        assert found[lane].item() == pytest.approx(expected[aggregation], rel=1e-6)


@pytest.mark.parametrize("aggregation", Aggregation)
def test_without_dead_rows_every_aggregation_is_the_plain_mean(aggregation):
    x, _ = ragged(0)
    live = torch.ones_like(x, dtype=torch.bool)
    weights = scale_weights(row_weights(live, 5, aggregation), aggregation)
    assert torch.equal(weights, torch.ones_like(weights))
    assert torch.equal(rows_mean(x, weights), rows_mean(x))


@pytest.mark.parametrize("aggregation", Aggregation)
@pytest.mark.parametrize("num_parts", [2, 3])
def test_the_means_of_micro_batches_add_up_to_that_of_the_minibatch(aggregation, num_parts):
    x, live = ragged(4)
    live[0, :15] = False  # dead parts
    weights = scale_weights(row_weights(live, 5, aggregation), aggregation)
    parts = zip(x.chunk(num_parts, -1), weights.chunk(num_parts, -1), strict=True)
    total = sum(rows_mean(*part) for part in parts) / num_parts
    torch.testing.assert_close(total, rows_mean(x, weights))


@pytest.mark.parametrize("aggregation", Aggregation)
def test_a_minibatch_without_live_rows_has_a_mean_of_zero(aggregation):
    live = torch.tensor([[False, False], [True, False]])
    weights = scale_weights(row_weights(live, 2, aggregation), aggregation)
    assert weights[0].tolist() == [0.0, 0.0]
    assert rows_mean(torch.full((2, 2), 3.0), weights)[0].item() == 0.0


def test_a_sequence_without_live_rows_counts_as_none_in_a_mean_and_as_zero_in_a_sum():
    live = torch.tensor([[True, True, False, False]])
    x = torch.tensor([[1.0, 3.0, 7.0, 7.0]])
    for aggregation, expected in (
        ("token_mean", 2.0),
        ("sequence_mean", 2.0),
        ("sequence_sum", 1.0),
    ):
        how = Aggregation(aggregation)
        assert rows_mean(x, scale_weights(row_weights(live, 2, how), how)).item() == expected


def test_weights_of_a_minibatch_do_not_depend_on_the_other_rows_of_the_rollout():
    _, live = ragged(5)
    how = Aggregation.sequence_mean
    all_weights = row_weights(live, 5, how)
    chosen = slice(10, 20)  # two whole sequences
    alone = scale_weights(row_weights(live[:, chosen], 5, how), how)
    torch.testing.assert_close(scale_weights(all_weights[:, chosen], how), alone)


def test_equal_weights_of_live_rows_have_a_mean_of_one():
    weights = live_weights(torch.tensor([[True, False, True, False], [True] * 4]))
    assert weights.tolist() == [[2.0, 0.0, 2.0, 0.0], [1.0] * 4]


CLIP = ClipRange(torch.tensor([0.2, 0.1]), torch.tensor([0.28, 0.1]))
LOSSES = {
    "clip": clipped_surrogate,
    "gspo": lambda *args, **options: gspo(*args, **options, num_steps=5),
    "cispo": cispo,
}


@pytest.mark.parametrize("dual_clip", [None, torch.tensor([1.5, 3.0])])
@pytest.mark.parametrize("name", LOSSES)
def test_a_policy_loss_with_equal_weights_is_bit_for_bit_that_without(name, dual_clip):
    log_ratio, _ = ragged(6)
    advantages, _ = ragged(7)
    loss, weights = LOSSES[name], torch.ones_like(log_ratio)
    plain = loss(log_ratio, advantages, CLIP, dual_clip)
    assert torch.equal(loss(log_ratio, advantages, CLIP, dual_clip, weights=weights), plain)


@pytest.mark.parametrize("name", LOSSES)
def test_what_dead_rows_hold_changes_neither_a_policy_loss_nor_its_gradient(name):
    def result(spoilt):
        log_ratio, live = ragged(8)
        advantages, _ = ragged(9)
        log_ratio = log_ratio.masked_fill(~live, spoilt).requires_grad_()
        loss = LOSSES[name](log_ratio, advantages, CLIP, weights=live_weights(live))
        loss.sum().backward()
        assert not log_ratio.grad[~live].any()
        return loss.detach(), log_ratio.grad

    for mine, reference in zip(result(math.inf), result(0.0), strict=True):
        assert torch.equal(mine, reference)
    for mine, reference in zip(result(math.nan), result(0.0), strict=True):
        assert torch.equal(mine, reference)


@pytest.mark.parametrize("epsilon", [None, torch.tensor([0.5])])
def test_statistics_of_live_rows_are_those_of_the_live_rows_alone(epsilon):
    values, targets, old = (torch.randn(1, 8, generator=torch.manual_seed(s)) for s in range(3))
    live = torch.tensor([[True, False, True, True, False, True, True, False]])
    weights = live_weights(live)
    short = [x[live].unsqueeze(0) for x in (values, old, targets)]
    torch.testing.assert_close(
        value_loss(values, old, targets, epsilon, weights), value_loss(*short, epsilon)
    )
    torch.testing.assert_close(approx_kl_k3(values, weights), approx_kl_k3(short[0]))
    torch.testing.assert_close(
        explained_variance(values, targets, weights), explained_variance(short[0], short[2])
    )
    normalized = normalize_advantages(values, live)
    torch.testing.assert_close(normalized[live], normalize_advantages(short[0])[0])
    assert not normalized[~live].any()


def test_live_advantages_are_normalised_with_the_unbiased_deviation():
    # 1, 2, 3 live: mean 2, deviation 1 (over n - 1 = 2). One live row stays, none gives zeros.
    live = torch.tensor([[True, True, False, True], [False, True, False, False], [False] * 4])
    advantages = torch.tensor([[1.0, 2.0, 90.0, 3.0], [5.0, -3.0, 5.0, 5.0], [1.0, 2.0, 3.0, 4.0]])
    assert normalize_advantages(advantages, live).tolist() == [
        pytest.approx([-1.0, 0.0, 0.0, 1.0], abs=1e-6),
        [0.0, -3.0, 0.0, 0.0],
        [0.0] * 4,
    ]


def test_explained_variance_of_constant_live_targets_is_nan():
    weights = live_weights(torch.tensor([[True, True, False]]))
    values, targets = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 4.0, 9.0]])
    assert math.isnan(explained_variance(values, targets, weights).item())
