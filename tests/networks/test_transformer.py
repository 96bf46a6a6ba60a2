"""The transformer: what a step may see, its memory, lanes, sizes and what it refuses.

A tiny model, 2 blocks of 16 with 2 heads, whose weights are large enough to matter.
"""

import dataclasses
import math

import pytest
import torch

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.networks import Initializer, TransformerConfig
from ppo_lab.networks.base import Initialization
from ppo_lab.networks.token_head import token_log_prob_and_entropy
from ppo_lab.networks.transformer import Positions
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.torch_private import FakeTensorMode

SPEC = EnvSpec(1, DiscreteActions(11), num_tokens=11)
POSITIONS = pytest.mark.parametrize("positions", Positions, ids=[p.value for p in Positions])


def options(**changes):
    return TransformerConfig(**{"depth": 2, "width": 16, "num_heads": 2, "max_length": 9} | changes)


def initializer(*seeds, dtype=torch.float32):
    return Initializer(torch.tensor(seeds or (1,)), torch.device("cpu"), dtype)


def trunk_of(network, *seeds, dtype=torch.float32):
    trunk = network.build_trunk(SPEC, initializer(*seeds, dtype=dtype))
    with torch.no_grad():
        for parameter in trunk.parameters():
            # From a deviation of 0.02 to 0.3; biases, which start at 0, to a pattern.
            pattern = torch.arange(parameter[0].numel(), dtype=dtype).cos().view_as(parameter[0])
            parameter.mul_(15.0).add_(0.1 * pattern)
    return trunk


def tokens(num_lanes=1, num_sequences=3, num_steps=9):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(11, (num_lanes, num_sequences, num_steps, 1), generator=generator)


def features(trunk, sequences):
    return trunk.read(sequences, None, None)[0]


@torch.no_grad()
def in_pieces(trunk, sequences, *sizes):
    """Read ``sequences`` with a memory, these numbers of steps at a time."""
    memory, found = trunk.empty_memory(sequences.shape[1], sequences.shape[2]), []
    for piece in sequences.split(sizes, 2):
        read, memory = trunk.read(piece, None, memory)
        found.append(read)
    assert memory.num_steps == sequences.shape[2]
    return torch.cat(found, 2)


def reference(trunk, sequences, num_heads):
    """One lane's features by the formulas, one sequence and head at a time."""

    def linear(layer, x):
        return x @ layer.weight[0] + layer.bias[0, 0]

    def norm(x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    def turned(x):  # each pair (i, i + D/2) as a complex number, turned by step * 10000^(-2i/D)
        half = x.shape[-1] // 2
        i, step = torch.arange(half).double(), torch.arange(len(x)).unsqueeze(-1)
        pairs = torch.complex(x[:, :half], x[:, half:])
        pairs = pairs * torch.exp(1j * step * 10_000.0 ** (-i / half))
        return torch.cat((pairs.real, pairs.imag), -1)

    found = []
    for sequence in sequences[0, :, :, 0]:
        num_steps = len(sequence)
        x = trunk.embedding.weight[0][sequence]
        if trunk.positions is not None:
            x = x + trunk.positions.weight[0][:num_steps]
        for block in trunk.blocks:
            heads, mixed = linear(block.attend, norm(x)).chunk(3, -1), []
            for q, k, v in zip(*(part.chunk(num_heads, -1) for part in heads)):
                if trunk.positions is None:
                    q, k = turned(q), turned(k)
                scores = q @ k.T / math.sqrt(q.shape[-1])
                hidden = torch.ones(num_steps, num_steps, dtype=torch.bool).triu(1)
                mixed.append(scores.masked_fill(hidden, -math.inf).softmax(-1) @ v)
            x = x + linear(block.mix, torch.cat(mixed, -1))
            wide = linear(block.expand, norm(x))
            x = x + linear(block.reduce, wide * 0.5 * (1.0 + torch.erf(wide / math.sqrt(2.0))))
        found.append(norm(x))
    return torch.stack(found).unsqueeze(0)


@POSITIONS
def test_features_are_those_of_the_formulas(positions):
    trunk = trunk_of(options(positions=positions), dtype=torch.float64)
    expected = reference(trunk, tokens(), 2)
    torch.testing.assert_close(features(trunk, tokens()), expected, rtol=0.0, atol=1e-12)


@POSITIONS
def test_a_step_sees_itself_and_all_before_it_and_nothing_later(positions):
    trunk, sequences = trunk_of(options(positions=positions)), tokens()
    for step in range(9):
        changed = sequences.clone()
        changed[:, :, step] = (changed[:, :, step] + 1) % 11
        differs = (features(trunk, changed) - features(trunk, sequences)).abs().amax((0, 1, 3))
        assert not differs[:step].any()
        assert (differs[step:] > 1e-4).all()


@POSITIONS
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=["32", "64"]
)
@pytest.mark.parametrize("sizes", [(1,) * 9, (9,), (4, 5), (5, 1, 1, 2)], ids=str)
def test_reading_in_pieces_with_a_memory_is_reading_at_once(positions, dtype, tolerance, sizes):
    trunk = trunk_of(options(positions=positions), 1, 2, dtype=dtype)
    sequences = tokens(num_lanes=2)
    found, expected = in_pieces(trunk, sequences, *sizes), features(trunk, sequences)
    torch.testing.assert_close(found, expected, rtol=0.0, atol=tolerance)
    assert found.dtype is dtype


@POSITIONS
def test_in_bfloat16_a_memory_keeps_features_within_a_few_percent(positions):
    trunk, sequences = trunk_of(options(positions=positions)), tokens()
    exact = features(trunk, sequences)  # of order 1: they come from a norm
    with torch.autocast("cpu", torch.bfloat16):
        assert trunk.empty_memory(3, 9).cache.dtype is torch.bfloat16
        found, expected = in_pieces(trunk, sequences, *(1,) * 9), features(trunk, sequences)
    for other in (expected, exact):
        assert 0.0 < (found - other).abs().max() < 0.05  # 8 bits: 0.4 % a product
    assert features(trunk, sequences).dtype is torch.float32


@POSITIONS
def test_a_memory_made_outside_of_autocast_serves_inside(positions):
    trunk, sequences = trunk_of(options(positions=positions)), tokens()
    memory = trunk.empty_memory(3, 9)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        first, memory = trunk.read(sequences[:, :, :1], None, memory)
        second, _ = trunk.read(sequences[:, :, 1:], None, memory)
        found, expected = torch.cat((first, second), 2), features(trunk, sequences)
    assert (found - expected).abs().max() < 0.05


@POSITIONS
def test_a_lane_of_a_stack_has_the_numbers_and_gradients_of_the_lane_alone(positions):
    stack, alone = (
        trunk_of(options(positions=positions), 3, 4),
        trunk_of(options(positions=positions), 4),
    )
    sequences = tokens(num_lanes=2)
    found, expected = features(stack, sequences), features(alone, sequences[1:])
    torch.testing.assert_close(found[1:], expected, rtol=0.0, atol=1e-6)
    assert (found[0] - found[1]).abs().max() > 0.1
    found.square().mul(torch.arange(16.0)).sum().backward()
    expected.square().mul(torch.arange(16.0)).sum().backward()
    for mine, theirs in zip(stack.parameters(), alone.parameters()):
        torch.testing.assert_close(mine.grad[1:], theirs.grad, rtol=1e-4, atol=1e-4)


@POSITIONS
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_recomputed_activations_give_the_same_gradients(positions, depth):
    trunk = trunk_of(options(positions=positions, depth=depth))
    trunk_gradients = []
    for checkpoints in (False, True):
        trunk.checkpoints_activations = checkpoints
        loss = (features(trunk, tokens()) * torch.arange(16.0)).sum()
        trunk_gradients.append(torch.autograd.grad(loss, [*trunk.parameters()]))
    for plain, recomputed in zip(*trunk_gradients):
        assert torch.equal(plain, recomputed)
    assert trunk.can_checkpoint is (depth > 1)


def test_recomputing_stores_one_output_per_block_and_all_of_the_last():
    trunk, stored = trunk_of(options(depth=4)), []

    def num_stored():
        def keep(tensor):
            stored.append(tensor.numel())
            return tensor

        stored.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            features(trunk, tokens())
        return sum(stored)

    plain = num_stored()
    trunk.checkpoints_activations = True
    assert num_stored() < 0.35 * plain  # one block of four, and the tokens


@POSITIONS
def test_a_trunk_builds_and_reads_without_memory_for_it(positions):
    network = options(positions=positions, depth=3, width=1024, num_heads=8)
    with FakeTensorMode(), torch.no_grad():
        trunk = network.build_trunk(SPEC, initializer())
        trunk.checkpoints_activations = True
        x = torch.zeros(1, 5000, 9, 1, dtype=torch.int64)
        found, _ = trunk.read(x, None, None)
        step, memory = trunk.read(x[:, :, :1], None, trunk.empty_memory(5000, 9))
        piece, memory = trunk.read(x[:, :, 1:], None, memory)
    assert (found.shape, step.shape, piece.shape) == tuple(
        (1, 5000, num_steps, 1024) for num_steps in (9, 1, 8)
    )
    assert memory.num_steps == 9


def test_the_smallest_example_has_the_parameters_counted_by_hand():
    # Tokens 41 * 64 = 2624; positions 64 * 64 = 4096. A block of 64: 65 * 192 + 65 * 64 + 65 * 256
    # + 257 * 64 = 12480 + 4160 + 16640 + 16448 = 49728.
    spec = dataclasses.replace(SPEC, num_tokens=41)
    network = TransformerConfig(depth=2, width=64, max_length=64)
    assert network.num_trunk_parameters(spec) == 2624 + 2 * 49728
    learned = dataclasses.replace(network, positions=Positions.learned)
    assert learned.num_trunk_parameters(spec) == 2624 + 4096 + 2 * 49728


def test_weights_start_normal_with_outputs_of_blocks_scaled_down():
    network = options(depth=8, width=64, positions=Positions.learned, max_length=100)
    trunk = network.build_trunk(SPEC, initializer())
    block = trunk.blocks[3]
    deviations = {  # 0.02 / sqrt(2 * 8) = 0.005: 16 layers add their outputs
        trunk.positions: 0.02, block.attend: 0.02, block.expand: 0.02, block.mix: 0.005,
        block.reduce: 0.005}  # fmt: skip
    for layer, std in deviations.items():
        assert layer.weight.std().item() == pytest.approx(std, rel=0.05)
        assert abs(layer.weight.mean()) < 0.05 * std
    assert not any(layer.bias.any() for layer in (block.attend, block.reduce))
    head = network.linear(initializer(), 64, 1000, gain=0.01)
    assert head.weight.std().item() == pytest.approx(0.0002, rel=0.05)


def test_orthogonal_weights_of_blocks_have_their_gains():
    network = options(depth=2, init=Initialization.orthogonal)
    block = network.build_trunk(SPEC, initializer()).blocks[0]
    product = block.mix.weight[0] @ block.mix.weight[0].T
    torch.testing.assert_close(product, torch.eye(16) / 4.0)  # (1 / sqrt(2 * 2))^2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, r"network\.depth=0: must be >= 1"),
        ({"mlp_ratio": 0}, r"network\.mlp_ratio=0: must be >= 1"),
        ({"num_heads": 3}, r"network\.num_heads=3: must divide network\.width=16"),
        ({"num_heads": 16}, r"network\.num_heads=16: .* into even parts \(rotary positions\)"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        options(**changes).check()


def test_learned_positions_take_heads_of_one_number():
    network = options(num_heads=16, positions=Positions.learned)
    network.check()
    assert features(trunk_of(network), tokens()).isfinite().all()


def test_numbers_and_long_episodes_are_refused_and_others_taken():
    with pytest.raises(ConfigError, match=r"reads tokens, not numbers: choose .* network=small"):
        options().check_env(EnvSpec(4, DiscreteActions(2)))
    longest = dataclasses.replace(SPEC, max_episode_steps=9)
    options().check_env(SPEC)
    options().check_env(longest)
    with pytest.raises(ConfigError, match=r"network\.max_length=8: must be >= 9, the steps"):
        options(max_length=8).check_env(longest)


@POSITIONS
def test_it_learns_to_repeat_the_token_before_the_last(positions):
    # a b a b a b: the last token alone says nothing about the next.
    pairs = torch.arange(121)
    sequences = torch.stack((pairs // 11, pairs % 11) * 3, -1).view(1, 121, 6)
    network = options(width=32, positions=positions)
    trunk = network.build_trunk(SPEC, initializer())
    head = network.linear(initializer(2), 32, 11, gain=0.01)
    optimizer = torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=1e-2)

    def loss():
        read = features(trunk, sequences[:, :, :-1, None])[:, :, 1:].flatten(1, 2)
        log_prob, _ = token_log_prob_and_entropy(read, head, sequences[:, :, 2:].flatten(1))
        return -log_prob.mean()

    assert loss().item() == pytest.approx(math.log(11), rel=0.01)
    for _ in range(40):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.1
