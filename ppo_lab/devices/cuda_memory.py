"""CUDA memory: peaks by phase, a VRAM limit, out-of-memory detection.

CUDA's allocator keeps one peak since the last reset. So the peak is read and reset at the begin and
end of every phase, and the run's peak is the largest value read.
"""

from __future__ import annotations

import gc
import logging
import traceback
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

__all__ = ["DeviceBytes", "MemoryMeter", "is_out_of_memory", "release_memory", "vram_limit"]

_LOG = logging.getLogger(__name__)

_GIB = 1024**3
_HOST_MESSAGES = ("DefaultCPUAllocator", "CUDA error: out of memory")  # the second when pinning


class DeviceBytes(NamedTuple):
    """Statistics of CUDA's allocator in bytes; peaks are since the last reset."""

    allocated: int
    """Held by tensors."""
    reserved: int
    """Taken from the driver: tensors and the allocator's cache."""
    peak_allocated: int
    peak_reserved: int

    def gib(self) -> dict[str, float]:
        """Return the four values in GiB by metric name."""
        return {f"{name}_gib": value / _GIB for name, value in self._asdict().items()}


class MemoryMeter:
    """Peak device memory by phase and of the whole run; measures CUDA only."""

    def __init__(self, device: torch.device) -> None:
        """Start at the memory in use on ``device``; initialises CUDA, which its allocator needs."""
        self._device = device
        self._is_cuda = device.type == "cuda"
        if self._is_cuda:
            torch.cuda.init()
            torch.cuda.reset_peak_memory_stats(device)
        self._peaks = (0, 0)  # allocated, reserved: largest so far
        self._phase_bytes: dict[str, int] = defaultdict(int)
        self.phase_peaks: dict[str, int] = defaultdict(int)
        """Most bytes allocated at once during each phase, since the start."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Assign the peak inside to ``name``, even if an exception is raised."""
        if not self._is_cuda:
            yield
            return
        self._take_peak()  # the peak so far belongs to no phase
        try:
            yield
        finally:
            peak = self._take_peak()
            self._phase_bytes[name] = max(self._phase_bytes[name], peak)
            self.phase_peaks[name] = max(self.phase_peaks[name], peak)

    def read(self) -> DeviceBytes | None:
        """Return the current values and the run's peaks; None without CUDA."""
        if not self._is_cuda:
            return None
        self._take_peak()
        now = _device_bytes(self._device)
        return DeviceBytes(now.allocated, now.reserved, *self._peaks)

    def read_phases(self) -> dict[str, int]:
        """Return each phase's peak bytes since the last call."""
        peaks = dict(self._phase_bytes)
        self._phase_bytes.clear()
        return peaks

    def _take_peak(self) -> int:
        """Return the most bytes allocated since the last reset, and reset."""
        now = _device_bytes(self._device)
        allocated, reserved = self._peaks
        self._peaks = max(allocated, now.peak_allocated), max(reserved, now.peak_reserved)
        torch.cuda.reset_peak_memory_stats(self._device)
        return now.peak_allocated


def _device_bytes(device: torch.device) -> DeviceBytes:
    """Return the current statistics of ``device`` without a synchronisation."""
    stats = torch.cuda.memory.memory_stats_as_nested_dict(device)
    sides = [stats[f"{kind}_bytes"]["all"] for kind in ("allocated", "reserved")]
    return DeviceBytes(*(side[moment] for moment in ("current", "peak") for side in sides))


@contextmanager
def vram_limit(device: torch.device, limit_gib: float | None) -> Iterator[None]:
    """Limit PyTorch's memory on ``device`` to ``limit_gib`` inside the context; None for no limit.

    Larger allocations fail as on a card of that size. CUDA's context is not counted. A limit
    without effect is logged.
    """
    if limit_gib is None or device.type != "cuda":
        if limit_gib is not None:
            _LOG.warning("vram_limit_gib=%g has no effect: this run is not on CUDA", limit_gib)
        yield
        return
    total_gib = torch.cuda.get_device_properties(device).total_memory / _GIB
    if limit_gib >= total_gib:
        _LOG.warning("vram_limit_gib=%g has no effect: the card has %.1f", limit_gib, total_gib)
    # By index (None: the current device), as this function rejects a device without one.
    torch.cuda.set_per_process_memory_fraction(min(limit_gib / total_gib, 1.0), device.index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device.index)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether ``error`` means that device or host memory is full.

    PyTorch has an exception type for the device only; host allocators raise RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _HOST_MESSAGES)


def release_memory(device: torch.device, error: BaseException | None = None) -> None:
    """Free the memory of a finished run: reference cycles, ``error``'s frames, CUDA's caches.

    A traceback keeps every frame's local variables alive, and so the model.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()
