"""What every memory strategy promises, and that offloading changes where, not what."""

import pytest
import torch

from ppo_lab.config.lanes import check_stack
from ppo_lab.devices.placement import Placement
from ppo_lab.memory import STRATEGIES, AutoMemory
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.paths import CONF_DIR
from tests.helpers.trainers import (
    PENDULUM,
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    numbers_of,
    record_rows,
    state_of,
    weights,
)

# 2 x 64 on CartPole's 4 numbers and 2 actions: trunk 5 * 64 + 65 * 64, heads 65 * 2 and 65 * 1.
TRUNK, POLICY_HEAD, VALUE_HEAD = 4480, 130, 65


def trainer_of(strategy, *overrides):
    return Trainer([config(f"memory={strategy}", *TWENTY_STEPS, *overrides)])


def test_every_yaml_is_a_strategy_or_the_choice_of_one():
    names = {path.stem for path in (CONF_DIR / "memory").glob("*.yaml")}
    assert names == {*STRATEGIES, AutoMemory.name}
    assert all(config(f"memory={name}").memory.name == name for name in names)


@pytest.mark.parametrize("env", [(), PENDULUM], ids=["discrete", "continuous"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_updates_every_parameter(strategy, env):
    trainer = trainer_of(strategy, *env)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    diagnostics = trainer.update(record_rows(trainer))
    assert diagnostics.gradient_steps.tolist() == [20]
    for now, then in zip(trainer.model.parameters(), before):
        assert now.isfinite().all()
        assert not torch.equal(now, then)
        assert now.grad is None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_stack_wider_than_a_strategy_takes_is_refused(strategy):
    base = config(f"memory={strategy}")
    limit = base.memory.max_lanes
    if limit is None:
        check_stack([base] * 64)
        return
    check_stack([base] * limit)
    with pytest.raises(ConfigError, match=f"memory={strategy}: trains at most {limit}"):
        check_stack([base] * (limit + 1))
    with pytest.raises(ConfigError):
        Trainer(lanes_of(base, {}, {"seed": 2}))


SETTINGS = {
    "clipped by the gradient's norm": ("max_grad_norm=0.5",),
    "float64": ("dtype=float64",),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_offloaded_and_co_resident_end_with_the_same_parameters(setting):
    """Two updates of 20 gradient steps on one recorded rollout: same maths, same numbers."""
    resident = trainer_of("co_resident", *SETTINGS[setting])
    offloaded = trainer_of("offloaded_optimizer", *SETTINGS[setting])
    rows = record_rows(resident)
    start = weights(resident)
    assert torch.equal(weights(offloaded), start)
    for iteration in range(2):
        resident.progress.iteration = offloaded.progress.iteration = iteration
        expected, found = resident.update(rows), offloaded.update(rows)
        assert largest_difference(weights(resident), weights(offloaded)) < 1e-6
        for mine, theirs in zip(numbers_of(found), numbers_of(expected)):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
        # The setting is not idle: it is what its name says.
        if setting == "clipped by the gradient's norm":
            assert expected.grad_norm > 1.0
    assert largest_difference(weights(resident), start) > 1e-3


def test_no_transfer_reads_and_writes_one_storage(monkeypatch):
    """On a CPU an alias would make a missing copy invisible."""
    move, pairs = Placement.move, []

    def spy(self, tensor, to, out=None, **kwargs):
        result = move(self, tensor, to, out, **kwargs)
        pairs.append((tensor.untyped_storage().data_ptr(), result.untyped_storage().data_ptr()))
        return result

    monkeypatch.setattr(Placement, "move", spy)
    trainer = trainer_of("offloaded_optimizer")
    trainer.update(record_rows(trainer))
    assert len(pairs) > 20 * 2 * 12  # 12 tensors down and up in every one of 20 steps
    assert all(read != written for read, written in pairs)


def test_the_hosts_tensors_share_no_storage_with_the_devices():
    trainer = trainer_of("offloaded_optimizer")
    trainer.update(record_rows(trainer))
    trainer.model(torch.zeros(1, 1, 4))[1].sum().backward()  # gradients to compare with
    device = [*trainer.model.parameters()]
    device += [p.grad for p in device if p.grad is not None]
    hosts = trainer.optimizer._hosts.values()
    host = [*state_of(trainer.optimizer), *(h.gradient for h in hosts), *(h.weights for h in hosts)]
    pointers = [t.untyped_storage().data_ptr() for t in host]
    assert not set(pointers) & {t.untyped_storage().data_ptr() for t in device}
    assert len(set(pointers)) == len(pointers)


def sizes(trainer):
    return {name: sum(p.numel() for p in group) for name, group in trainer.model.groups().items()}


def test_a_shared_trunk_is_one_trunk_with_two_heads():
    trainer = trainer_of("shared_trunk")
    assert trainer.model.actor is trainer.model.critic
    assert sizes(trainer) == {"trunk": TRUNK, "actor": POLICY_HEAD, "critic": VALUE_HEAD}
    assert sum(p.numel() for p in trainer.model.parameters()) == TRUNK + POLICY_HEAD + VALUE_HEAD


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_learning_values_moves_the_policy_where_and_only_where_the_trunk_is_shared(strategy):
    trainer = trainer_of(strategy, "advantage_normalization=none", "max_grad_norm=none")
    rows = record_rows(trainer)
    rows = rows._replace(advantages=torch.zeros_like(rows.advantages))  # no policy gradient
    before = trainer.model.policy(rows.observations).detach()
    trainer.update(rows)
    is_same = torch.equal(trainer.model.policy(rows.observations), before)
    assert is_same is not trainer.config.memory.shares_trunk
