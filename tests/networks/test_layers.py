"""Layers with a lane axis, the numbers that they start from, and a fast tanh."""

import torch

from ppo_lab.networks import Initializer
from ppo_lab.networks.layers import LaneEmbedding, LaneLinear, quick_tanh
from ppo_lab.utils.rng import Stream, fold_in, lane_keys, normal
from ppo_lab.utils.tracing import tracing


def initializer():
    return Initializer(torch.tensor([5, 6]), torch.device("cpu"), torch.float32)


def test_a_lane_linear_is_each_lanes_own_affine_map():
    weight = torch.tensor([[[1.0], [2.0]], [[10.0], [20.0]]])  # (L=2, I=2, O=1)
    layer = LaneLinear(weight)
    layer.bias.data[1] = 5.0
    x = torch.tensor([[[1.0, 1.0]], [[1.0, 2.0]]])
    # Lane 0: 1 + 2 = 3. Lane 1: 10 + 40 + 5 = 55.
    assert layer(x).tolist() == [[[3.0]], [[55.0]]]


def test_a_token_is_each_lanes_own_row():
    # Lane 0 has rows 0, 1, 2 and lane 1 has rows 10, 20, 30.
    embedding = LaneEmbedding(torch.tensor([[[0.0], [1.0], [2.0]], [[10.0], [20.0], [30.0]]]))
    assert embedding(torch.tensor([[2, 0], [2, 1]])).tolist() == [[[2.0], [0.0]], [[30.0], [20.0]]]


def test_numbers_drawn_in_pieces_are_those_drawn_at_once(monkeypatch):
    whole = initializer().normal(7, 9, 0.5)
    monkeypatch.setattr("ppo_lab.networks.layers._NUMBERS_AT_ONCE", 10)
    assert torch.equal(initializer().normal(7, 9, 0.5), whole)
    assert whole.shape == (2, 7, 9)


def test_every_layer_has_the_key_of_its_own_number():
    keys, layers = lane_keys(torch.tensor([5, 6]), Stream.INIT), initializer()
    for number in range(150):  # more than are derived at once
        weight = layers.normal(1, 2, 1.0)
        assert torch.equal(weight[:, 0], normal(fold_in(keys, number), 2))


def test_a_quick_tanh_and_its_gradient_are_those_of_tanh():
    x = torch.linspace(-12.0, 12.0, 4 * 128 * 64).view(4, 128, 64).requires_grad_()
    exact = x.detach().double().requires_grad_()
    weights = torch.arange(4 * 128 * 64.0).cos().view_as(x)
    y = quick_tanh(x)
    assert y.grad_fn.name() == "_QuickTanhBackward"  # large enough
    (y * weights).sum().backward()
    (exact.tanh() * weights).sum().backward()
    assert (y - exact.tanh()).abs().max() < 2e-7
    assert (x.grad - exact.grad).abs().max() < 5e-7  # of 1 - y^2: twice the error of y
    assert torch.equal(x, exact)  # as it was


def test_only_many_numbers_in_float32_have_their_own_tanh():
    x = torch.ones(4, 128, 64, requires_grad=True)
    assert quick_tanh(x[:, :127]).grad_fn.name() == "TanhBackward0"
    assert quick_tanh(x.bfloat16()).grad_fn.name() == "TanhBackward0"
    with tracing():
        assert quick_tanh(x).grad_fn.name() == "TanhBackward0"
