"""Activations in host memory: the same bits, every byte once each way, little on the device."""

import dataclasses
import gc
import weakref

import pytest
import torch

from ppo_lab.devices.placement import Placement, Traffic
from ppo_lab.forecasting.categories import Category
from ppo_lab.forecasting.dry_run import dry_run
from ppo_lab.memory import STRATEGIES
from ppo_lab.memory.host_activations import HostActivations
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import TWENTY_STEPS, config, lanes_of, record_rows, state_of, weights
from tests.memory.test_options import assert_same_update, reference, trainer_of

OFFLOADED = "memory.offload_activations=true"
IN_BACKWARD = "memory.optimizer_in_backward=true"
MIB = 1024**2
WORK = {
    "plain": (),
    "recomputed, in parts": ("memory.checkpoint_activations=true", "memory.num_micro_batches=2"),
    "bfloat16": ("dtype=bfloat16",),
}


@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_activations_on_the_host_change_no_bit(strategy, work):
    found = trainer_of(strategy, OFFLOADED, *WORK[work])
    before = dataclasses.replace(found.placement.traffic)
    assert_same_update(found, reference(strategy, *WORK[work]), atol=0.0)
    assert found.placement.traffic.since(before).h2d_bytes > 20 * 1024


def test_with_adam_in_the_backward_pass_they_come_up_twice():
    found = trainer_of("parked", OFFLOADED, IN_BACKWARD)
    before = dataclasses.replace(found.placement.traffic)
    assert_same_update(found, reference("parked"), atol=0.0)
    moved = found.placement.traffic.since(before)
    moments = 2 * 4 * weights(found).numel()  # up and down in an update
    assert moved.h2d_bytes - moments == 2 * (moved.d2h_bytes - moments) > 0


@pytest.mark.parametrize(
    ("work", "num_bytes"),
    [
        # 64 rows of 4 numbers, read by both networks, and of 5 x 16 in each; what is smaller than
        # 1 KiB stays. A layer's output is saved for its tanh and for the next layer.
        ((), 1024 + 2 * 5 * 4096),
        # Five layers in segments of three and two: the input, one border, the last two outputs.
        (("memory.checkpoint_activations=true",), 1024 + 2 * 3 * 4096),
        # Parts of 16 rows: observations of 256 B stay.
        (("memory.num_micro_batches=4",), 4 * 2 * 5 * 1024),
    ],
)
def test_each_saved_storage_crosses_once_each_way(work, num_bytes):
    trainer = trainer_of("co_resident", OFFLOADED, *work)
    rows = record_rows(trainer)
    before = dataclasses.replace(trainer.placement.traffic)
    trainer.update(rows)
    assert trainer.placement.traffic.since(before) == Traffic(20 * num_bytes, 20 * num_bytes)
    assert not trainer.plan.around_forward._stored  # no copy outlives its graph


def test_a_storage_that_was_overwritten_is_saved_again():
    """Two functions of one tensor, before and after it was changed in place."""
    model = trainer_of("co_resident").model
    start = torch.linspace(-1.0, 1.0, 512, requires_grad=True)
    with HostActivations(model, Placement(torch.device("cpu")))(()):
        held = start * 1.0
        first = held.sin()
        with torch.no_grad():
            held.mul_(2.0)
        second = held.cos()
    (first + second).sum().backward()
    torch.testing.assert_close(start.grad, start.detach().cos() - (2.0 * start.detach()).sin())


def test_three_layers_outputs_of_eight_are_on_the_device_at_once():
    """2 networks of 4 x 1024, 16,384 rows: 64 MiB a layer."""
    work = ("network.hidden=[1024,1024,1024,1024]", "network.init=default", "num_envs=1024")
    work = (*work, "num_steps=32", "num_epochs=1", "num_minibatches=2")
    sizes = []
    for value in ("false", "true"):
        dry = dry_run(config(*work, f"memory.offload_activations={value}"))
        sizes.append(dry.phase_peaks["update"].by_category()[Category.activations])
    # An output, the gradient of the next layer's, and what tanh makes of it; else all eight.
    assert sizes == [pytest.approx(n * 64 * MIB, rel=0.01) for n in (8 + 2, 3)]
    assert dry.bus.gradient_step.h2d_bytes == pytest.approx(8 * 64 * MIB, rel=0.01)
    assert dry.bus.gradient_step.h2d_bytes == dry.bus.gradient_step.d2h_bytes
    assert dry.host_peak.pinned == pytest.approx(8 * 64 * MIB, rel=0.01)


@pytest.mark.parametrize("option", [OFFLOADED, IN_BACKWARD])
def test_a_transformer_ends_with_the_same_bits(option):
    work = ("env=text", "env.pretrain_steps=0", "network=gpt_tiny", "num_envs=4", "num_steps=12")
    work = (*work, "num_epochs=2", "num_minibatches=2", "total_steps=48")
    plain, found = Trainer([config(*work)]), Trainer([config(*work, option)])
    start = weights(plain)
    for trainer in (plain, found):
        trainer.iterate()
    assert torch.equal(weights(found), weights(plain))
    assert not torch.equal(weights(plain), start)


def test_the_lanes_of_a_stack_are_kept_apart():
    lanes = {"seed": 1}, {"seed": 2, "target_kl": 1e-9}
    plain = Trainer(lanes_of(config(*TWENTY_STEPS), *lanes))
    found = Trainer(lanes_of(config(OFFLOADED, *TWENTY_STEPS), *lanes))
    rows = record_rows(plain)
    assert plain.update(rows).gradient_steps.tolist() == [20, 1]
    found.update(rows)
    assert torch.equal(weights(found), weights(plain))


def test_a_trainer_that_is_let_go_leaves_nothing_behind():
    trainer = trainer_of("co_resident", OFFLOADED, IN_BACKWARD)
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
