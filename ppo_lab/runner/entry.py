"""What takes lanes of a stack together: one run, or the seeds of one trial."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppo_lab.config.lanes import stack_key
from ppo_lab.config.run import Config
from ppo_lab.devices.cuda_memory import is_out_of_memory, release_memory
from ppo_lab.forecast.budget import resolve_memory
from ppo_lab.forecast.summary import out_of_memory_line
from ppo_lab.runner.run_record import RunOutput, RunRecorder, Status
from ppo_lab.training.scores import History
from ppo_lab.training.trainer import Trainer

__all__ = ["GroupView", "RunGroup", "Running", "one_line"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GroupView:
    """How an entry stands after an iteration; its runs are counted from 0."""

    trainer: Trainer
    lanes: Sequence[int]
    """Of its runs."""

    @property
    def iteration(self) -> int:
        """Iterations that its runs have gone through."""
        return self.trainer.lane_iteration(self.lanes[0])

    def config(self, run: int) -> Config:
        """Return a run's config."""
        return self.trainer.configs[self.lanes[run]]

    def history(self, run: int) -> History:
        """Return a run's curve so far."""
        return self.trainer.history(self.lanes[run])

    def diverged(self, run: int) -> str | None:
        """Return the first number of a run that was not finite; None while all is well."""
        return self.trainer.diverged(self.lanes[run])


class RunGroup:
    """Runs that take lanes of a stack together, and leave them together."""

    def __init__(
        self,
        configs: Sequence[Config],
        destinations: Sequence[RunOutput],
        *,
        is_forecast: bool = False,
        planned_steps: int | None = None,
    ) -> None:
        """Take a destination for each config; with ``is_forecast`` summaries hold the forecast.

        ``planned_steps`` are the environment steps of all entries of the study or grid, by default
        of this one: they decide whether it repays to compile.
        """
        self.configs = [_resolved(config) for config in configs]
        self.destinations, self.is_forecast = destinations, is_forecast
        if planned_steps is None:
            planned_steps = sum(config.total_steps for config in configs)
        self.planned_steps = planned_steps
        self.key = stack_key(self.configs[0])
        """Equal for entries that can share a stack."""
        self.num_attempts = 0
        """Times that the runs began; again, where the stack they were in failed."""
        self.summaries: list[dict[str, Any]] = []
        """One per run, once it has ended."""

    def should_stop(self, standing: GroupView) -> str | None:  # noqa: ARG002 - here never
        """Return the reason to end now, if there is one; asked after every iteration."""
        return None

    def finish(self, summaries: list[dict[str, Any]]) -> None:
        """Take the runs' summaries: they have ended and left their folders complete."""
        self.summaries = summaries


def _resolved(config: Config) -> Config:
    resolved = resolve_memory(config)
    if resolved.memory.name != config.memory.name:
        log.info("memory=%s is %s here", config.memory.name, resolved.memory.name)
    return resolved


@dataclass
class Running:
    """An entry in its lanes."""

    entry: RunGroup
    lanes: list[int]
    runs: list[RunRecorder]

    def start(self) -> None:
        """Start the trackers of every run."""
        for run in self.runs:
            run.start(is_forecast=self.entry.is_forecast)

    def measure(self, trainer: Trainer | None, busy_frac: float) -> None:
        """Note what was measured, and where ``trainer`` stands, if it was ever built.

        ``busy_frac`` is the share of its lanes that trained.
        """
        if trainer is None:
            return
        for lane, run in zip(self.lanes, self.runs):
            run.measure(trainer, lane)
            if "stack" in run.summary:
                run.summary["stack"]["busy_frac"] = busy_frac

    def note_phase(self, trainer: Trainer | None) -> None:
        """Note the phase that ``trainer`` failed in, if it was ever built."""
        if trainer is not None:
            for run in self.runs:
                run.summary["stopped_in"] = trainer.meters.running_phase or "record"

    def conclude(self, trainer: Trainer, stopped: str | None) -> None:
        """Save every policy and note how its run ended; ``stopped`` is why it was told to."""
        for lane, run in zip(self.lanes, self.runs):
            run.save(trainer, lane)
            run.conclude(trainer.result(lane), stopped)

    def end(self, status: Status, reason: str) -> None:
        """Note how every run ended."""
        for run in self.runs:
            run.end(status, reason)

    def finish(self) -> None:
        """Close the trackers and hand the summaries over."""
        for run in self.runs:
            run.finish()
        self.entry.finish([run.summary for run in self.runs])

    def clear(self) -> None:
        """Close the trackers of an attempt that another follows, and remove its records."""
        for run in self.runs:
            run.finish()
            run.clear()

    def fail(self, error: Exception) -> None:
        """Log what ended the entry, free its memory, say so in its summaries, and finish."""
        is_full, reason = is_out_of_memory(error), one_line(error)
        if is_full:
            log.debug("out of memory", exc_info=error)  # where says little; the line says more
        else:
            log.error("the run failed", exc_info=error)
        config = self.entry.configs[0]
        release_memory(config.torch_device, error)
        if is_full:
            reason = out_of_memory_line(config, error, self.runs[0].summary)
            log.error(reason)
        self.end(Status.out_of_memory if is_full else Status.failed, reason)
        self.finish()


def one_line(error: Exception) -> str:
    """Return the error's name and the first line of what it says."""
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0] if first else '(no message)'}"
