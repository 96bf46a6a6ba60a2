"""A group of runs that share a stack's lanes: one run, or the seeds of one trial."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppo_lab.config.lanes import stack_key
from ppo_lab.config.run import Config
from ppo_lab.devices.cuda_memory import is_out_of_memory, release_memory
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.forecast.summary import out_of_memory_line
from ppo_lab.runner.run_record import RunOutput, RunRecorder, Status
from ppo_lab.tracking import Progress
from ppo_lab.training.trainer import Trainer

__all__ = ["RunGroup", "one_line"]

log = logging.getLogger(__name__)


@dataclass(eq=False)
class RunGroup:
    """Runs that take lanes of a stack together and leave them together."""

    configs: Sequence[Config]
    """One per run; they must be able to share a stack."""
    outputs: Sequence[RunOutput]
    should_stop: Callable[[Trainer, Sequence[int]], str | None] = lambda *_: None
    """Called after every iteration with the trainer and the runs' lanes; a reason prunes them."""
    on_finish: Callable[[list[dict[str, Any]]], None] = lambda _: None
    """Called with the summaries when the runs have ended and are on disk."""
    planned_steps: int = 0
    """Environment steps of all groups of the study or grid, which decide whether compiling pays;
    0: those of ``configs``."""
    lanes: list[int] = field(default_factory=list)
    recorders: list[RunRecorder] = field(default_factory=list)
    """Of the current attempt, one per run; there is another attempt if the stack failed."""
    summaries: list[dict[str, Any]] = field(default_factory=list)
    """One per run, once the runs have ended."""
    _num_attempts: int = 0

    def __post_init__(self) -> None:
        """Resolve the memory strategies."""
        self.configs = [_resolved(config) for config in self.configs]
        self.planned_steps = self.planned_steps or sum(c.total_steps for c in self.configs)
        self.key = stack_key(self.configs[0])
        """Equal for groups that can share a stack."""

    def new_attempt(self, lanes: Sequence[int], progress: Progress) -> None:
        """Assign ``lanes`` and build the recorders."""
        self._num_attempts += 1
        self.lanes = list(lanes)
        self.recorders = [
            RunRecorder(config, output, progress, self._num_attempts)
            for config, output in zip(self.configs, self.outputs)
        ]

    def start(self) -> None:
        """Start the trackers."""
        for recorder in self.recorders:
            recorder.start()

    def measure(self, trainer: Trainer, busy_frac: float, *, has_failed: bool = False) -> None:
        """Add measurements to the summaries, and the phase that failed.

        ``busy_frac`` is the share of the stack's lanes that trained.
        """
        for lane, recorder in zip(self.lanes, self.recorders):
            if has_failed:
                recorder.summary["stopped_in"] = trainer.meters.running_phase or "record"
            recorder.measure(trainer, lane, busy_frac)

    def conclude(self, trainer: Trainer, stopped: str | None) -> None:
        """Save every policy and set every status; ``stopped`` is the reason if pruned."""
        for lane, recorder in zip(self.lanes, self.recorders):
            recorder.conclude(trainer, lane, stopped)

    def end(self, status: Status, reason: str) -> None:
        """Set the status of all runs."""
        for recorder in self.recorders:
            recorder.summary.update(status=status.value, reason=reason)

    def finish(self) -> None:
        """Close the trackers and pass the summaries on."""
        for recorder in self.recorders:
            recorder.finish()
        self.summaries = [recorder.summary for recorder in self.recorders]
        self.on_finish(self.summaries)

    def clear(self) -> None:
        """Close the trackers of a failed attempt and remove its records before the next one."""
        for recorder in self.recorders:
            recorder.finish()
            recorder.clear()

    def fail(self, error: Exception) -> None:
        """Log ``error``, free its memory, and finish as ``failed`` or ``out_of_memory``."""
        is_full, reason = is_out_of_memory(error), one_line(error)
        if is_full:
            log.debug("out of memory", exc_info=error)  # the line below says more than the frames
        else:
            log.error("the run failed", exc_info=error)
        config = self.configs[0]
        release_memory(config.torch_device, error)
        if is_full:
            reason = out_of_memory_line(config, error, self.recorders[0].summary)
            log.error(reason)
        self.end(Status.out_of_memory if is_full else Status.failed, reason)
        self.finish()


def one_line(error: Exception) -> str:
    """Return the error's name and the first line of its message."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else '(no message)'}"


def _resolved(config: Config) -> Config:
    resolved = resolve_memory(config)
    if resolved.memory.name != config.memory.name:
        log.info("memory=%s is %s here", config.memory.name, resolved.memory.name)
    return resolved
