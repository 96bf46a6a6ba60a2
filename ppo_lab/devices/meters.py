"""Measurements of each training phase: time, memory, bus traffic, and a profiler window.

On CUDA a phase is timed between two events on its stream, which are read only when the iteration
is recorded: timing adds no synchronisation. Elsewhere wall time is measured.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from ppo_lab.devices.cuda_memory import MemoryMeter
from ppo_lab.devices.observers import PhaseObserver
from ppo_lab.devices.pcie import BusLimit, DeviceWindow, measure_bus, use_metrics
from ppo_lab.devices.placement import Placement, Traffic
from ppo_lab.devices.trace import DeviceUse

__all__ = ["Meters", "PhaseClock", "choose_window", "peak_host_gib"]

_LOG = logging.getLogger(__name__)
_GIB = 1024**3
_WINDOW_ITERATION = 3  # the first two include one-off costs: first calls, a growing allocator
_MAX_WINDOW_OPERATIONS = 200_000  # each is about one kernel: a trace of some 100 MB, read in 2 s


class PhaseClock:
    """Seconds by phase: per iteration, and in total."""

    def __init__(self, device: torch.device) -> None:
        """Time work on ``device``."""
        self._is_cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self.totals: dict[str, float] = defaultdict(float)
        """Seconds since the start, by phase."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time spent inside to ``name``."""
        if self._is_cuda:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self._events.append((name, begin, end))
        else:
            begin_s = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - begin_s

    def add(self, name: str, seconds: float) -> None:
        """Add ``seconds`` of host time to ``name``."""
        self._seconds[name] += seconds

    def read(self) -> dict[str, float]:
        """Return seconds by phase since the last read; the device must be idle."""
        for name, begin, end in self._events:
            end.synchronize()
            self._seconds[name] += begin.elapsed_time(end) / 1000.0
        self._events.clear()
        seconds = dict(self._seconds)
        self._seconds.clear()
        for name, value in seconds.items():
            self.totals[name] += value
        return seconds

    def without_overlap(self) -> dict[str, float]:
        """Return all seconds by phase; steps of the environments are taken out of the rollout."""
        seconds = dict(self.totals)
        env_s = seconds.pop("env", 0.0)
        seconds["rollout"] = seconds.get("rollout", 0.0) - env_s
        return {"env": env_s, **seconds}


class Meters(PhaseObserver):
    """Phase clock, peak memory, bus traffic and, in profiled runs, one profiler window.

    Profiling affects one iteration only; the others run exactly as in an unprofiled run.
    """

    def __init__(self, placement: Placement, *, is_profiled: bool) -> None:
        """Measure the device of ``placement``; frees what an earlier run left in CUDA's cache."""
        self.bus: BusLimit | None = None
        if placement.is_cuda:
            self.bus = measure_bus(placement.device) if is_profiled else None
            torch.cuda.empty_cache()
        self.clock = PhaseClock(placement.device)
        self.memory = MemoryMeter(placement.device)
        self.use: DeviceUse | None = None
        """Use of the device in the profiler window; None before it, or without one."""
        self.used_phases: tuple[str, ...] = ()
        """Phases within that window."""
        self.running_phase: str | None = None
        """The current phase, or the one that raised."""
        self.num_operations: dict[str, int] = {}
        """Operations of one iteration by phase, in order; set by ``forecast.counting``."""
        self._placement = placement
        self._reports_traffic = placement.is_cuda or is_profiled
        self._traffic_before = Traffic()
        self._window: DeviceWindow | None = None
        self._window_phases: tuple[str, ...] = ()

    def begin_iteration(self, iteration: int) -> None:
        """Choose the phases to profile in ``iteration``, counted from 1."""
        self._window_phases = ()
        if self.bus is not None and iteration == _WINDOW_ITERATION:
            self._window_phases = choose_window(self.num_operations)

    @contextmanager
    def phase(self, name: str, *_inputs: object) -> Iterator[None]:
        """Measure one phase; opens and closes the profiler window at its first and last phase."""
        if self._window_phases and name == self._window_phases[0]:
            self._window = DeviceWindow(self._placement.device)
            self._window.begin()
        self.running_phase = name
        with self.clock.phase(name), self.memory.phase(name):
            yield
        self.running_phase = None
        if self._window is not None and name == self._window_phases[-1]:
            use, self._window = self._window.end(), None
            if use.num_events:
                self.use, self.used_phases = use, self._window_phases
            else:
                _LOG.warning("the profiler was not allowed to see the device: perf/* is left out")

    def close(self) -> None:
        """Stop the profiler if its window is still open."""
        if self._window is not None:
            self._window.abandon()
            self._window = None

    def read(self) -> dict[str, float]:
        """Return memory and bus traffic of this iteration as metrics; the device must be idle."""
        metrics: dict[str, float] = {}
        if (now := self.memory.read()) is not None:
            metrics |= {f"memory/{name}": value for name, value in now.gib().items()}
            peaks = self.memory.read_phases()
            metrics |= {f"memory/peak_{name}_gib": peak / _GIB for name, peak in peaks.items()}
        if self._reports_traffic:
            traffic = self._placement.traffic
            moved = traffic.since(self._traffic_before)
            self._traffic_before = dataclasses.replace(traffic)
            metrics |= {f"pcie/{side}": float(n) for side, n in dataclasses.asdict(moved).items()}
        if self._window_phases and self.use is not None and self.bus is not None:
            metrics |= use_metrics(self.use, self.bus)
        return metrics


def choose_window(num_operations: Mapping[str, int]) -> tuple[str, ...]:
    """Return the phases to profile, in order: a whole iteration, else its update, else none.

    ``num_operations`` are those of one iteration by phase, in order; they limit the trace's size.
    """
    for phases in (tuple(num_operations), ("update",)):
        if sum(num_operations[phase] for phase in phases) <= _MAX_WINDOW_OPERATIONS:
            return phases
    most = _MAX_WINDOW_OPERATIONS
    _LOG.warning("no window is profiled: an update has more than %d operations", most)
    return ()


def peak_host_gib() -> float | None:
    """Return the peak resident host memory of this process, in GiB; None on Windows.

    The kernel counts since the process began, so jobs of a grid in one process share the value.
    """
    if sys.platform == "win32":
        return None
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
