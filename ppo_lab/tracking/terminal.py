"""Progress of training on stderr: a live line on a terminal, occasional lines in a log.

The lanes of a stack share one ``Progress`` and one line.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import Terminal

__all__ = ["Progress", "TerminalSink", "format_duration", "progress_line"]

# A plain line is printed after 10 % of the steps, but at most every 10 s, so that short runs print
# few; and at least every 5 minutes, so that long runs are seen to be alive. The first record and
# the end are always printed.
_PLAIN_SHARE = 0.1
_PLAIN_MIN_S = 10.0
_PLAIN_MAX_S = 300.0
_REFRESH_PER_S = 4.0
_BAR_CELLS = 20
_DROPPED_FIRST = ("epsilon", "lanes", "vram", "clipped", "speed", "kl")
"""Parts of the line in the order in which a narrow terminal loses them."""


class Progress:
    """Progress display of the runs that train at the same time in this process."""

    _lanes: dict[str, TerminalSink]  # by run id; replaced when it changes: a thread reads it

    def __init__(
        self,
        style: Terminal = Terminal.auto,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Choose the style; ``auto`` depends on ``console``, by default stderr."""
        self._console, self._clock = console or Console(stderr=True), clock
        if style is Terminal.auto:
            style = Terminal.live if self._console.is_terminal else Terminal.plain
        self._style = style
        self._live: Live | None = None
        self._reset()

    @property
    def is_shown(self) -> bool:
        """Whether anything is printed."""
        return self._style is not Terminal.none

    def open(self, run_id: str, lane: TerminalSink) -> None:
        """Add a run; the first one starts the clock."""
        if not self._lanes:
            self._started_s = self._clock()
        self._lanes = {**self._lanes, run_id: lane}
        if self._style is Terminal.live and self._live is None:
            # Live redraws in its own thread, so that a record costs the trainer nothing.
            self._live = Live(
                console=self._console,
                get_renderable=self._draw,
                refresh_per_second=_REFRESH_PER_S,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()

    def update(self) -> None:
        """Print a plain line when one is due."""
        since_s = self._clock() - self._printed_s
        share = self._share(self._count_steps() - self._printed_steps)
        is_due = since_s >= _PLAIN_MIN_S and share >= _PLAIN_SHARE
        if self._style is Terminal.plain and (is_due or since_s >= _PLAIN_MAX_S):
            self._print_line()

    def close(self) -> None:
        """After the last run, print a final plain line."""
        if any(lane.is_open for lane in self._lanes.values()):
            return
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._style is not Terminal.none and self._count_steps() != self._printed_steps:
            self._print_line()
        self._reset()

    def _reset(self) -> None:
        self._lanes = {}
        self._started_s, self._printed_s, self._printed_steps = 0.0, -math.inf, 0

    def _count_steps(self) -> int:
        return sum(lane.global_step for lane in self._lanes.values())

    def _share(self, steps: int) -> float:
        return steps / max(sum(lane.total_steps for lane in self._lanes.values()), 1)

    def _line(self, width: int | None = None) -> Text:
        elapsed_s = self._clock() - self._started_s
        line = Text(progress_line([*self._lanes.values()], elapsed_s, width))
        line.highlight_words(("dead", "collapsed"), "red")
        return line

    def _print_line(self) -> None:
        self._console.print(self._line(), soft_wrap=True)
        self._printed_s, self._printed_steps = self._clock(), self._count_steps()

    def _draw(self) -> Text:
        """Return the live line: a bar in the space that the numbers leave, then the numbers."""
        line = self._line(self._console.width)
        cells = max(min(self._console.width - line.cell_len - 1, _BAR_CELLS), 0)
        done = round(cells * min(self._share(self._count_steps()), 1.0))
        bar = Text.assemble(("━" * done, "cyan"), ("━" * (cells - done), "dim"), " ")
        drawn = bar + line
        drawn.no_wrap, drawn.overflow = True, "ellipsis"
        return drawn


@dataclass(eq=False)
class TerminalSink(Sink):
    """One run on a ``Progress``, which several runs may share."""

    progress: Progress
    total_steps: int = 0
    global_step: int = 0
    steps_before: int = 0
    """Steps taken before this process resumed the run; excluded from its speed."""
    resumed_at: int = 0  # iteration
    metrics: Mapping[str, float] = field(default_factory=dict)
    state: str = ""
    is_open: bool = True

    def start(self, run: RunInfo) -> None:
        """Add the run to the display."""
        self.total_steps, self.resumed_at = run.total_steps, run.resumed_at
        self.progress.open(run.id, self)

    def record(self, record: Record) -> None:
        """Show the record's numbers."""
        if not self.global_step:
            self.steps_before = round(record.global_step * self.resumed_at / record.iteration)
        self.global_step, self.metrics = record.global_step, record.metrics
        self.state = record.state
        self.progress.update()

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Remove the run from the display."""
        self.is_open = False
        self.progress.close()


def progress_line(lanes: Sequence[TerminalSink], elapsed_s: float, width: int | None = None) -> str:
    """Return steps, return, state, epsilon, clip fraction, KL, VRAM and speed in one line.

    Steps are summed over all lanes, metrics averaged over the open ones; epsilon is a range and
    VRAM the maximum, which is the process's. Metrics that no lane has are omitted, and in a line of
    at most ``width`` characters those that matter least.

    Example:
        >>> lane = TerminalSink(Progress(), 1000, 100, metrics={"ppo/epsilon": 0.2})
        >>> progress_line([lane], elapsed_s=0.5)
        '100/1,000  ε 0.2  200 steps/s  ETA 0:04'
        >>> progress_line([lane], elapsed_s=0.5, width=35)
        '100/1,000  200 steps/s  ETA 0:04'
    """
    open_lanes = [lane for lane in lanes if lane.is_open]
    steps = sum(lane.global_step for lane in lanes)
    total = sum(lane.total_steps for lane in lanes)
    parts = {"lanes": f"{len(open_lanes or lanes)} lanes"} if len(lanes) > 1 else {}
    parts["steps"] = f"{steps:,}/{total:,}"
    parts |= _metric_parts(open_lanes or lanes)
    new_steps = steps - sum(lane.steps_before for lane in lanes)
    if new_steps > 0 and elapsed_s > 0:
        per_s = new_steps / elapsed_s
        left = sum(max(lane.total_steps - lane.global_step, 0) for lane in open_lanes)
        parts["speed"] = f"{per_s:,.0f} steps/s"
        eta = f"ETA {format_duration(left / per_s)}"
        parts["time"] = eta if left else f"in {format_duration(elapsed_s)}"
    for name in _DROPPED_FIRST:
        if width is None or len("  ".join(parts.values())) < width:
            break
        parts.pop(name, None)
    return "  ".join(parts.values())


def _metric_parts(lanes: Sequence[TerminalSink]) -> dict[str, str]:
    def values(name: str) -> list[float]:
        return [float(lane.metrics[name]) for lane in lanes if name in lane.metrics]

    parts = {}
    # The mean of the last 100 episodes exists even if no episode ended in this iteration.
    returns = values("charts/episodic_return_last100") or values("charts/episodic_return")
    if returns:
        parts["return"] = f"return {_finite_mean(returns):,.1f}"
    if states := Counter(lane.state for lane in lanes if lane.state):
        several = len(lanes) > 1
        parts["state"] = ", ".join(f"{n} {name}" if several else name for name, n in states.items())
    if epsilons := values("ppo/epsilon"):
        low, high = min(epsilons), max(epsilons)
        parts["epsilon"] = f"ε {low:.3g}" if low == high else f"ε {low:.3g} to {high:.3g}"
    if clipped := values("losses/clipfrac"):
        parts["clipped"] = f"clipped {_finite_mean(clipped):.1%}"
    if kls := values("ppo/kl_k3"):
        parts["kl"] = f"KL {_finite_mean(kls):.2g}"
    if allocated := values("memory/allocated_gib"):
        parts["vram"] = f"VRAM {max(allocated):.2f} GiB"
    return parts


def _finite_mean(values: list[float]) -> float:
    """Return the mean without diverged lanes."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds.

    Example:
        >>> format_duration(123), format_duration(3723)
        ('2:03', '1:02:03')
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"
