"""What is measured beside training, and which part of a run is profiled."""

import dataclasses
from typing import ClassVar

import pytest
import torch

from ppo_lab.devices import meters as meters_module
from ppo_lab.devices.meters import Meters, choose_window
from ppo_lab.devices.pcie import BusLimit
from ppo_lab.devices.placement import Placement
from ppo_lab.devices.trace import Copies, DeviceUse
from ppo_lab.training.trainer import Trainer
from tests.helpers.trainers import TWENTY_STEPS, config, train_to_end

CPU = torch.device("cpu")
IDLE = DeviceUse(1.0, 1, 0.25, 0.5, 0.25, Copies(8, 0, 1.0), Copies(0, 0, 0.0))
SMALL = {"rollout": 1000, "advantages": 10, "update": 5000, "diagnostics": 50}


class FakeWindow:
    """Says when it was begun, ended or abandoned."""

    calls: ClassVar[list[str]] = []

    def __init__(self, device):
        assert device == CPU

    def begin(self):
        self.calls.append("begin")

    def end(self):
        self.calls.append("end")
        return IDLE

    def abandon(self):
        self.calls.append("abandon")


@pytest.fixture
def calls(monkeypatch):
    monkeypatch.setattr(meters_module, "DeviceWindow", FakeWindow)
    FakeWindow.calls.clear()
    return FakeWindow.calls


def profiled_meters(num_operations):
    """Return meters that behave as on CUDA, but for the windows themselves."""
    meters = Meters(Placement(CPU), is_profiled=True)
    meters.bus = BusLimit(50e9, 50e9)
    meters.num_operations = num_operations
    return meters


def run_iteration(meters, iteration, calls):
    meters.begin_iteration(iteration)
    for name in SMALL:
        with meters.phase(name):
            calls.append(name)
    return meters.read()


def test_an_iteration_of_few_operations_is_profiled_whole():
    assert choose_window(SMALL) == ("rollout", "advantages", "update", "diagnostics")
    assert choose_window(SMALL | {"rollout": 200_000 - 5060}) == tuple(SMALL)


def test_one_of_many_is_profiled_in_its_update_alone_or_not_at_all(caplog):
    assert choose_window(SMALL | {"rollout": 200_000 - 5059}) == ("update",)
    assert choose_window(SMALL | {"update": 200_000}) == ("update",)
    assert not caplog.records
    assert choose_window(SMALL | {"update": 200_001}) == ()
    assert "no window is profiled" in caplog.text


def test_the_third_iteration_is_the_window_and_no_other(calls):
    meters = profiled_meters(SMALL)
    metrics = [run_iteration(meters, iteration, calls) for iteration in range(1, 6)]
    assert calls == [*SMALL, *SMALL, "begin", *SMALL, "end", *SMALL, *SMALL]
    assert ["perf/exposed_copy_frac" in m for m in metrics] == [False, False, True, False, False]
    assert metrics[2]["perf/exposed_copy_frac"] == 0.5
    assert meters.use == IDLE
    assert meters.used_phases == tuple(SMALL)


def test_a_profiler_that_saw_nothing_is_not_believed(calls, monkeypatch, caplog):
    nothing = dataclasses.replace(IDLE, num_events=0, kernel_busy_frac=0.0)
    monkeypatch.setattr(FakeWindow, "end", lambda self: nothing)
    meters = profiled_meters(SMALL)
    assert "perf/kernel_busy_frac" not in run_iteration(meters, 3, calls)
    assert meters.use is None
    assert "not allowed to see the device" in caplog.text


def test_a_window_of_the_update_alone_opens_around_it(calls):
    meters = profiled_meters(SMALL | {"rollout": 10**6})
    run_iteration(meters, 3, calls)
    assert calls == ["rollout", "advantages", "begin", "update", "end", "diagnostics"]


def test_a_window_cut_short_is_let_go_once(calls):
    meters = profiled_meters(SMALL)
    meters.begin_iteration(3)
    with pytest.raises(MemoryError), meters.phase("rollout"):
        raise MemoryError
    meters.close()
    meters.close()
    assert calls == ["begin", "abandon"]
    assert meters.use is None


def test_without_a_bus_there_is_no_window(calls):
    meters = Meters(Placement(CPU), is_profiled=True)
    meters.num_operations = SMALL
    run_iteration(meters, 3, calls)
    assert "begin" not in calls


@pytest.mark.parametrize(("profile", "expected"), [("always", True), ("auto", False)])
def test_on_a_cpu_bytes_are_reported_where_a_run_is_profiled(profile, expected):
    records = []
    base = config(*TWENTY_STEPS, "memory=offloaded_optimizer", f"profile={profile}")
    base = dataclasses.replace(base, total_steps=2 * base.num_rows)
    trainer = Trainer([base], lambda lane, record: records.append(record))
    train_to_end(trainer)
    assert [("pcie/h2d_bytes" in record.metrics) for record in records] == [expected] * 2
    if expected:
        # All weights up in each of the 20 gradient steps; the first count holds the start as well.
        num_bytes = 4 * sum(p.numel() for p in trainer.model.parameters())
        assert records[1].metrics["pcie/h2d_bytes"] == 20 * num_bytes
