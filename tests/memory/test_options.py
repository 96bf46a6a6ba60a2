"""Options that combine with every memory strategy: what they change is memory, never numbers."""

import functools
import gc
import itertools
import weakref
from typing import NamedTuple

import pytest
import torch

from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.trainers import (
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    limit_steps,
    numbers_of,
    record_rows,
    spy_on,
    state_of,
    weights,
)

# Five layers for checkpointing to do something; 8 environments x 32 steps, minibatches of 64 rows.
SMALL = ("network.hidden=[16,16,16,16,16]", "num_steps=32", "num_envs=8", *TWENTY_STEPS)
OPTIONS = {
    "micro-batches": ("memory.num_micro_batches=4",),
    "checkpointed": ("memory.checkpoint_activations=true",),
    "rollout on the host": ("memory.rollout_place=host",),
}
OPTIONS["all three"] = tuple(itertools.chain.from_iterable(OPTIONS.values()))
SETTINGS = {
    "continuous": ("env=pendulum",),
    "stopped by target_kl": ("target_kl=0.001", "lr=0.01"),
    "every clip": ("value_epsilon=0.1", "dual_clip=2", "epsilon_high=0.28", "entropy_coef=0.01"),
    "advantages normalised over the rollout": ("advantage_normalization=rollout",),
    "clipped separately": ("separate_grad_clip=true",),
}


def trainer_of(strategy, *overrides):
    return Trainer([config(f"memory={strategy}", *overrides, *SMALL)])


class Reference(NamedTuple):
    """An update without options."""

    rows: RolloutRows
    start: torch.Tensor  # all parameters
    end: torch.Tensor
    diagnostics: UpdateDiagnostics


@functools.cache
def reference(strategy, *overrides):
    """Return 20 gradient steps on one recorded rollout, as several tests compare with."""
    trainer = trainer_of(strategy, *overrides)
    start, rows = weights(trainer), record_rows(trainer)
    diagnostics = trainer.update(rows)
    return Reference(rows, start, weights(trainer), diagnostics)


def assert_same_update(found, expected, *, atol):
    """Update on the same rows: parameters within ``atol``, diagnostics to rounding."""
    assert torch.equal(weights(found), expected.start)
    diagnostics = found.update(expected.rows)
    assert largest_difference(weights(found), expected.end) <= atol
    assert largest_difference(expected.end, expected.start) > 1e-3
    for mine, theirs in zip(numbers_of(diagnostics), numbers_of(expected.diagnostics)):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def separate(strategy):
    """Return the overrides that let every strategy of two networks clip alike."""
    has_two = STRATEGIES[strategy].has_critic and not STRATEGIES[strategy].shares_trunk
    return ("separate_grad_clip=true",) if has_two else ()


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_option_changes_no_strategys_numbers(strategy, option):
    """20 gradient steps on one recorded rollout; to the bit, but for sums taken in parts."""
    atol = 1e-6 if "memory.num_micro_batches=4" in OPTIONS[option] else 0.0
    assert_same_update(trainer_of(strategy, *OPTIONS[option]), reference(strategy), atol=atol)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_options_together_change_no_strategys_numbers(strategy, setting):
    if setting == "clipped separately" and not separate(strategy):
        pytest.skip("there is one gradient")
    if setting == "every clip" and not STRATEGIES[strategy].has_critic:
        pytest.skip("there are no values to clip")
    plain = reference(strategy, *SETTINGS[setting])
    optional = trainer_of(strategy, *SETTINGS[setting], *OPTIONS["all three"])
    assert_same_update(optional, plain, atol=1e-6)
    if setting == "stopped by target_kl":
        assert plain.diagnostics.gradient_steps < 20


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("strategy", ["parked", "offloaded_optimizer"])
def test_strategies_of_two_networks_end_with_the_same_parameters(strategy, setting):
    overrides = ("separate_grad_clip=true", *SETTINGS[setting])
    resident = reference("co_resident", *overrides)
    assert_same_update(trainer_of(strategy, *overrides), resident, atol=1e-6)


@pytest.mark.parametrize("num_micro_batches", [2, 64])
def test_a_micro_batched_gradient_is_the_minibatchs_own(num_micro_batches):
    """In double precision to 1e-12: advantages are normalised before the minibatch is split."""

    def gradients(*overrides):
        trainer = trainer_of("co_resident", "dtype=float64", "entropy_coef=0.01", *overrides)
        spy = spy_on(trainer)
        limit_steps(trainer, 1)
        trainer.update(rows)
        return spy.gradients[0]

    rows = record_rows(trainer_of("co_resident", "dtype=float64"))
    parts = gradients(f"memory.num_micro_batches={num_micro_batches}")
    for mine, whole in zip(parts, gradients()):
        assert whole.abs().max() > 1e-6
        assert (mine - whole).abs().max() < 1e-12


def test_micro_batches_that_do_not_divide_a_minibatch_are_refused():
    with pytest.raises(ConfigError, match="num_micro_batches"):
        config("memory.num_micro_batches=3", *SMALL)  # of 64 rows


@pytest.mark.parametrize("option", OPTIONS)
def test_options_keep_the_lanes_of_a_stack_apart(option):
    def stack_of(*overrides):
        lanes = {"seed": 1}, {"seed": 2, "target_kl": 1e-9}, {"seed": 3}
        return Trainer(lanes_of(config(*overrides, *SMALL), *lanes))

    stack, whole = stack_of(*OPTIONS[option]), stack_of()
    rows = record_rows(stack)
    for mine, theirs in zip(rows, record_rows(whole)):
        torch.testing.assert_close(mine, theirs, rtol=0.0, atol=1e-6)
    found, expected = stack.update(rows), whole.update(rows)
    assert found.gradient_steps.tolist() == expected.gradient_steps.tolist() == [20, 1, 20]
    for lane in range(3):
        assert largest_difference(weights(stack, lane), weights(whole, lane)) < 1e-6


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_in_bfloat16_with_every_option(strategy):
    trainer = trainer_of(strategy, "dtype=bfloat16", *OPTIONS["all three"])
    start = weights(trainer)
    diagnostics = trainer.update(record_rows(trainer))
    assert all(value.isfinite().all() for value in numbers_of(diagnostics))
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())
    assert largest_difference(weights(trainer), start) > 1e-3


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpointing_changes_no_bit_in_bfloat16(strategy):
    plain = reference(strategy, "dtype=bfloat16")
    checkpointed = trainer_of(strategy, "dtype=bfloat16", *OPTIONS["checkpointed"])
    assert_same_update(checkpointed, plain, atol=0.0)


@pytest.mark.parametrize("strategy", ["parked", "offloaded_optimizer"])
def test_a_lane_that_target_kl_stopped_at_once_stands_still(strategy):
    """The first minibatch's KL is 0, so one gradient step is taken, then none; state and all."""
    overrides = ("target_kl=1e-9", *separate(strategy))
    trainer = trainer_of(strategy, *overrides)
    rows = record_rows(trainer)
    one_step = trainer_of(strategy, *overrides)
    limit_steps(one_step, 1)
    one_step.update(rows)
    assert trainer.update(rows).gradient_steps.tolist() == [1]
    assert torch.equal(weights(trainer), weights(one_step))
    for mine, its in zip(state_of(trainer.optimizer), state_of(one_step.optimizer), strict=True):
        assert torch.equal(mine, its)


def test_separate_clipping_takes_each_networks_own_norm():
    trainer = trainer_of("co_resident", "separate_grad_clip=true", "max_grad_norm=0.1")
    numbers = trainer.update(record_rows(trainer))
    joint = trainer_of("co_resident", "max_grad_norm=0.1")
    joint_numbers = joint.update(record_rows(joint))
    assert joint_numbers.grad_norm_actor is None
    # CartPole's values are off by tens: the critic's gradient would silence the actor's.
    assert numbers.grad_norm_critic > 10 * numbers.grad_norm_actor
    assert numbers.grad_norm > numbers.grad_norm_critic
    assert largest_difference(weights(trainer), weights(joint)) > 1e-4


def test_a_shared_trunk_cannot_be_clipped_separately():
    with pytest.raises(ConfigError, match="separate_grad_clip"):
        config("memory=shared_trunk", "separate_grad_clip=true")


def test_a_parked_networks_state_is_on_the_device_only_in_its_own_pass():
    trainer = trainer_of("parked")
    optimizer = trainer.optimizer

    def homes():
        moments = {target.value: adam.moments for target, adam in optimizer._adams.items()}
        return {name: [m.data_ptr() for m in each] for name, each in moments.items()}

    resting = homes()
    away = [
        {name for name, pointers in homes().items() if not set(pointers) & set(resting[name])}
        for _ in optimizer.passes()
    ]
    assert away == [{"policy"}, {"values"}]
    assert homes() == resting


def test_a_parked_update_never_holds_both_networks_gradients(monkeypatch):
    trainer = trainer_of("parked")
    groups = {name: list(group) for name, group in trainer.model.groups().items()}
    step, seen = trainer.optimizer.step, []

    def spy(**kwargs):
        seen.append({n for n, g in groups.items() if any(p.grad is not None for p in g)})
        return step(**kwargs)

    monkeypatch.setattr(trainer.optimizer, "step", spy)
    trainer.update(record_rows(trainer))
    assert seen == [{"actor"}] * 20 + [{"critic"}] * 20


def test_checkpointing_says_so_where_it_has_no_effect(caplog):
    Trainer([config("memory.checkpoint_activations=true", "network.hidden=[8,8]")])
    assert "no effect on a network of 2 layers" in caplog.text
    caplog.clear()
    Trainer([config("memory.checkpoint_activations=true", "network.hidden=[8,8,8]")])
    assert not caplog.text


def test_checkpointing_keeps_the_borders_of_segments_alone():
    """Nine layers in segments of three: two borders and the last three layers' outputs remain."""
    trainers = {
        value: Trainer(
            [config(f"memory.checkpoint_activations={value}", f"network.hidden={[16] * 9}")]
        )
        for value in ("false", "true")
    }
    kept = {}
    for value, trainer in trainers.items():
        outputs = set()

        def pack(tensor, outputs=outputs):
            if tensor.shape == (1, 5, 16):  # a layer's output, however often it is saved
                outputs.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            features = trainer.model.actor(torch.randn(1, 5, 4))
        kept[value] = len(outputs - {features.data_ptr()}) + 1
    assert kept["false"] == 9
    assert kept["true"] <= 5


def test_parked_says_that_it_clips_each_network_by_itself(caplog):
    with caplog.at_level("INFO"):
        trainer_of("parked")
    assert "each clipped by their own gradient's norm" in caplog.text


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_trainer_that_is_let_go_leaves_nothing_behind(strategy):
    """Without waiting for the garbage collector: hooks and pinned memory make no cycles."""
    trainer = trainer_of(strategy)
    trainer.update(record_rows(trainer))
    gc.collect()
    held = [*trainer.model.parameters(), *state_of(trainer.optimizer)]
    references = [weakref.ref(tensor) for tensor in held]
    del held
    gc.disable()
    try:
        del trainer
        assert not [reference for reference in references if reference() is not None]
    finally:
        gc.enable()
