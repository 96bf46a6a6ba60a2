"""Log-probabilities in chunks of rows against all at once; sampling from many actions."""

import math

import pytest
import torch

from ppo_lab.envs.base import DiscreteActions
from ppo_lab.networks import distribution_for
from ppo_lab.networks.layers import LaneLinear
from ppo_lab.networks.token_head import token_log_prob_and_entropy
from ppo_lab.utils.rng import Stream, lane_keys
from ppo_lab.utils.torch_private import FakeTensorMode

NUM_TOKENS = 300
# 7 rows of 2 lanes: all at once, chunks of 3, 3 and 1, each row alone although it has more.
CHUNKS = [2 * 7 * NUM_TOKENS, 2 * 3 * NUM_TOKENS, 1]


def random(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=dtype)


def inputs(dtype=torch.float64):
    """Features, head and actions of 2 lanes, 7 rows and 5 features."""
    head = LaneLinear(random(2, 5, NUM_TOKENS, dtype=dtype))
    head.bias.data.copy_(random(2, 1, NUM_TOKENS, dtype=dtype))
    actions = torch.arange(14).view(2, 7) * 23 % NUM_TOKENS
    return random(2, 7, 5, dtype=dtype).requires_grad_(), head, actions


@pytest.mark.parametrize("max_logits", CHUNKS)
def test_values_and_gradients_are_those_of_all_logits_at_once(max_logits):
    features, head, actions = inputs()
    logits = features @ head.weight + head.bias
    reference = torch.distributions.Categorical(logits=logits)
    expected = reference.log_prob(actions), reference.entropy()
    found = token_log_prob_and_entropy(features, head, actions, max_logits=max_logits)
    leaves = [features, head.weight, head.bias]
    weights = random(2, 7), random(7, 2).T
    gradients = [
        torch.autograd.grad(sum((a * b).sum() for a, b in zip(pair, weights)), leaves)
        for pair in (found, expected)
    ]
    for mine, theirs in zip((*found, *gradients[0]), (*expected, *gradients[1])):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("max_logits", CHUNKS[1:])
def test_chunks_store_no_logits_for_the_backward_pass(max_logits):
    features, head, actions = inputs()
    stored = []

    def keep(tensor):
        stored.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        token_log_prob_and_entropy(features, head, actions, max_logits=max_logits)
        # A chunk's own inputs at most: 3 rows of 5 features, of 2 lanes.
        assert max(stored, default=0) <= 30
        token_log_prob_and_entropy(features, head, actions)
        assert max(stored) == 2 * 7 * NUM_TOKENS


@pytest.mark.parametrize("max_logits", CHUNKS)
def test_a_small_vocabulary_has_the_numbers_of_the_plain_head_bit_for_bit(max_logits):
    features, head, actions = inputs(torch.float32)
    with torch.no_grad():
        found = token_log_prob_and_entropy(features, head, actions, max_logits=2**24)
        categorical = distribution_for(DiscreteActions(NUM_TOKENS))
        expected = categorical.log_prob_and_entropy(head(features), actions)
        chunked = token_log_prob_and_entropy(features, head, actions, max_logits=max_logits)
    for mine, theirs, other in zip(found, expected, chunked):
        assert torch.equal(mine, theirs)
        torch.testing.assert_close(other, theirs, rtol=0.0, atol=1e-5)
        assert not other.requires_grad


@pytest.mark.parametrize("max_logits", CHUNKS)
def test_under_autocast_logits_are_rounded_and_their_softmax_is_not(max_logits):
    features, head, actions = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = token_log_prob_and_entropy(features, head, actions, max_logits=max_logits)
        logits = head(features)
    assert logits.dtype is torch.bfloat16
    expected = logits.float().log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found[0], expected, rtol=0.0, atol=1e-5)
    (found[0].sum() + found[1].sum()).backward()
    assert found[0].dtype is found[1].dtype is head.weight.grad.dtype is torch.float32


def test_a_real_vocabulary_needs_no_memory_on_fake_tensors():
    with FakeTensorMode():
        head = LaneLinear(torch.empty(1, 896, 151_936))
        features = torch.empty(1, 2048, 896, requires_grad=True)
        actions = torch.zeros(1, 2048, dtype=torch.int64)
        log_prob, entropy = token_log_prob_and_entropy(features, head, actions)
        (log_prob.sum() + entropy.sum()).backward()
    assert log_prob.shape == entropy.shape == (1, 2048)
    assert head.weight.grad.shape == head.weight.shape


# One random number a sample, of more than 256 actions.

MANY = distribution_for(DiscreteActions(1000))


def test_up_to_256_actions_take_a_number_each_and_more_take_one():
    assert distribution_for(DiscreteActions(256)).noise_size == 256
    assert distribution_for(DiscreteActions(257)).noise_size == 1
    noise = MANY.noise(lane_keys(torch.tensor([1, 2]), Stream.ACTION), 5, torch.float32)
    assert noise.shape == (2, 5, 1)
    assert ((noise > 0.0) & (noise < 1.0)).all()
    assert MANY.max_entropy == pytest.approx(math.log(1000))


def test_many_actions_are_sampled_as_often_as_they_say():
    logits = torch.full((1000,), -math.inf)
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.09, 0.01])
    logits[torch.tensor([0, 7, 500, 501, 998])] = probabilities.log()
    noise = MANY.noise(lane_keys(torch.tensor([1]), Stream.ACTION), 10_000, torch.float32)
    actions = MANY.sample(logits.expand(1, 10_000, 1000), noise)
    assert actions.dtype is torch.int64
    shares = actions[0].bincount(minlength=1000) / 10_000
    assert shares.count_nonzero() == 5  # never one of probability 0
    errors = (probabilities * (1 - probabilities) / 10_000).sqrt()
    assert ((shares[shares > 0] - probabilities).abs() < 4 * errors).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_sample_is_the_inverse_of_the_distribution_function(dtype):
    # Probabilities 1/4 and 3/4 at actions 3 and 900: below 1/4 the first, from there the second.
    logits = torch.full((5, 1000), -math.inf, dtype=dtype)
    logits[:, 3], logits[:, 900] = 0.0, math.log(3.0)
    step = 2.0**-24
    u = torch.tensor([[step], [0.25 - step], [0.25 + step], [0.5], [1.0 - step]], dtype=dtype)
    assert MANY.sample(logits, u).tolist() == [3, 3, 900, 900, 900]


def test_extreme_numbers_choose_the_first_and_the_last_of_many_equal_actions():
    for num_actions in (257, 151_936):
        categorical = distribution_for(DiscreteActions(num_actions))
        logits = torch.zeros(2, num_actions)
        u = torch.tensor([[2.0**-24], [1.0 - 2.0**-24]])
        assert categorical.sample(logits, u).tolist() == [0, num_actions - 1]


def test_a_policy_of_nan_still_answers_with_an_action():
    # The check for NaN names the run and the iteration; an index out of range would not.
    actions = MANY.sample(torch.full((2, 1000), math.nan), torch.full((2, 1), 0.5))
    assert ((actions >= 0) & (actions < 1000)).all()
