"""The bus between host and device: its maximum rate, and profiling of a window of time."""

from __future__ import annotations

import functools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ppo_lab.devices.trace import DeviceUse, device_use

__all__ = ["BusLimit", "DeviceWindow", "measure_bus", "use_metrics"]

_COPY_BYTES = 256 * 1024**2  # 5 ms at 55 GB/s: much longer than a launch
_NUM_COPIES = 4  # the fastest counts; during the first the link may still clock up
_GB = 1e9


@dataclass(frozen=True)
class BusLimit:
    """Maximum rate of a large copy from and to page-locked memory, in bytes per second."""

    h2d_bytes_per_s: float
    d2h_bytes_per_s: float


@functools.cache
def measure_bus(device: torch.device) -> BusLimit:
    """Measure the bus of a CUDA ``device``, once per process: about 50 ms."""
    host = torch.empty(_COPY_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    limit = BusLimit(_best_rate(there, host), _best_rate(host, there))
    del host, there
    torch.cuda.empty_cache()
    torch.accelerator.empty_host_cache()
    return limit


def _best_rate(target: Tensor, source: Tensor) -> float:
    """Return the highest rate of a few copies, timed on the device."""
    device = target.device if target.is_cuda else source.device
    stream = torch.cuda.current_stream(device)
    seconds = []
    for _ in range(_NUM_COPIES):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record(stream)
        target.copy_(source, non_blocking=True)
        end.record(stream)
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000.0)
    return source.numel() * source.element_size() / min(seconds)


class DeviceWindow:
    """Profiles the device from ``begin`` to ``end``: kernels and copies, no host events.

    Profiling slows down launches, so one short window in the steady state has to do.
    """

    def __init__(self, device: torch.device) -> None:
        """Profile ``device``; on a CPU, which tests use, there is no device work."""
        # Kineto logs to stderr, into the progress line; 6 is above all its levels.
        os.environ.setdefault("KINETO_LOG_LEVEL", "6")
        self._device = device
        is_cuda = device.type == "cuda"
        self._profile = profile(
            activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]
        )
        self._begin_s = 0.0

    def begin(self) -> None:
        """Start the profiler, then the clock, while the device is idle."""
        self._synchronize()
        self._profile.start()
        self._synchronize()
        self._begin_s = time.perf_counter()

    def end(self) -> DeviceUse:
        """Synchronise, stop, and return the use of the device since ``begin``."""
        self._synchronize()
        wall_s = time.perf_counter() - self._begin_s
        self._profile.stop()
        with tempfile.TemporaryDirectory(prefix="ppo_lab_") as folder:
            path = Path(folder) / "trace.json"
            self._profile.export_chrome_trace(str(path))
            return device_use(json.loads(path.read_text())["traceEvents"], wall_s)

    def abandon(self) -> None:
        """Stop without a result, after an exception."""
        self._profile.stop()

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def use_metrics(use: DeviceUse, limit: BusLimit) -> dict[str, float]:
    """Return a window as metrics; rates, and their share of ``limit``, are those while copying."""
    metrics = {
        "perf/kernel_busy_frac": use.kernel_busy_frac,
        "perf/exposed_copy_frac": use.exposed_copy_frac,
        "perf/idle_no_copy_frac": use.idle_no_copy_frac,
        "perf/window_s": use.wall_s,
        "pcie/pageable_bytes": float(use.h2d.pageable_bytes + use.d2h.pageable_bytes),
    }
    limits = (limit.h2d_bytes_per_s, limit.d2h_bytes_per_s)
    for side, copies, limit_per_s in zip(("h2d", "d2h"), (use.h2d, use.d2h), limits):
        if (rate := copies.bytes_per_s) is not None:
            metrics[f"pcie/{side}_gb_per_s"] = rate / _GB
            metrics[f"pcie/{side}_limit_frac"] = rate / limit_per_s
    return metrics
