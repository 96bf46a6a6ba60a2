"""Options that change where Adam steps: a share on the host, or within the backward pass."""

import dataclasses

import pytest
import torch
from torch.nn import Parameter

from ppo_lab.config.lanes import check_stack
from ppo_lab.memory import STRATEGIES
from ppo_lab.memory.host_adam import largest_first
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import config, weights
from tests.memory.test_options import assert_same_update, reference, trainer_of
from tests.memory.test_traffic import iteration_traffic

ONE_PASS = [name for name in STRATEGIES if name != "parked"]
HALF = "memory.offload_fraction=0.5"


def test_the_largest_tensors_that_fit_a_share_are_offloaded():
    tensors = [Parameter(torch.zeros(size)) for size in (4, 10, 6, 1)]

    def sizes(fraction):
        return [tensor.numel() for tensor in largest_first(tensors, fraction)]

    assert sizes(0.0) == []
    assert sizes(0.5) == [10]  # 10.5 of 21: nothing fits into the 0.5 that is left
    assert sizes(0.75) == [4, 10, 1]  # 15.75: 10, then not 6, but 4 and 1
    assert sizes(1.0) == [4, 10, 6, 1]


@pytest.mark.parametrize(
    "setting", [(), ("separate_grad_clip=true",), ("target_kl=0.001", "lr=0.01")]
)
@pytest.mark.parametrize("strategy", ONE_PASS)
def test_adam_half_on_the_host_ends_with_the_same_parameters(strategy, setting):
    if "separate_grad_clip=true" in setting and strategy in ("shared_trunk", "critic_free"):
        pytest.skip("there is one gradient")
    setting = ("max_grad_norm=0.1", *setting)
    plain = reference(strategy, "memory.offload_fraction=0", *setting)
    half = trainer_of(strategy, HALF, *setting)
    assert_same_update(half, plain, atol=1e-6)
    assert plain.diagnostics.grad_norm > 0.1  # the clip acts
    parts = {owner for _, owner in half.optimizer.state_parts()}
    assert parts >= set(half.model.parameters())


@pytest.mark.parametrize(
    ("fraction", "strategy"), [("1", "offloaded_optimizer"), ("0", "co_resident")]
)
def test_the_ends_of_the_range_are_the_two_strategies_to_the_bit(fraction, strategy):
    other = {"offloaded_optimizer": "co_resident", "co_resident": "offloaded_optimizer"}[strategy]
    found = trainer_of(other, f"memory.offload_fraction={fraction}")
    assert_same_update(found, reference(strategy), atol=0.0)


@pytest.mark.parametrize("strategy", ONE_PASS)
def test_an_offloaded_share_moves_8_bytes_a_parameter_and_gradient_step(strategy):
    trainer = trainer_of(strategy, HALF)
    count = sum(p.numel() for p in largest_first(trainer.optimizer.parameters, 0.5))
    assert 0.4 < count / weights(trainer).numel() <= 0.5
    moved, _ = iteration_traffic(trainer)
    assert moved.h2d_bytes == 20 * 4 * count
    assert moved.d2h_bytes == 20 * (4 * count + 12)  # lr, switch and one clip coefficient


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (("memory=parked", HALF), "must be 0 with memory=parked"),
        (("memory=auto", HALF), "must be 0 with memory=auto"),
        (("memory.offload_fraction=1.5",), "must be 0 to 1"),
        (("memory.offload_fraction=-0.1",), "must be 0 to 1"),
        ((HALF, "compile=always"), "cannot be had with memory.offload_fraction=0.5"),
    ],
)
def test_a_modifier_is_refused_where_it_does_not_combine(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        config(*overrides)


def test_an_offloaded_share_trains_one_lane():
    base = config("memory=shared_trunk", HALF)
    with pytest.raises(ConfigError, match=r"offload_fraction=0\.5: trains at most 1"):
        check_stack([base, dataclasses.replace(base, seed=2)])
