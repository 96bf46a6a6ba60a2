"""Peaks by phase, smaller cards and full memories; what needs a card is in tests/gpu."""

import gc
import weakref

import pytest
import torch

from ppo_lab.devices import cuda_memory
from ppo_lab.devices.cuda_memory import (
    DeviceBytes,
    MemoryMeter,
    is_out_of_memory,
    release_memory,
    vram_limit,
)
from ppo_lab.devices.pcie import BusLimit, DeviceWindow, use_metrics
from ppo_lab.devices.trace import Copies, DeviceUse

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GIB = 1024**3


class ScriptedMemory:
    """An allocator whose tensors the test makes and frees."""

    def __init__(self):
        self.now = self.peak = 0

    def hold(self, num_bytes):
        self.now = num_bytes
        self.peak = max(self.peak, num_bytes)

    def read(self):  # reserved: always 100 more than allocated
        return DeviceBytes(self.now, self.now + 100, self.peak, self.peak + 100)

    def reset_peaks(self):
        self.peak = self.now


@pytest.fixture
def memory(monkeypatch):
    memory = ScriptedMemory()
    monkeypatch.setattr(cuda_memory, "_device_bytes", lambda device: memory.read())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.reset_peaks())
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    return memory


def test_each_phase_has_its_own_peak_and_the_run_has_the_largest(memory):
    meter = MemoryMeter(CUDA)
    memory.hold(10)
    with meter.phase("rollout"):
        memory.hold(30)
        memory.hold(20)
    with meter.phase("update"):
        memory.hold(70)
        memory.hold(15)
    assert meter.read() == DeviceBytes(15, 115, 70, 170)
    assert meter.read_phases() == {"rollout": 30, "update": 70}


def test_a_peak_between_two_phases_belongs_to_the_run_alone(memory):
    meter = MemoryMeter(CUDA)
    with meter.phase("rollout"):
        memory.hold(30)
    memory.hold(90)
    memory.hold(5)
    with meter.phase("update"):
        memory.hold(40)
    assert meter.read_phases() == {"rollout": 30, "update": 40}
    assert meter.read().peak_allocated == 90


def test_peaks_after_the_last_phase_are_not_lost(memory):
    meter = MemoryMeter(CUDA)
    with meter.phase("update"):
        memory.hold(40)
    memory.hold(50)
    memory.hold(1)
    assert meter.read().peak_allocated == 50


def test_a_phase_starts_at_what_is_held_when_it_begins(memory):
    meter = MemoryMeter(CUDA)
    memory.hold(80)
    memory.hold(60)
    with meter.phase("rollout"):
        memory.hold(20)
    assert meter.read_phases() == {"rollout": 60}


def test_phase_peaks_are_kept_per_reading_and_over_the_run(memory):
    meter = MemoryMeter(CUDA)
    for num_bytes in (50, 20):
        with meter.phase("update"):
            memory.hold(num_bytes)
            memory.hold(1)
        assert meter.read_phases() == {"update": num_bytes}
    assert meter.read_phases() == {}
    assert meter.phase_peaks == {"update": 50}


def test_a_phase_that_raises_still_says_how_far_it_came(memory):
    meter = MemoryMeter(CUDA)

    def update():
        with meter.phase("update"):
            memory.hold(77)
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        update()
    memory.hold(0)
    assert meter.phase_peaks == {"update": 77}
    assert meter.read().peak_allocated == 77


def test_without_cuda_nothing_is_counted():
    meter = MemoryMeter(CPU)
    with meter.phase("update"):
        pass
    assert meter.read() is None
    assert meter.read_phases() == {}


def test_bytes_are_reported_in_gib():
    assert DeviceBytes(GIB, 2 * GIB, GIB // 2, 3 * GIB).gib() == {
        "allocated_gib": 1.0,
        "reserved_gib": 2.0,
        "peak_allocated_gib": 0.5,
        "peak_reserved_gib": 3.0,
    }


def refused_by_the_host():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60)
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (MemoryError(), True),
        (refused_by_the_host(), True),  # what torch really raises on the CPU
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), False),
        (ValueError("DefaultCPUAllocator"), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_a_full_memory_is_told_from_other_errors(error, expected):
    assert is_out_of_memory(error) is expected


def test_releasing_frees_what_only_a_traceback_and_a_cycle_hold():
    tensors = []

    def hold():
        tensor = torch.zeros(8)
        cycle = [tensor]
        cycle.append(cycle)
        tensors.append(weakref.ref(tensor))
        raise torch.OutOfMemoryError("full")

    try:
        try:
            hold()
        except torch.OutOfMemoryError as first:
            raise RuntimeError("while telling of it") from first
    except RuntimeError as error:
        kept = error  # as a log or a debugger would
    gc.collect()
    assert tensors[0]() is not None
    release_memory(CPU, kept)
    assert tensors[0]() is None


def test_a_limit_means_nothing_without_a_card():
    with vram_limit(CPU, 1.0):
        assert torch.zeros(4).sum() == 0.0


def test_a_window_without_device_work_is_idle():
    window = DeviceWindow(CPU)
    window.begin()
    torch.zeros(64, 64).mm(torch.zeros(64, 64))
    use = window.end()
    assert use.num_events == 0  # operations of the host are none of the device's
    assert use.idle_no_copy_frac == 1.0
    assert use.wall_s > 0.0


def test_a_window_as_metrics_compares_rates_with_the_measured_limit():
    # 30 GB in 1 s up where 60 GB/s are possible; nothing down.
    use = DeviceUse(
        wall_s=4.0,
        num_events=9,
        kernel_busy_frac=0.5,
        exposed_copy_frac=0.2,
        idle_no_copy_frac=0.3,
        h2d=Copies(30_000_000_000, 1000, 1.0),
        d2h=Copies(0, 0, 0.0),
    )
    assert use_metrics(use, BusLimit(60e9, 50e9)) == {
        "perf/kernel_busy_frac": 0.5,
        "perf/exposed_copy_frac": 0.2,
        "perf/idle_no_copy_frac": 0.3,
        "perf/window_s": 4.0,
        "pcie/pageable_bytes": 1000.0,
        "pcie/h2d_gb_per_s": 30.0,
        "pcie/h2d_limit_frac": 0.5,
    }
