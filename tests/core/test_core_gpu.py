"""What only a CUDA device can show: where memory lies, what is pinned, and what waits for it."""

import dataclasses
import gc

import pytest
import torch
from core_helpers import (
    PENDULUM,
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    numbers_of,
    record_rows,
    weights,
)

from ppo_lab import trainer as trainer_module
from ppo_lab.collect import Collector
from ppo_lab.memory import STRATEGIES
from ppo_lab.rollout import RolloutRows
from ppo_lab.trainer import Trainer
from ppo_lab.update import update

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]


def cuda_trainer(*overrides):
    return Trainer([config(*TWENTY_STEPS, "device=cuda", *overrides)])


def cpu_trainer(*overrides):
    return Trainer([config(*TWENTY_STEPS, *overrides)])


def on_cuda(rows):
    return RolloutRows(*(tensor.cuda() for tensor in rows))


@pytest.fixture
def forbid_syncs(monkeypatch):
    """Return a function that makes ``owner.name`` raise wherever it waits for the device."""

    def forbid(owner, name, function):
        calls = []

        def guarded(*args, **kwargs):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")
            try:
                return function(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                calls.append(name)

        monkeypatch.setattr(owner, name, guarded)
        return calls

    return forbid


@pytest.mark.parametrize("env", [(), PENDULUM], ids=["discrete", "continuous"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_and_reports_memory_and_bus(strategy, env):
    records = []
    base = config(*TWENTY_STEPS, "device=cuda", f"memory={strategy}", *env)
    base = dataclasses.replace(base, total_steps=3 * base.num_rows)
    trainer = Trainer([base], lambda lane, record: records.append(record))
    (result,) = trainer.run()
    assert result.diverged is None
    assert len(records) == 3
    num_bytes = 4 * sum(p.numel() for p in trainer.model.parameters())
    for record in records:
        memory = {name for name in record.metrics if name.startswith("memory/")}
        assert memory == {
            "memory/allocated_gib",
            "memory/reserved_gib",
            "memory/peak_allocated_gib",
            "memory/peak_reserved_gib",
        }
        allocated, peak = (
            record.metrics[f"memory/{n}_gib"] for n in ("allocated", "peak_allocated")
        )
        assert 0.0 < allocated <= peak
        assert record.metrics["pcie/d2h_bytes"] > 0.0  # the record itself, if nothing else
    # After the first iteration only the update goes up: all weights in each of 20 steps.
    uploads = 20 * num_bytes if strategy == "offloaded_optimizer" else 0
    assert [record.metrics["pcie/h2d_bytes"] for record in records[1:]] == [uploads, uploads]


@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
@pytest.mark.parametrize("env", [(), PENDULUM], ids=["discrete", "continuous"])
def test_the_first_update_on_cuda_is_that_on_the_cpu(strategy, env):
    overrides = (*env, f"memory={strategy}")
    cpu, cuda = cpu_trainer(*overrides), cuda_trainer(*overrides)
    # Same seeds, same weights: numbers are functions of the seed on every device.
    assert largest_difference(weights(cpu), weights(cuda)) < 1e-5
    cuda.model.load_state_dict(cpu.model.state_dict())
    rows = record_rows(cpu)
    expected, found = cpu.update(rows), cuda.update(on_cuda(rows))
    assert largest_difference(weights(cpu), weights(cuda)) < 1e-4
    for mine, theirs in zip(numbers_of(found), numbers_of(expected)):
        torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "setting",
    [(), ("max_grad_norm=none",), ("target_kl=0.001", "lr=0.01"), PENDULUM],
    ids=["clipped", "not clipped", "stopped", "continuous"],
)
@pytest.mark.parametrize("pin_memory", ["true", "false"])
def test_offloaded_and_co_resident_agree_on_cuda(setting, pin_memory):
    resident = cuda_trainer(*setting)
    offloaded = cuda_trainer(
        "memory=offloaded_optimizer", f"memory.pin_memory={pin_memory}", *setting
    )
    rows = record_rows(resident)
    start = weights(resident)
    for _ in range(2):
        expected, found = resident.update(rows), offloaded.update(rows)
        assert largest_difference(weights(resident), weights(offloaded)) < 1e-5
        assert torch.equal(found.gradient_steps, expected.gradient_steps)
    assert largest_difference(weights(resident), start) > 1e-3


@pytest.mark.parametrize("pin_memory", [True, False])
def test_the_hosts_weights_and_gradients_are_pinned_as_asked(pin_memory):
    trainer = cuda_trainer("memory=offloaded_optimizer", f"memory.pin_memory={pin_memory}".lower())
    trainer.update(record_rows(trainer))
    state = trainer.optimizer.state_dict()
    host = [value for name, value in state.items() if name.startswith("weights.")]
    host += [p.grad for p in trainer.optimizer._host]
    assert len(host) == 2 * len(list(trainer.model.parameters()))
    assert all(not tensor.is_cuda and tensor.is_pinned() is pin_memory for tensor in host)
    assert not any(value.is_cuda for value in state.values())
    assert all(p.is_cuda for p in trainer.model.parameters())


def allocated_per_parameter(strategy):
    """Return the bytes of device memory that a trainer keeps after an update, per parameter."""
    gc.collect()
    before = torch.cuda.memory_allocated()
    trainer = cuda_trainer(f"memory={strategy}", "network.hidden=[2048,2048]")
    trainer.update(record_rows(trainer))
    torch.cuda.synchronize()
    gc.collect()
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    return (torch.cuda.memory_allocated() - before) / num_parameters


def test_offloading_takes_adams_eight_bytes_a_parameter_off_the_device():
    allocated_per_parameter("co_resident")  # cuBLAS's workspace, once
    # float32 weights, and on the device two moments; 8.4 M parameters dwarf the rest.
    assert allocated_per_parameter("co_resident") == pytest.approx(12.0, rel=0.05)
    assert allocated_per_parameter("offloaded_optimizer") == pytest.approx(4.0, rel=0.05)


LANES = ({}, {"seed": 2, "target_kl": 0.01}, {"epsilon": None, "dual_clip": 3.0})


@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
@pytest.mark.parametrize("changes", [({},), LANES], ids=["alone", "three lanes"])
def test_an_update_never_waits_for_the_device(strategy, changes, forbid_syncs):
    base = config(*TWENTY_STEPS, "device=cuda", f"memory={strategy}")
    trainer = Trainer(lanes_of(base, *changes))
    rows = record_rows(trainer)
    trainer.update(rows)  # the first calls load kernels and make handles
    calls = forbid_syncs(trainer_module, "update", update)
    trainer.update(rows)
    assert calls == ["update"]


@pytest.mark.parametrize("env", ["cartpole", "acrobot", "pendulum"])
def test_collecting_from_a_native_environment_never_waits_for_the_device(env, forbid_syncs):
    trainer = cuda_trainer(
        f"env={env}", "num_steps=160", "num_envs=8", "env.normalize_observations=true"
    )
    trainer.collect()
    calls = forbid_syncs(Collector, "collect", Collector.collect)
    trainer.collect()
    assert calls == ["collect"]


def test_a_lane_on_cuda_equals_itself_alone():
    base = config(*TWENTY_STEPS, "device=cuda")
    changes = ({"seed": 1}, {"seed": 2, "lr": 1e-2, "epsilon": None}, {"seed": 3, "gamma": 0.9})
    stack = Trainer(lanes_of(base, *changes))
    rows = record_rows(stack)
    stack.update(rows)
    for lane, lane_config in enumerate(stack.configs):
        alone = Trainer([lane_config])
        alone.update(RolloutRows(*(tensor[lane : lane + 1] for tensor in rows)))
        assert largest_difference(weights(stack, lane), weights(alone)) < 1e-5


def test_bfloat16_trains_on_cuda_with_float32_weights():
    trainer = cuda_trainer("dtype=bfloat16")
    diagnostics = trainer.update(record_rows(trainer))
    assert all(value.isfinite().all() for value in numbers_of(diagnostics))
    assert all(p.dtype is torch.float32 for p in trainer.model.parameters())
