"""What only a CUDA device can show: where memory lies, what is pinned, and what waits for it."""

import dataclasses
import gc
import json

import pytest
import torch

from ppo_lab.compiler import compilation
from ppo_lab.memory import STRATEGIES
from ppo_lab.ppo.collector import Collector
from ppo_lab.ppo.rollout import RolloutRows
from ppo_lab.ppo.update import update
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import (
    PENDULUM,
    TWENTY_STEPS,
    config,
    lanes_of,
    largest_difference,
    numbers_of,
    record_rows,
    state_of,
    train_to_end,
    weights,
)

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


@pytest.mark.parametrize("env", [(), PENDULUM], ids=["discrete", "continuous"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_and_reports_memory_and_bus(strategy, env):
    records = []
    base = config(*TWENTY_STEPS, "device=cuda", f"memory={strategy}", *env)
    base = dataclasses.replace(base, total_steps=3 * base.num_rows)
    trainer = Trainer([base], lambda lane, record: records.append(record))
    (result,) = train_to_end(trainer)
    assert result.diverged is None
    assert len(records) == 3
    num_bytes = 4 * sum(p.numel() for p in trainer.model.parameters())
    for record in records:
        memory = {name for name in record.metrics if name.startswith("memory/")}
        assert memory >= {
            "memory/allocated_gib",
            "memory/reserved_gib",
            "memory/peak_allocated_gib",
            "memory/peak_reserved_gib",
            *(
                f"memory/peak_{phase}_gib"
                for phase in ("rollout", "advantages", "update", "diagnostics")
            ),
        }
        allocated, peak = (
            record.metrics[f"memory/{n}_gib"] for n in ("allocated", "peak_allocated")
        )
        assert 0.0 < allocated <= peak
        assert record.metrics["pcie/d2h_bytes"] > 0.0  # the record itself, if nothing else
    # After the first iteration only the update goes up: all weights in each of 20 steps, or two
    # moments once.
    uploads = {"offloaded_optimizer": 20 * num_bytes, "parked": 2 * num_bytes}.get(strategy, 0)
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
    hosts = trainer.optimizer._hosts.values()
    host = [tensor for host in hosts for tensor in (host.weights, host.gradient)]
    assert len(host) == 2 * len(list(trainer.model.parameters()))
    assert all(not tensor.is_cuda and tensor.is_pinned() is pin_memory for tensor in host)
    assert not any(tensor.is_cuda for tensor in state_of(trainer.optimizer))
    assert all(p.is_cuda for p in trainer.model.parameters())


SEPARATE = "separate_grad_clip=true"
OPTIONS = {
    "plain": (),
    "micro-batches": ("memory.num_micro_batches=4",),
    "checkpointed": ("memory.checkpoint_activations=true", "network.hidden=[64,64,64,64]"),
    "rollout on the host": ("memory.rollout_place=host",),
    "activations on the host": ("memory.offload_activations=true",),
}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("strategy", ["parked", "offloaded_optimizer"])
def test_strategies_of_two_networks_agree_on_cuda_with_every_option(strategy, option):
    trunk = OPTIONS[option][1:]
    resident = cuda_trainer(SEPARATE, *trunk)
    other = cuda_trainer(SEPARATE, f"memory={strategy}", *OPTIONS[option])
    resident_rows, other_rows = record_rows(resident), record_rows(other)
    for mine, theirs in zip(other_rows, resident_rows):
        torch.testing.assert_close(mine.cpu(), theirs.cpu(), rtol=0.0, atol=1e-5)
    is_on_host = option == "rollout on the host"
    assert other_rows.observations.is_pinned() if is_on_host else other_rows.observations.is_cuda
    start = weights(resident)
    other_rows = RolloutRows(other_rows.observations, *resident_rows[1:])
    for _ in range(2):
        resident.update(resident_rows)
        other.update(other_rows)
        assert largest_difference(weights(resident), weights(other)) < 1e-5
    assert largest_difference(weights(resident), start) > 1e-3


@pytest.mark.parametrize(
    "option", ["memory.optimizer_in_backward=true", "memory.offload_fraction=0.5"]
)
def test_adam_in_the_backward_pass_or_half_on_the_host_agrees_on_cuda(option):
    plain, other = cuda_trainer("max_grad_norm=0.1"), cuda_trainer("max_grad_norm=0.1", option)
    rows, start = record_rows(plain), weights(plain)
    for _ in range(2):
        plain.update(rows)
        other.update(rows)
    assert largest_difference(weights(plain), weights(other)) < 1e-5
    assert largest_difference(weights(plain), start) > 1e-3


def test_gradients_go_down_while_the_backward_pass_still_computes(tmp_path):
    trainer = cuda_trainer(
        "memory=offloaded_optimizer",
        f"network.hidden={[2048] * 6}",
        "num_envs=64",
        "num_steps=128",
        "num_epochs=1",
        "num_minibatches=2",
    )
    rows = record_rows(trainer)
    trainer.update(rows)
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        trainer.update(rows)
        torch.cuda.synchronize()
    profile.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    spans = {"kernel": [], "DtoH": [], "HtoD": []}
    for event in events:
        kind = "kernel" if event.get("cat") == "kernel" else event.get("name", "")[7:11]
        if event.get("cat") in ("kernel", "gpu_memcpy") and kind in spans:
            is_layer = kind == "kernel" or event["args"]["bytes"] >= 4 * 2048 * 2048
            if is_layer:
                spans[kind].append((event["ts"], event["ts"] + event["dur"]))

    def num_beside_a_kernel(copies):
        return sum(any(b < end and begin < e for b, e in spans["kernel"]) for begin, end in copies)

    # 2 steps of 2 networks with 5 square layers each: 20 large copies in each direction.
    assert len(spans["DtoH"]) == len(spans["HtoD"]) == 20
    # All but the last layers of a backward pass have kernels left to run beside.
    assert num_beside_a_kernel(spans["DtoH"]) >= 14


def test_a_hundred_offloaded_updates_make_no_streams_and_keep_no_memory():
    """Blocks that ever new side streams had used would never come back."""
    trainer = cuda_trainer("memory=offloaded_optimizer", "network.hidden=[512,512]")
    rows = record_rows(trainer)
    for _ in range(3):
        trainer.update(rows)
    before = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    for _ in range(100):
        trainer.update(rows)
    assert (torch.cuda.memory_reserved(), torch.cuda.memory_allocated()) == before


def test_offloaded_weights_are_the_hosts_own_after_every_update():
    """A copy up that raced with the next step or with a forward pass would leave another number."""
    trainer = cuda_trainer("memory=offloaded_optimizer", "network.hidden=[1024,1024,1024]")
    rows = record_rows(trainer)
    for _ in range(20):
        trainer.update(rows)
        torch.cuda.synchronize()
        for parameter, host in trainer.optimizer._hosts.items():
            assert torch.equal(parameter.detach().cpu(), host.weights)
            assert not host.has_gradient


def test_parked_moments_are_pinned_and_on_the_host_between_updates():
    trainer = cuda_trainer("memory=parked")
    trainer.update(record_rows(trainer))
    moments = [moment for adam in trainer.optimizer._adams.values() for moment in adam.moments]
    assert all(moment.is_pinned() for moment in moments)
    assert any(moment.any() for moment in moments)


def peak_per_parameter(*overrides):
    """Return the most bytes of device memory that an update adds, per parameter."""
    trainer = cuda_trainer(*overrides, "network.hidden=[2048,2048,2048]")
    rows = record_rows(trainer)
    trainer.update(rows)
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trainer.update(rows)
    num_parameters = sum(p.numel() for p in trainer.model.parameters())
    return (torch.cuda.max_memory_allocated() - before) / num_parameters


def test_an_update_adds_gradients_and_when_parked_one_networks_gradients_and_moments():
    # 16.8 M parameters; 256 rows of three layers of 2048 are 6 MB, a tenth of a byte each or so.
    assert peak_per_parameter("memory=co_resident") == pytest.approx(4.0, rel=0.2)
    assert peak_per_parameter("memory=offloaded_optimizer") == pytest.approx(4.0, rel=0.2)
    assert peak_per_parameter("memory=parked") == pytest.approx(12.0 / 2, rel=0.2)


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
    assert allocated_per_parameter("parked") == pytest.approx(4.0, rel=0.05)


LANES = ({}, {"seed": 2, "target_kl": 0.01}, {"epsilon": None, "dual_clip": 3.0})


@pytest.mark.parametrize("strategy", ["co_resident", "shared_trunk"])
@pytest.mark.parametrize("changes", [({},), LANES], ids=["alone", "three lanes"])
def test_an_update_never_waits_for_the_device(strategy, changes, forbid_syncs):
    base = config(*TWENTY_STEPS, "device=cuda", f"memory={strategy}")
    trainer = Trainer(lanes_of(base, *changes))
    rows = record_rows(trainer)
    trainer.update(rows)  # the first calls load kernels and make handles
    calls = forbid_syncs(compilation, "update", update)
    trainer.update(rows)
    assert calls == ["update"]


def test_a_parked_update_never_waits_for_the_device(forbid_syncs):
    trainer = cuda_trainer("memory=parked", "target_kl=0.01")
    rows = record_rows(trainer)
    trainer.update(rows)
    calls = forbid_syncs(compilation, "update", update)
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
