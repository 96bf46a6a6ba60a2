"""Use of a GPU in a window of time: interval arithmetic on a profiler trace.

Kernels of several streams overlap, so durations cannot be added: all times are lengths of unions of
intervals. *Device work* is a kernel, a fill or a copy within the device; *copies* cross the bus. At
each moment the device is in one of three states, whose shares sum to 1: device work runs; only
copies run (the device waits for the bus); neither runs (it waits for the host).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Copies", "DeviceUse", "device_use", "union"]

Interval = tuple[float, float]  # begin and end
_Copy = tuple[Interval, int, bool]  # when, bytes, from or to pageable memory

_US_PER_S = 1e6
_DEVICE_EVENTS = ("kernel", "gpu_memset", "gpu_memcpy")  # a copy: "Memcpy HtoD (Pinned -> Device)"


@dataclass(frozen=True)
class Copies:
    """Copies over the bus in one direction."""

    num_bytes: int
    pageable_bytes: int
    """Bytes from or to host memory that is not page-locked: about half as fast, and blocking."""
    busy_s: float
    """Seconds in which at least one copy of this direction ran."""

    @property
    def bytes_per_s(self) -> float | None:
        """The rate while copying; None if nothing was copied."""
        return self.num_bytes / self.busy_s if self.busy_s > 0.0 else None


@dataclass(frozen=True)
class DeviceUse:
    """Use of the device in one window of time."""

    wall_s: float
    num_events: int
    kernel_busy_frac: float
    """Share of the window in which device work ran."""
    exposed_copy_frac: float
    """Share in which only copies ran: the device waited for the bus."""
    idle_no_copy_frac: float
    """Share in which neither ran: the host's optimizer, Python, or an environment on the host."""
    h2d: Copies
    d2h: Copies


def device_use(events: Iterable[Mapping[str, Any]], wall_s: float | None = None) -> DeviceUse:
    """Return the use of the device in a window, from the events of a chrome trace; O(n log n).

    ``wall_s`` is the length of the window by the host's clock, the device being idle at both ends;
    by default the time from the first device event to the end of the last one.
    """
    work: list[Interval] = []
    copies: dict[str, list[_Copy]] = {"HtoD": [], "DtoH": []}
    for event in events:
        if event.get("ph") != "X" or event.get("cat") not in _DEVICE_EVENTS:
            continue
        name, begin = event["name"], float(event["ts"])
        interval = (begin, begin + float(event["dur"]))
        is_copy = event["cat"] == "gpu_memcpy"
        direction = next((direction for direction in copies if is_copy and direction in name), None)
        if direction is None:  # device work, or a copy within the device
            work.append(interval)
        else:
            copies[direction].append((interval, int(event["args"]["bytes"]), "Pageable" in name))
    h2d, d2h = copies.values()
    busy, bus = union(work), union(interval for interval, *_ in (*h2d, *d2h))
    either = union([*busy, *bus])
    span_us = either[-1][1] - either[0][0] if either else 0.0
    wall_us = max((wall_s or 0.0) * _US_PER_S, span_us)
    busy_us, either_us = _length(busy), _length(either)

    def share(us: float) -> float:
        return us / wall_us if wall_us > 0.0 else 0.0

    return DeviceUse(
        wall_s=wall_us / _US_PER_S,
        num_events=len(work) + len(h2d) + len(d2h),
        kernel_busy_frac=share(busy_us),
        exposed_copy_frac=share(either_us - busy_us),
        idle_no_copy_frac=share(wall_us - either_us),
        h2d=_sum_copies(h2d),
        d2h=_sum_copies(d2h),
    )


def _sum_copies(copies: Sequence[_Copy]) -> Copies:
    busy = union(interval for interval, *_ in copies)
    num_bytes = sum(size for _, size, _ in copies)
    pageable_bytes = sum(size for _, size, is_pageable in copies if is_pageable)
    return Copies(num_bytes, pageable_bytes, _length(busy) / _US_PER_S)


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Return the union of intervals as disjoint ones in order; touching ones are joined.

    >>> union([(4.0, 6.0), (0.0, 2.0), (1.0, 3.0)])
    [(0.0, 3.0), (4.0, 6.0)]
    """
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((begin, end))
    return joined


def _length(disjoint: Sequence[Interval]) -> float:
    return sum(end - begin for begin, end in disjoint)
