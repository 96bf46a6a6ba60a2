"""Iterations in which the critic trains alone."""

import dataclasses

import pytest
import torch

from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import config, lanes_of, weights

SMALL = ("num_envs=2", "num_steps=16", "num_epochs=2", "num_minibatches=2", "total_steps=3200")
TWO_NETWORKS = ("co_resident", "offloaded_optimizer", "parked")


def parameters_of(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def changed_by(trainer):
    """Return the names of the parameters that an iteration changes by a bit."""
    before = parameters_of(trainer)
    trainer.iterate()
    after = parameters_of(trainer)
    return {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("clipping", ["false", "true"])
@pytest.mark.parametrize("memory", TWO_NETWORKS)
def test_the_policy_does_not_change_by_a_bit_before_its_start(memory, clipping):
    separate = (f"separate_grad_clip={clipping}",)
    trainer = Trainer([config(*SMALL, *separate, f"memory={memory}", "policy_start_iteration=2")])
    assert changed_by(trainer) == {"critic", "value_head"}
    assert changed_by(trainer) == {"critic", "value_head"}
    assert changed_by(trainer) == {"actor", "policy_head", "critic", "value_head"}


@pytest.mark.parametrize("memory", [*TWO_NETWORKS, "shared_trunk"])
def test_adam_begins_anew_with_the_policy(memory):
    """Its first step changes a weight by lr * g / (|g| + eps): with the right bias correction."""
    base = config(*SMALL, f"memory={memory}", "policy_start_iteration=2")
    trainer = Trainer([dataclasses.replace(base, num_epochs=1, num_minibatches=1, lr=1e-3)])
    trainer.iterate()
    trainer.iterate()
    before = parameters_of(trainer)["policy_head.weight"]
    trainer.iterate()
    step = (parameters_of(trainer)["policy_head.weight"] - before).abs()
    assert 0.8e-3 < step.max() < 1.01e-3


def test_with_a_shared_trunk_only_the_policy_head_waits():
    trainer = Trainer([config(*SMALL, "memory=shared_trunk", "policy_start_iteration=1")])
    assert changed_by(trainer) == {"actor", "value_head"}


def test_lanes_may_start_at_different_iterations_and_ages():
    base = config(*SMALL)
    changes = ({"seed": 1, "policy_start_iteration": 2}, {"seed": 2}, {"seed": 3})
    configs = lanes_of(base, *changes)
    late = dataclasses.replace(base, seed=4, policy_start_iteration=1)
    stack = Trainer(configs)
    stack.iterate()
    stack.replace_lanes({2: late})
    for _ in range(2):
        stack.iterate()
    for lane, (its, num_iterations) in enumerate([(configs[0], 3), (configs[1], 3), (late, 2)]):
        alone = Trainer([its])
        for _ in range(num_iterations):
            alone.iterate()
        torch.testing.assert_close(weights(stack, lane), weights(alone), atol=1e-5, rtol=1e-5)


def test_a_run_that_goes_on_is_as_if_it_had_never_stopped():
    base = config(*SMALL, "policy_start_iteration=2")
    whole, half = Trainer([base]), Trainer([base])
    for _ in range(4):
        whole.iterate()
    for _ in range(2):
        half.iterate()
    other = Trainer([base])
    other.load_lane_state(0, half.lane_state(0))
    for _ in range(2):
        other.iterate()
    assert torch.equal(weights(whole), weights(other))


@pytest.mark.parametrize(("value", "memory"), [(-1, "co_resident"), (1, "critic_free")])
def test_what_cannot_be_is_refused(value, memory):
    with pytest.raises(ConfigError, match="policy_start_iteration"):
        config(*SMALL[1:], "num_envs=8", f"memory={memory}", f"policy_start_iteration={value}")
