"""What the probability ratios say, by hand."""

import math
from itertools import pairwise

import pytest
import torch

from ppo_lab.ppo.diagnostics import (
    NUM_RATIO_BINS,
    clip_fractions,
    ratio_diagnostics,
    ratio_edges,
    ratio_histogram,
)
from ppo_lab.ppo.losses import ClipRange


def clip_of(*epsilons, high=None):
    low = torch.tensor(epsilons)
    return ClipRange(low, low if high is None else torch.tensor(high))


# Ratios and advantages of ten rows. With epsilon 0.2: above are 1.3 1.4 1.5 2.0, below 0.5 0.6 0.7.
RATIOS = [0.5, 0.6, 0.7, 0.95, 1.0, 1.1, 1.3, 1.4, 1.5, 2.0]
ADVANTAGES = [-1.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0, 1.0, -1.0, 0.0]
# Cut above: 1.3 and 1.4 (A > 0). Cut below: 0.5 (A < 0). The gradient passes at 0.6 and 0.7
# (A > 0), 1.5 (A < 0) and 2.0 (A = 0 has none, but it is not cut).


def ten_rows():
    return torch.tensor([RATIOS]).log(), torch.tensor([ADVANTAGES])


def test_clip_fractions_tell_sides_cut_and_pass_apart():
    shares = clip_fractions(*ten_rows(), clip_of(0.2))
    assert {name: share.tolist() for name, share in shares.items()} == {
        "clip_frac": pytest.approx([0.7]),
        "clip_above_frac": pytest.approx([0.4]),
        "clip_below_frac": pytest.approx([0.3]),
        "cut_above_frac": pytest.approx([0.2]),
        "cut_below_frac": pytest.approx([0.1]),
        "pass_frac": pytest.approx([0.4]),
    }


def test_an_asymmetric_clip_moves_one_side_only():
    shares = clip_fractions(*ten_rows(), clip_of(0.2, high=[0.45]))
    assert shares["clip_above_frac"].tolist() == pytest.approx([0.2])  # 1.5 and 2.0
    assert shares["clip_below_frac"].tolist() == pytest.approx([0.3])
    assert shares["cut_above_frac"].tolist() == [0.0]


def test_without_a_clip_every_clip_fraction_is_zero_but_the_fixed_yardstick_is_not():
    result = ratio_diagnostics(*ten_rows(), clip_of(math.inf))
    assert result.clip_frac.item() == 0.0
    assert result.pass_frac.item() == 0.0
    assert result.outside_0p2_frac.item() == pytest.approx(0.7)


def test_the_fixed_yardstick_does_not_move_with_epsilon():
    for epsilon in (0.01, 0.2, 5.0):
        result = ratio_diagnostics(*ten_rows(), clip_of(epsilon))
        assert result.outside_0p2_frac.item() == pytest.approx(0.7)


def test_clip_fractions_of_many_minibatches_are_those_of_each():
    log_ratio, advantages = ten_rows()
    lanes = log_ratio.expand(2, -1), advantages.expand(2, -1)  # (L, R)
    clip = clip_of(0.2, 0.6)
    minibatches = [tensor.unflatten(-1, (5, 2)).movedim(1, 0) for tensor in lanes]  # (K, L, B)
    shares = clip_fractions(*minibatches, clip)
    for k in range(5):
        one = clip_fractions(minibatches[0][k], minibatches[1][k], clip)
        for name in shares:
            assert torch.equal(shares[name][k], one[name])
    for name, share in clip_fractions(*lanes, clip).items():
        torch.testing.assert_close(shares[name].mean(0), share)


def test_extremes_and_percentiles_are_ratios_at_their_ranks():
    # 101 ratios 1 .. 101 in any order: ranks 0, 1, 99 and 100.
    ratios = torch.arange(1.0, 102.0)[torch.randperm(101, generator=torch.Generator())]
    result = ratio_diagnostics(ratios.log().unsqueeze(0), torch.ones(1, 101), clip_of(0.2))
    assert result.ratio_min.item() == pytest.approx(1.0)
    assert result.ratio_p01.item() == pytest.approx(2.0)
    assert result.ratio_p99.item() == pytest.approx(100.0)
    assert result.ratio_max.item() == pytest.approx(101.0)


def test_the_three_kl_estimates_are_those_worked_out_by_hand():
    # log r = ln 2 and -ln 2. k1: mean(-log r) = 0. k2: (ln 2)^2 / 2 = 0.240227.
    # k3: ((2 - 1 - 0.693147) + (0.5 - 1 + 0.693147)) / 2 = 0.25.
    log_ratio = torch.tensor([[math.log(2.0), -math.log(2.0)]])
    result = ratio_diagnostics(log_ratio, torch.ones(1, 2), clip_of(0.2))
    assert result.kl_k1.item() == pytest.approx(0.0, abs=1e-7)
    assert result.kl_k2.item() == pytest.approx(0.2402265)
    assert result.kl_k3.item() == pytest.approx(0.25)


def test_k1_is_minus_the_mean_log_ratio():
    result = ratio_diagnostics(torch.tensor([[0.1, 0.3]]), torch.ones(1, 2), clip_of(0.2))
    assert result.kl_k1.item() == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("log_ratio", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0], 1.0),  # equal weights: all rows count
        ([3.0, 3.0, 3.0, 3.0], 1.0),  # a common factor cancels
        ([100.0, 0.0, 0.0, 0.0], 0.25),  # one dominates: 1 of 4
        ([1000.0, 0.0, 0.0, 0.0], 0.25),  # exp(1000) is no float
        ([math.log(3.0), 0.0, 0.0, 0.0], 0.75),  # (3 + 3)^2 / (9 + 3) / 4
    ],
)
def test_the_effective_sample_size_is_a_share_of_the_rows(log_ratio, expected):
    result = ratio_diagnostics(torch.tensor([log_ratio]), torch.ones(1, 4), clip_of(0.2))
    assert result.ess_frac.item() == pytest.approx(expected, rel=1e-5)


def test_every_lane_is_summarised_by_itself():
    log_ratio, advantages = ten_rows()
    stacked = ratio_diagnostics(
        torch.cat((log_ratio, 2.0 * log_ratio)),
        torch.cat((advantages, -advantages)),
        clip_of(0.2, 0.5),
    )
    alone = ratio_diagnostics(2.0 * log_ratio, -advantages, clip_of(0.5))
    for mine, reference in zip(stacked, alone):
        torch.testing.assert_close(mine[1:], reference)


def test_the_histogram_has_64_bins_a_sixteenth_of_a_decade_wide():
    edges = ratio_edges()
    assert len(edges) == NUM_RATIO_BINS + 1 == 65
    assert edges[0] == pytest.approx(0.01)
    assert edges[32] == pytest.approx(1.0)
    assert edges[64] == pytest.approx(100.0)
    for low, high in pairwise(edges):
        assert math.log10(high / low) == pytest.approx(1.0 / 16.0)


def test_each_ratio_is_counted_between_the_edges_around_it():
    edges = ratio_edges()
    centres = torch.tensor([math.sqrt(low * high) for low, high in pairwise(edges)])
    counts = ratio_histogram(centres.log().unsqueeze(0))
    assert torch.equal(counts, torch.ones(1, 64))


def test_what_lies_outside_is_counted_in_the_end_bins_and_nan_at_one():
    log_ratio = torch.tensor(
        [
            [-1e30, -math.inf, math.log(0.0099), math.log(101.0), math.inf, math.nan],
            [0.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        ]
    )
    counts = ratio_histogram(log_ratio)
    assert counts.sum(-1).tolist() == [6.0, 6.0]  # no row is lost
    assert counts[0, 0] == 3.0
    assert counts[0, 63] == 2.0
    assert counts[0, 32] == 1.0
    assert counts[1, 32] == 6.0  # a ratio of exactly 1 opens bin 32
