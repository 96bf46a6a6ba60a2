"""Counter-based random numbers: SplitMix64 by the book, and every lane on its own."""

import math

import pytest
import torch

from ppo_lab.utils import rng
from ppo_lab.utils.rng import Stream

MASK = (1 << 64) - 1
GOLDEN_GAMMA = 0x9E3779B97F4A7C15


def mix(x):
    """SplitMix64's finaliser in Python's unbounded integers, cut to 64 bits by hand."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def reference_bits(key, count, start=0):
    return [mix((key + (start + k + 1) * GOLDEN_GAMMA) & MASK) for k in range(count)]


def reference_fold_in(key, data):
    return mix(mix((key + GOLDEN_GAMMA) & MASK) ^ mix((data + 1) & MASK))


def reference_lane_key(seed, stream):
    return reference_fold_in(mix((seed + GOLDEN_GAMMA) & MASK), int(stream))


def unsigned(tensor):
    return [value & MASK for value in tensor.flatten().tolist()]


def keys_of(*seeds, stream=Stream.ACTION):
    return rng.lane_keys(torch.tensor(seeds), stream)


def test_bits_of_key_1234567_are_the_published_splitmix64_sequence():
    # Vigna's splitmix64.c seeded with 1234567; the values every port is checked against.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert reference_bits(1234567, 5) == published
    assert unsigned(rng.bits(torch.tensor([1234567]), 5)) == published


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63), 0x0123456789ABCDEF])
def test_bits_and_fold_in_equal_a_reference_in_unbounded_integers(key):
    keys = torch.tensor([key])
    assert unsigned(rng.bits(keys, 50, start=7)) == reference_bits(key & MASK, 50, start=7)
    for data in (0, 1, 12345, 2**62):
        assert unsigned(rng.fold_in(keys, data)) == [reference_fold_in(key & MASK, data)]


def test_lane_keys_equal_the_reference_for_every_stream():
    for stream in Stream:
        for seed in (0, 1, 2**63 - 1):
            assert unsigned(keys_of(seed, stream=stream)) == [reference_lane_key(seed, stream)]


def test_fold_in_takes_one_number_per_lane():
    keys, data = keys_of(1, 2, 3), torch.tensor([5, 6, 7])
    folded = rng.fold_in(keys, data)
    for lane in range(3):
        assert torch.equal(folded[lane : lane + 1], rng.fold_in(keys[lane : lane + 1], 5 + lane))


def test_streams_seeds_and_iterations_never_share_a_key():
    keys = [
        rng.fold_in(keys_of(*range(100), stream=stream), iteration)
        for stream in Stream
        for iteration in range(20)
    ]
    everything = torch.cat(keys)
    assert len(everything.unique()) == len(Stream) * 20 * 100


DRAWS = {
    "bits": lambda keys: rng.bits(keys, 257),
    "uniform": lambda keys: rng.uniform(keys, 257),
    "normal": lambda keys: rng.normal(keys, 257),
    "permutation": lambda keys: rng.permutation(keys, 257),
    "fold_in": lambda keys: rng.fold_in(keys, 3),
}


@pytest.mark.parametrize("name", DRAWS)
def test_a_lane_draws_the_same_numbers_alone_as_in_any_stack(name):
    draw, seeds = DRAWS[name], (7, 1, 7, 2**40)
    stacked = draw(keys_of(*seeds))
    for lane, seed in enumerate(seeds):
        assert torch.equal(stacked[lane], draw(keys_of(seed))[0])  # bit for bit


@pytest.mark.parametrize("draw", [rng.bits, rng.uniform, rng.normal])
def test_a_start_offset_is_a_slice_of_the_longer_draw(draw):
    keys = keys_of(1, 2)
    longer = draw(keys, 100)
    assert torch.equal(draw(keys, 30, 70), longer[:, 70:])
    per_lane = draw(keys, 10, torch.tensor([5, 90]))
    assert torch.equal(per_lane[0], longer[0, 5:15])
    assert torch.equal(per_lane[1], longer[1, 90:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_never_reaches_zero_or_one_and_normal_stays_finite(dtype, monkeypatch):
    # All 64 bits 0 and all 64 bits 1: the two ends of the grid, (0 + 0.5) / 2^23 and its mirror.
    ends = torch.tensor([[0, -1]])
    monkeypatch.setattr(rng, "bits", lambda keys, count, start=0: ends)
    assert rng.uniform(keys_of(1), 2, dtype=dtype).tolist() == [[2.0**-24, 1.0 - 2.0**-24]]
    low, high = rng.normal(keys_of(1), 2, dtype=dtype)[0].tolist()
    assert math.isfinite(low)
    assert low == -high
    assert 5.0 < high < 6.0  # the normal quantile of 1 - 2^-24 is 5.3


def test_uniform_numbers_have_the_moments_and_the_flatness_of_a_uniform():
    u = rng.uniform(keys_of(1, 2), 200_000).double()
    assert u.dtype is torch.float64
    assert u.min() > 0.0
    assert u.max() < 1.0
    # Standard errors with 200k: of the mean sqrt(1/12/2e5) = 6.5e-4, of the variance 1.7e-4.
    assert (u.mean(-1) - 0.5).abs().max() < 4 * 6.5e-4
    assert (u.var(-1) - 1.0 / 12.0).abs().max() < 4 * 1.7e-4
    counts = torch.stack([row.histc(64, 0.0, 1.0) for row in u])
    chi2 = ((counts - 3125.0).square() / 3125.0).sum(-1)  # 63 degrees of freedom: 63 +- 11
    assert chi2.max() < 63 + 4 * 11
    assert chi2.min() > 63 - 4 * 11


def test_neighbouring_seeds_and_counters_are_uncorrelated():
    u = rng.uniform(keys_of(1, 2), 200_000).double()
    assert torch.corrcoef(u)[0, 1].abs() < 0.01  # standard error 0.0022
    assert torch.corrcoef(torch.stack((u[0, :-1], u[0, 1:])))[0, 1].abs() < 0.01


def test_normal_numbers_have_the_first_four_moments_of_a_normal():
    z = rng.normal(keys_of(1), 400_000).double()[0]
    # Standard errors: mean 1.6e-3, variance 2.2e-3, skewness 3.9e-3, kurtosis 7.7e-3.
    assert abs(z.mean()) < 4 * 1.6e-3
    assert abs(z.var() - 1.0) < 4 * 2.2e-3
    assert abs(z.pow(3).mean()) < 4 * 6.1e-3  # of the third moment itself: sqrt(15 / 4e5)
    assert abs(z.pow(4).mean() - 3.0) < 4 * 15.5e-3  # sqrt(96 / 4e5)
    assert abs((z.abs() < 1.959964).double().mean() - 0.95) < 4 * 3.4e-4


@pytest.mark.parametrize("count", [1, 2, 5, 1024])
def test_a_permutation_holds_every_number_once(count):
    shuffled = rng.permutation(keys_of(1, 2, 3), count)
    assert shuffled.dtype is torch.int64
    assert torch.equal(shuffled.sort(-1).values, torch.arange(count).expand(3, -1))


def test_permutations_of_three_come_up_equally_often():
    shuffled = rng.permutation(rng.fold_in(keys_of(1), torch.arange(6000)), 3)
    codes = shuffled @ torch.tensor([9, 3, 1])
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 6
    assert (counts - 1000).abs().max() < 4 * 29  # sqrt(6000 * 1/6 * 5/6) = 29
