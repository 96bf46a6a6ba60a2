"""Recurrent trunks against torch's own cells; resets, halves, lanes and following steps."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.networks import ActorCritic, Initializer, RecurrentConfig
from ppo_lab.networks.base import Initialization
from ppo_lab.networks.recurrent import Cell
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.torch_private import FakeTensorMode
from tests.helpers.trainers import CPU, config

NUM_LANES, NUM_SEQUENCES, NUM_STEPS, HIDDEN = 2, 3, 7, 5
SPEC = EnvSpec(4, DiscreteActions(2))
CELLS = pytest.mark.parametrize("cell", Cell)
# Blocks of ours in the order of torch's: input, forget, candidate, output; reset, update, candidate
ORDERS = {Cell.lstm: (1, 2, 3, 0), Cell.gru: (0, 1, 2)}


def build(cell, *, seeds=(1, 2), dtype=torch.float64, device=CPU, **options):
    """Return a trunk whose biases are not 0 either."""
    network = RecurrentConfig(cell=cell, **({"hidden": HIDDEN} | options))
    trunk = network.build_trunk(SPEC, Initializer(torch.tensor(seeds), device, dtype))
    with torch.no_grad():
        for parameter in trunk.parameters():
            if parameter.shape[1] == 1:
                parameter += torch.linspace(-0.5, 0.5, parameter.shape[2]).to(parameter)
    return trunk


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(trunk, num_steps=NUM_STEPS):
    """Return observations, starts of which there are some within, and a memory."""
    observations = randn(NUM_LANES, NUM_SEQUENCES, num_steps, 4)
    starts = randn(NUM_LANES, NUM_SEQUENCES, num_steps, seed=1) > 0.8
    empty = trunk.empty_memory(NUM_SEQUENCES, num_steps)
    assert bool(starts[..., 1:].any())
    return observations, starts, tuple(randn(*m.shape, seed=2 + i) for i, m in enumerate(empty))


def torchs(trunk, cell, lane):
    """Return torch's own layer with the weights of a lane, and their order in ours."""
    layer = {Cell.lstm: nn.LSTM, Cell.gru: nn.GRU}[cell](4, HIDDEN, batch_first=True).double()

    def blocks(tensor):  # ours (I, G * H) as torch's (G * H, I)
        parts = tensor[lane].detach().chunk(len(ORDERS[cell]), -1)
        return torch.cat([parts[i] for i in ORDERS[cell]], -1).mT

    with torch.no_grad():
        layer.weight_ih_l0.copy_(blocks(trunk.inputs.weight))
        layer.weight_hh_l0.copy_(blocks(trunk.weight))
        layer.bias_ih_l0.copy_(blocks(trunk.inputs.bias).squeeze(-1))
        layer.bias_hh_l0.zero_()
        if cell is Cell.gru:
            layer.bias_hh_l0[-HIDDEN:] = trunk.candidate_bias[lane, 0]
    return layer, blocks


@CELLS
def test_values_and_gradients_are_those_of_torchs_own_layer(cell):
    trunk = build(cell)
    observations, _, memory = inputs(trunk)
    observations.requires_grad_()
    features, after = trunk.read(observations, None, memory)
    weights = randn(*features.shape, seed=9)
    loss = (features * weights).sum() + sum(tensor.square().sum() for tensor in after)
    (gradient,) = torch.autograd.grad(loss, observations, retain_graph=True)
    loss.backward()
    for lane in range(NUM_LANES):
        layer, blocks = torchs(trunk, cell, lane)
        before = tuple(m[lane : lane + 1].contiguous() for m in memory)
        mine = observations[lane].detach().requires_grad_()
        expected, state = layer(mine, before if cell is Cell.lstm else before[0])
        state = state if cell is Cell.lstm else (state,)
        torch.testing.assert_close(features[lane], expected)
        for ours, its in zip(after, state, strict=True):
            torch.testing.assert_close(ours[lane], its[0])
        its_loss = (expected * weights[lane]).sum() + sum(s.square().sum() for s in state)
        its_loss.backward()
        torch.testing.assert_close(gradient[lane], mine.grad)
        torch.testing.assert_close(blocks(trunk.inputs.weight.grad), layer.weight_ih_l0.grad)
        torch.testing.assert_close(blocks(trunk.weight.grad), layer.weight_hh_l0.grad)
        bias = blocks(trunk.inputs.bias.grad).squeeze(-1)
        torch.testing.assert_close(bias, layer.bias_ih_l0.grad)
        if cell is Cell.gru:
            ours = trunk.candidate_bias.grad[lane, 0]
            torch.testing.assert_close(ours, layer.bias_hh_l0.grad[-HIDDEN:])


@CELLS
def test_gradients_through_resets_and_into_the_memory_are_the_numerical_ones(cell):
    trunk = build(cell, hidden=2)
    observations, starts, memory = inputs(trunk, 4)
    memory = tuple(tensor.requires_grad_() for tensor in memory)
    parameters = list(trunk.parameters())

    def read(observations, *tensors):
        features, after = trunk.read(observations, starts, tensors[: len(memory)])
        return features, *after

    arguments = observations.requires_grad_(), *memory, *parameters
    torch.autograd.gradcheck(read, arguments)


@CELLS
def test_the_memory_is_emptied_where_an_episode_starts(cell):
    trunk = build(cell)
    observations, _, memory = inputs(trunk)
    starts = torch.zeros(NUM_LANES, NUM_SEQUENCES, NUM_STEPS, dtype=torch.bool)
    starts[:, 1, 3] = True
    features, after = trunk.read(observations, starts, memory)
    unbroken, _ = trunk.read(observations, None, memory)
    fresh, fresh_after = trunk.read(observations[:, :, 3:], None, None)
    torch.testing.assert_close(features[:, ::2], unbroken[:, ::2])
    torch.testing.assert_close(features[:, 1, :3], unbroken[:, 1, :3])
    torch.testing.assert_close(features[:, 1, 3:], fresh[:, 1])
    assert (features[:, 1, 3:] - unbroken[:, 1, 3:]).abs().amax(-1).min() > 1e-3
    for ours, its in zip(after, fresh_after, strict=True):
        torch.testing.assert_close(ours[:, 1], its[:, 1])


@CELLS
@pytest.mark.parametrize("begin", [1, 4])
def test_sequences_read_in_two_parts_are_those_read_at_once(cell, begin):
    trunk = build(cell)
    observations, starts, memory = inputs(trunk)
    expected, after = trunk.read(observations, starts, memory)
    first, between = trunk.read(observations[:, :, :begin], starts[:, :, :begin], memory)
    second, found = trunk.read(observations[:, :, begin:], starts[:, :, begin:], between)
    torch.testing.assert_close(torch.cat((first, second), 2), expected)
    for ours, its in zip(found, after, strict=True):
        torch.testing.assert_close(ours, its)


@CELLS
@pytest.mark.parametrize("remembers", [True, False])
def test_what_follows_each_step_is_one_more_step_from_there(cell, remembers):
    trunk = build(cell)
    observations, starts, memory = inputs(trunk)
    memory = memory if remembers else None
    after = randn(NUM_LANES, NUM_SEQUENCES, NUM_STEPS, 4, seed=5)
    found = trunk.following(observations, starts, memory, after)
    for step in range(NUM_STEPS):
        read, now = slice(step + 1), slice(step, step + 1)
        _, between = trunk.read(observations[:, :, read], starts[:, :, read], memory)
        expected, _ = trunk.read(after[:, :, now], None, between)
        torch.testing.assert_close(found[:, :, now], expected)


@CELLS
def test_a_lane_is_the_same_alone(cell):
    stack, alone = build(cell, dtype=torch.float32), build(cell, seeds=(2,), dtype=torch.float32)
    observations, starts, memory = inputs(stack)
    observations, memory = observations.float(), tuple(m.float() for m in memory)
    together, after = stack.read(observations, starts, memory)
    own, own_after = alone.read(observations[1:], starts[1:], tuple(m[1:] for m in memory))
    torch.testing.assert_close(together[1:], own)
    for ours, its in zip(after, own_after, strict=True):
        torch.testing.assert_close(ours[1:], its)
    together.square().sum().backward(), own.square().sum().backward()
    for ours, its in zip(stack.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours.grad[1:], its.grad)
        assert not torch.equal(ours.grad[:1], its.grad)


@CELLS
def test_two_reads_are_equal_bit_by_bit(cell):
    trunk = build(cell, dtype=torch.float32)
    observations, starts, _ = inputs(trunk)
    first, _ = trunk.read(observations.float(), starts, None)
    second, _ = trunk.read(observations.float(), starts, None)
    assert torch.equal(first, second)


@CELLS
def test_rows_are_first_steps_of_episodes(cell):
    trunk = build(cell)
    rows = randn(NUM_LANES, NUM_SEQUENCES, 4)
    torch.testing.assert_close(trunk(rows), trunk.read(rows.unsqueeze(2), None, None)[0][:, :, 0])
    assert not trunk.can_checkpoint


@CELLS
def test_bfloat16_is_close_to_float32_and_keeps_its_states_in_it(cell):
    trunk = build(cell, dtype=torch.float32, hidden=64)
    observations, starts, _ = inputs(trunk)
    observations = observations.float()
    exact, _ = trunk.read(observations, starts, None)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, memory = trunk.read(observations, starts, None)
    assert rounded.dtype is torch.float32
    assert all(tensor.dtype is torch.float32 for tensor in memory)
    assert 0.0 < (rounded - exact).abs().max() < 0.03
    rounded.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in trunk.parameters())


@CELLS
def test_fake_tensors_have_the_shapes_of_real_ones(cell):
    with FakeTensorMode():
        trunk = build(cell, dtype=torch.float32)
        observations = torch.empty(NUM_LANES, NUM_SEQUENCES, NUM_STEPS, 4)
        starts = torch.zeros(NUM_LANES, NUM_SEQUENCES, NUM_STEPS, dtype=torch.bool)
        features, memory = trunk.read(observations, starts, None)
        features.sum().backward()
        following = trunk.following(observations, starts, memory, observations)
    assert features.shape == following.shape == (NUM_LANES, NUM_SEQUENCES, NUM_STEPS, HIDDEN)
    assert all(parameter.grad.shape == parameter.shape for parameter in trunk.parameters())


@pytest.mark.parametrize(("cell", "count"), [(Cell.lstm, 4 * (4 + 5 + 1) * 5), (Cell.gru, 155)])
def test_parameters_are_those_counted_by_hand(cell, count):
    # GRU: 3 * (4 + 5 + 1) * 5, and 5 for the bias within the reset gate.
    assert RecurrentConfig(cell=cell, hidden=5).num_trunk_parameters(SPEC) == count
    assert sum(p[0].numel() for p in build(cell).parameters()) == count


@CELLS
def test_weights_start_orthogonal_block_by_block_and_only_the_forget_gate_has_a_bias(cell):
    network = RecurrentConfig(cell=cell, hidden=16)
    trunk = network.build_trunk(SPEC, Initializer(torch.tensor([1]), CPU, torch.float64))
    for weight, gain in ((trunk.inputs.weight, math.sqrt(2.0)), (trunk.weight, 1.0)):
        blocks = weight[0].detach().chunk(4 if cell is Cell.lstm else 3, -1)
        for block in blocks:
            expected = gain**2 * torch.eye(len(block))
            assert (block @ block.T - expected).abs().max() < 1e-5
        assert len(torch.stack(blocks).unique(dim=0)) == len(blocks)
    bias = trunk.inputs.bias[0, 0].detach().unflatten(0, (-1, 16))
    expected = [0.0, 0.0, 1.0, 0.0] if cell is Cell.lstm else [0.0] * 3
    assert bias.unique(dim=1).squeeze(1).tolist() == expected
    assert cell is Cell.lstm or not trunk.candidate_bias.any()


@CELLS
def test_other_initialisations_are_within_the_bounds_of_a_layers(cell):
    for init, deviation in ((Initialization.default, 3**-0.5), (Initialization.normal, None)):
        network = RecurrentConfig(cell=cell, hidden=16, init=init)
        trunk = network.build_trunk(SPEC, Initializer(torch.tensor([1]), CPU, torch.float64))
        for weight, gain in ((trunk.inputs.weight, math.sqrt(2.0)), (trunk.weight, 1.0)):
            expected = 0.02 * gain if deviation is None else deviation * weight.shape[1] ** -0.5
            # 192 numbers or more: the error of a deviation is below 5 %.
            assert weight.std().item() == pytest.approx(expected, rel=0.2)
            if deviation is not None:
                assert weight.abs().max() <= weight.shape[1] ** -0.5


def test_a_hidden_state_of_size_0_is_refused():
    with pytest.raises(ConfigError, match=r"network\.hidden"):
        dataclasses.replace(config(), network=RecurrentConfig(hidden=0))


@pytest.mark.parametrize("name", Cell)
def test_a_shared_trunk_is_read_by_both_heads(name):
    network = config(f"network={name.value}").network
    assert network.cell is name
    initializer = Initializer(torch.tensor([1, 2]), CPU, torch.float32)
    model = ActorCritic(network, SPEC, initializer, shares_trunk=True)
    assert model.actor is model.critic
    assert model.policy_head.weight.shape == (2, 32, 2)
