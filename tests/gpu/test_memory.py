"""What is measured on a real card: peaks, the bus, a profiled window, and a card that is full."""

import gc

import pytest
import torch

from ppo_lab.devices.cuda_memory import MemoryMeter, vram_limit
from ppo_lab.devices.pcie import DeviceWindow, measure_bus
from ppo_lab.runner.run import run_in_folder
from ppo_lab.tracking import read_metrics
from tests.helpers.trainers import config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here"),
]

CUDA = torch.device("cuda")
MIB = 1024**2
GIB = 1024**3


def mebibytes(count, **where):
    return torch.ones(count * MIB, dtype=torch.uint8, **(where or {"device": CUDA}))


@pytest.fixture(autouse=True)
def clean():
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def test_the_bus_is_measured_once_and_leaves_nothing_behind():
    measure_bus.cache_clear()
    before = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
    limit = measure_bus(CUDA)
    assert (torch.cuda.memory_allocated(), torch.cuda.memory_reserved()) == before
    # From a slow PCIe 3.0 x4 to NVLink-C2C.
    assert 1e9 < limit.h2d_bytes_per_s < 1e12
    assert 1e9 < limit.d2h_bytes_per_s < 1e12
    assert measure_bus(CUDA) is limit


def test_peaks_by_phase_are_those_of_the_allocator():
    base = torch.cuda.memory_allocated()
    meter = MemoryMeter(CUDA)
    with meter.phase("rollout"):
        kept = mebibytes(64)
    with meter.phase("update"):
        temporary = mebibytes(32)
        del temporary
    assert meter.read_phases() == {"rollout": base + 64 * MIB, "update": base + 96 * MIB}
    del kept
    now = meter.read()
    assert (now.allocated, now.peak_allocated) == (base, base + 96 * MIB)
    assert now.peak_reserved >= now.peak_allocated


def test_a_window_counts_kernels_and_copies_by_direction():
    pinned, pageable = mebibytes(64, pin_memory=True), mebibytes(16, device="cpu")
    there, factor = mebibytes(64), torch.randn(2048, 2048, device=CUDA)
    factor @ factor  # makes cuBLAS's handle
    torch.cuda.synchronize()
    window = DeviceWindow(CUDA)
    window.begin()
    there.copy_(pinned, non_blocking=True)
    pinned.copy_(there, non_blocking=True)
    there[: 16 * MIB].copy_(pageable)
    factor @ factor
    use = window.end()
    assert (use.h2d.num_bytes, use.d2h.num_bytes) == (80 * MIB, 64 * MIB)
    assert (use.h2d.pageable_bytes, use.d2h.pageable_bytes) == (16 * MIB, 0)
    assert use.kernel_busy_frac > 0.0
    assert use.exposed_copy_frac > 0.0  # one stream: no copy runs beside a kernel
    shares = use.kernel_busy_frac + use.exposed_copy_frac + use.idle_no_copy_frac
    assert shares == pytest.approx(1.0)
    limit = measure_bus(CUDA)
    # Small and large copies differ, so the limit may be missed, and not passed by much.
    assert use.d2h.bytes_per_s < 1.3 * limit.d2h_bytes_per_s


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_an_emulated_card_is_full_at_its_limit_and_whole_again_afterwards(device):
    limit_gib = torch.cuda.memory_reserved() / GIB + 0.5
    with vram_limit(torch.device(device), limit_gib):
        mebibytes(256)
        with pytest.raises(torch.OutOfMemoryError):
            mebibytes(600)
    mebibytes(600)


# 4 x 2048 twice: 25 M parameters, 16 B each: 0.4 GB with gradients and Adam.
WIDE = (
    "device=cuda",
    "network.hidden=[2048,2048,2048,2048]",
    "num_envs=256",
    "num_steps=32",
    "num_minibatches=2",
    "num_epochs=1",
    "total_steps=32768",  # 4 iterations, of which the third is the window
    "tracking.mode=disabled",
    "tracking.terminal=none",
)


def run(folder, *overrides):
    folder.mkdir()
    return run_in_folder(config(*WIDE, *overrides), folder, overrides=overrides)


def test_a_run_is_forecast_counted_and_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = run(tmp_path / "a", "memory=offloaded_optimizer")
    assert summary["status"] == "finished", summary["reason"]
    memory = summary["memory"]
    assert memory["ledger"]["peak_gib"] == pytest.approx(memory["forecast"]["peak_gib"], rel=0.02)
    # cuBLAS's workspace is the forecast's own line: the allocator holds it, the ledger does not.
    allocated = memory["measured"]["allocated_gib"]
    assert memory["forecast"]["allocated_gib"] == pytest.approx(allocated, rel=0.02)
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    windows = ["perf/exposed_copy_frac" in row for row in rows]
    assert windows == [False, False, True, False]
    assert rows[2]["perf/exposed_copy_frac"] > 0.0
    assert 0.0 < rows[2]["pcie/h2d_limit_frac"] < 1.3
    assert rows[2]["memory/peak_update_gib"] > 0.0
    assert summary["perf"]["exposed_copy_frac"] == rows[2]["perf/exposed_copy_frac"]


def test_a_full_card_ends_the_run_and_the_next_one_has_it_whole(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = torch.cuda.memory_allocated()
    forced = ("vram_limit_gib=0.2", "vram_budget_gib=none")
    summary = run(tmp_path / "a", *forced)
    assert summary["status"] == "out_of_memory"
    assert "limit 0.2 GiB" in summary["reason"]
    assert torch.cuda.memory_allocated() == before
    assert run(tmp_path / "b")["status"] == "finished"
