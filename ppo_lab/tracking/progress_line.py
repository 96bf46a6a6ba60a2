"""The numbers of a running stack in one line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

__all__ = ["LaneProgress", "clock_text", "progress_line"]


@dataclass
class LaneProgress:
    """How far one run is, and its newest numbers."""

    total_steps: int
    global_step: int = 0
    steps_before: int = 0
    """Steps taken before this process resumed the run; they do not count for its speed."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    is_open: bool = True


def progress_line(lanes: Sequence[LaneProgress], took_s: float) -> str:
    """Return steps, returns, clip and speed: sums of steps, means over the lanes still open.

    VRAM is the largest, since a process has one, and so is ε's range shown rather than its mean.
    Numbers that no lane has are left out.
    """
    still_open = [lane for lane in lanes if lane.is_open]
    steps = sum(lane.global_step for lane in lanes)
    total = sum(lane.total_steps for lane in lanes)
    parts = [f"{len(still_open or lanes)} lanes"] if len(lanes) > 1 else []
    parts.append(f"{steps:,}/{total:,}")
    parts += _metric_parts(still_open or lanes)
    new_steps = steps - sum(lane.steps_before for lane in lanes)
    if new_steps > 0 and took_s > 0:
        per_s = new_steps / took_s
        left = sum(max(lane.total_steps - lane.global_step, 0) for lane in still_open)
        parts.append(f"{per_s:,.0f} steps/s")
        parts.append(f"ETA {clock_text(left / per_s)}" if left else f"in {clock_text(took_s)}")
    return "  ".join(parts)


def _metric_parts(lanes: Sequence[LaneProgress]) -> list[str]:
    def values(name: str) -> list[float]:
        return [float(lane.metrics[name]) for lane in lanes if name in lane.metrics]

    parts = []
    # The last 100 episodes' mean is there even when none ended in this iteration.
    returns = values("charts/episodic_return_last100") or values("charts/episodic_return")
    if returns:
        parts.append(f"return {_mean(returns):.1f}")
    if epsilons := values("ppo/epsilon"):
        low, high = min(epsilons), max(epsilons)
        parts.append(f"ε {low:.3g}" if low == high else f"ε {low:.3g} to {high:.3g}")
    if clipped := values("losses/clipfrac"):
        parts.append(f"clipped {_mean(clipped):.1%}")
    if allocated := values("memory/allocated_gib"):
        parts.append(f"VRAM {max(allocated):.2f} GiB")
    return parts


def _mean(values: list[float]) -> float:
    """Return the mean of the finite values, so that one diverged lane does not hide the others."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def clock_text(seconds: float) -> str:
    """Return ``1:02:03`` or ``2:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
