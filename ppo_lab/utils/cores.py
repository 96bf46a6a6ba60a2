"""CPU cores that this process may use: by affinity, by cgroup quota, and among its siblings."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

__all__ = ["divide_cores", "idle_cores", "usable_cores"]

_CGROUP = Path("/sys/fs/cgroup")
_SAMPLE_S = 0.05
_NUM_SHARING = 1


def divide_cores(num_processes: int) -> None:
    """Let this process take only its share from now on: ``num_processes`` run side by side."""
    global _NUM_SHARING
    _NUM_SHARING = num_processes


def usable_cores() -> int:
    """Return the cores that this process may use, at least 1."""
    cores = float(len(_affinity()))
    for quota in (_quota(folder) for folder in _cgroups()):
        cores = min(cores, quota)
    return max(1, math.floor(cores) // _NUM_SHARING)


def idle_cores() -> int:
    """Return how many of the usable cores nobody else is using now, at least 1.

    Measured for a twentieth of a second; where the system does not tell, from its load.
    """
    usable = usable_cores()
    if _NUM_SHARING > 1:  # the siblings' work is what the division is for
        return usable
    if (before := _busy_ticks()) is None:
        return max(1, usable - round(os.getloadavg()[0]))
    time.sleep(_SAMPLE_S)
    after = _busy_ticks() or before
    busy_s = (after - before) / os.sysconf("SC_CLK_TCK")
    return max(1, usable - round(busy_s / _SAMPLE_S))


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):  # macOS has none
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cgroups() -> list[Path]:
    """Return the folders of this process's cgroup and of those above it, which limit it, too."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = [_CGROUP, _CGROUP / "cpu"]  # in a container its own cgroup is mounted there
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root = _CGROUP / "cpu" if "cpu" in controllers.split(",") else _CGROUP
        if not controllers or root != _CGROUP:
            below = root / path.lstrip("/")
            found += [folder for folder in (below, *below.parents) if folder.is_relative_to(root)]
    return found


def _quota(folder: Path) -> float:
    """Return the cores that the quota of a cgroup allows; infinity for no quota."""
    try:
        if (folder / "cpu.max").exists():  # cgroup 2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if quota not in ("max", "-1") else math.inf
    except (OSError, ValueError):
        return math.inf


def _busy_ticks() -> int | None:
    """Return the clock ticks that our cores have worked since the start; None where not told."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
    except OSError:
        return None
    names = {f"cpu{core}" for core in _affinity()}
    cores = [line.split() for line in lines if line.split(" ", 1)[0] in names]
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(map(int, words[1:4])) + sum(map(int, words[6:9])) for words in cores)
