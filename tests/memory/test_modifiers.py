"""Options that change where Adam steps: a share on the host, or within the backward pass."""

import dataclasses

import pytest
import torch
from torch.nn import Parameter

from ppo_lab.config.lanes import check_stack, stack_key
from ppo_lab.memory import STRATEGIES
from ppo_lab.memory.host_adam import largest_first
from ppo_lab.ppo import adam
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import TWENTY_STEPS, config, lanes_of, record_rows, weights
from tests.memory.test_options import assert_same_update, reference, trainer_of
from tests.memory.test_traffic import iteration_traffic

ONE_PASS = [name for name in STRATEGIES if name != "parked"]
RESIDENT = [name for name in STRATEGIES if name != "offloaded_optimizer"]
HALF = "memory.offload_fraction=0.5"
IN_BACKWARD = "memory.optimizer_in_backward=true"


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
        ((IN_BACKWARD, "compile=always"), "cannot be had with memory.optimizer_in_backward=true"),
        (("memory.offload_activations=true", "compile=always"), "offload_activations=true"),
        ((IN_BACKWARD, HALF), "keeps 50% of it on the host"),
        ((IN_BACKWARD, "memory=offloaded_optimizer"), "memory=offloaded_optimizer keeps 100%"),
        ((IN_BACKWARD, "memory.num_micro_batches=2"), "needs memory.num_micro_batches=1"),
    ],
)
def test_a_modifier_is_refused_where_it_does_not_combine(overrides, reason):
    with pytest.raises(ConfigError, match=reason):
        config(*overrides)


def test_an_offloaded_share_trains_one_lane():
    base = config("memory=shared_trunk", HALF)
    with pytest.raises(ConfigError, match=r"offload_fraction=0\.5: trains at most 1"):
        check_stack([base, dataclasses.replace(base, seed=2)])


@pytest.fixture
def small_buckets(monkeypatch):
    """Have Adam store each large tensor, and some small ones together, in a bucket of its own."""
    monkeypatch.setattr(adam, "_BUCKET_SIZE", 200)
    reference.cache_clear()
    yield
    reference.cache_clear()


SETTINGS = {
    "clipped": ("max_grad_norm=0.1",),
    "in one pass": ("max_grad_norm=none",),
    "stopped": ("target_kl=0.001", "lr=0.01", "max_grad_norm=0.1"),
    "recomputed in bfloat16": ("dtype=bfloat16", "memory.checkpoint_activations=true"),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", RESIDENT)
@pytest.mark.usefixtures("small_buckets")
def test_adam_in_the_backward_pass_gives_the_same_bits(strategy, setting):
    plain = reference(strategy, *SETTINGS[setting])
    found = trainer_of(strategy, IN_BACKWARD, *SETTINGS[setting])
    assert_same_update(found, plain, atol=0.0)
    if "max_grad_norm=0.1" in SETTINGS[setting]:
        assert plain.diagnostics.grad_norm > 0.1  # the clip acts


def test_adam_in_the_backward_pass_gives_the_same_bits_to_weights_used_at_every_step():
    work = ("env=cartpole_masked", "network=gru", "num_steps=32", "num_envs=8", *TWENTY_STEPS)
    plain, found = (
        Trainer([config(*work, f"memory.optimizer_in_backward={value}")])
        for value in ("false", "true")
    )
    rows = record_rows(plain)
    plain.update(rows)
    found.update(rows)
    assert torch.equal(weights(found), weights(plain))


@pytest.mark.parametrize("limit", ["0.5", "none"])
@pytest.mark.usefixtures("small_buckets")
def test_in_the_backward_pass_one_buckets_gradients_exist_at_a_time(limit, monkeypatch):
    trainer = trainer_of("co_resident", IN_BACKWARD, f"max_grad_norm={limit}")
    parameters, seen = list(trainer.model.parameters()), []

    def spy(bucket):
        seen.append(sum(p.grad.numel() for p in parameters if p.grad is not None))
        return take(bucket)

    take = adam.Bucket.take_gradient
    monkeypatch.setattr(adam.Bucket, "take_gradient", spy)
    trainer.update(record_rows(trainer))
    # Hidden layers of 16 x 17 = 272: a matrix of 256 alone, a bias with what follows.
    num_buckets = len(trainer.optimizer._buckets)
    assert num_buckets > 8
    assert len(seen) == 20 * num_buckets * (1 if limit == "none" else 2)
    assert 256 <= max(seen) <= 256 + 200 < weights(trainer).numel() / 5


@pytest.mark.usefixtures("small_buckets")
def test_lanes_that_step_in_the_backward_pass_are_kept_apart():
    lanes = {"seed": 1}, {"seed": 2, "target_kl": 1e-9}, {"seed": 3, "max_grad_norm": 0.1}
    overrides = ("network.hidden=[16,16]", *TWENTY_STEPS)
    plain = Trainer(lanes_of(config(*overrides), *lanes))
    found = Trainer(lanes_of(config(IN_BACKWARD, *overrides), *lanes))
    rows = record_rows(plain)
    assert plain.update(rows).gradient_steps.tolist() == [20, 1, 20]
    assert found.update(rows).gradient_steps.tolist() == [20, 1, 20]
    assert torch.equal(weights(found), weights(plain))


def test_lanes_with_and_without_a_clip_do_not_share_a_backward_pass():
    clipped = config(IN_BACKWARD)
    free = dataclasses.replace(clipped, max_grad_norm=None)
    assert stack_key(clipped) != stack_key(free)
    with pytest.raises(ConfigError, match="must be none in every lane or in none"):
        check_stack([clipped, free])
    plain = config()
    assert stack_key(plain) == stack_key(dataclasses.replace(plain, max_grad_norm=None))
