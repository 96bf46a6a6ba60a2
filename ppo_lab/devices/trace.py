"""Use of a GPU in a window of time: interval arithmetic on a profiler trace.

Kernels of several streams overlap, so durations cannot be added: all times are lengths of unions of
intervals. *Device work* is a kernel, a fill or a copy within the device; *copies* cross the bus. At
each moment the device is in one of three states, whose shares sum to 1: device work runs; only
copies run (the device waits for the bus); neither runs (it waits for the host).
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Copies", "DeviceUse", "device_use", "overlap", "read_events", "union"]

Interval = tuple[float, float]  # begin and end

_US_PER_S = 1e6
_WORK = frozenset({"kernel", "gpu_memset"})
_H2D, _D2H = "HtoD", "DtoH"  # as CUPTI names copies: "Memcpy HtoD (Pinned -> Device)"


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


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a chrome trace from ``torch.profiler``, compressed (.gz) or not."""
    content = path.read_bytes()
    text = gzip.decompress(content) if path.suffix == ".gz" else content
    events: list[dict[str, Any]] = json.loads(text)["traceEvents"]
    return events


def device_use(events: Iterable[Mapping[str, Any]], wall_s: float | None = None) -> DeviceUse:
    """Return the use of the device in a window; O(n log n) in the number of events.

    Args:
        events: Of a chrome trace; times in microseconds.
        wall_s: Length of the window by the host's clock, the device being idle at both ends; by
            default from the first device event to the end of the last one.

    Returns:
        Shares of the window, and the copies in both directions.
    """
    work: list[Interval] = []
    copies: dict[str, list[Interval]] = {_H2D: [], _D2H: []}
    num_bytes = {_H2D: 0, _D2H: 0}
    pageable = {_H2D: 0, _D2H: 0}
    for event in events:
        category = event.get("cat")
        if event.get("ph") != "X" or (category not in _WORK and category != "gpu_memcpy"):
            continue
        begin = float(event["ts"])
        interval = (begin, begin + float(event["dur"]))
        direction = _direction(event["name"]) if category == "gpu_memcpy" else None
        if direction is None:
            work.append(interval)
            continue
        copies[direction].append(interval)
        size = int(event["args"]["bytes"])
        num_bytes[direction] += size
        if "Pageable" in event["name"]:
            pageable[direction] += size
    busy, bus = union(work), union([*copies[_H2D], *copies[_D2H]])
    span_us = _span(busy, bus)
    wall_us = span_us if wall_s is None else max(wall_s * _US_PER_S, span_us)
    exposed_us = _length(bus) - overlap(bus, busy)
    sides = {
        side: Copies(num_bytes[side], pageable[side], _length(union(copies[side])) / _US_PER_S)
        for side in copies
    }

    def share(us: float) -> float:
        return us / wall_us if wall_us > 0.0 else 0.0

    return DeviceUse(
        wall_s=wall_us / _US_PER_S,
        num_events=len(work) + sum(map(len, copies.values())),
        kernel_busy_frac=share(_length(busy)),
        exposed_copy_frac=share(exposed_us),
        idle_no_copy_frac=share(wall_us - _length(busy) - exposed_us),
        h2d=sides[_H2D],
        d2h=sides[_D2H],
    )


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


def overlap(first: Sequence[Interval], second: Sequence[Interval]) -> float:
    """Return the length of the intersection of two unions.

    >>> overlap([(0.0, 3.0), (4.0, 6.0)], [(2.0, 5.0)])
    2.0
    """
    i = j = 0
    total = 0.0
    while i < len(first) and j < len(second):
        begin = max(first[i][0], second[j][0])
        end = min(first[i][1], second[j][1])
        total += max(end - begin, 0.0)
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return total


def _direction(name: str) -> str | None:
    """Return which way a copy crosses the bus; None if it stays on the device."""
    return next((direction for direction in (_H2D, _D2H) if direction in name), None)


def _length(disjoint: Sequence[Interval]) -> float:
    return sum(end - begin for begin, end in disjoint)


def _span(*unions: Sequence[Interval]) -> float:
    """Return the time from the first begin to the last end; 0 without intervals."""
    begins = [disjoint[0][0] for disjoint in unions if disjoint]
    ends = [disjoint[-1][1] for disjoint in unions if disjoint]
    return max(ends) - min(begins) if begins else 0.0
