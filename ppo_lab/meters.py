"""Clocks and byte counters: how long each phase took, and what memory and bus saw.

On CUDA a phase is timed between two events on its stream, read only when the iteration is
recorded, so that timing adds no synchronisation. Elsewhere it is wall time.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["PhaseClock", "begin_memory_stats", "memory_stats", "peak_host_gib"]

_GIB = 1024**3


class PhaseClock:
    """Seconds by phase, per iteration and in all."""

    def __init__(self, device: torch.device) -> None:
        """Time work on ``device``."""
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.totals: dict[str, float] = defaultdict(float)
        """Seconds since the start, by phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside towards ``name``."""
        if self._is_cuda:
            begin = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_s

    def add(self, name: str, seconds: float) -> None:
        """Count ``seconds`` of the host's own time towards ``name``."""
        self._seconds[name] += seconds

    def read(self) -> dict[str, float]:
        """Return seconds by phase since the last read; call it when the device is idle."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000.0
        self._events.clear()
        seconds = dict(self._seconds)
        self._seconds.clear()
        for name, value in seconds.items():
            self.totals[name] += value
        return seconds


def begin_memory_stats(device: torch.device) -> None:
    """Forget the peaks of an earlier run in this process, and give back what it left cached."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory_stats(device: torch.device) -> dict[str, float]:
    """Return CUDA's memory in GiB, now and at the peak; empty on other devices."""
    if device.type != "cuda":
        return {}
    return {
        "allocated_gib": torch.cuda.memory_allocated(device) / _GIB,
        "reserved_gib": torch.cuda.memory_reserved(device) / _GIB,
        "peak_allocated_gib": torch.cuda.max_memory_allocated(device) / _GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved(device) / _GIB,
    }


def peak_host_gib() -> float | None:
    """Return the most memory this process has held on the host so far, in GiB.

    The kernel's count of resident pages since the process began, so the jobs of a grid that share a
    process share it too. None on Windows, which keeps no such count.
    """
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
