"""One run's sinks as one sink: the run's files, W&B and the terminal, none of which can stop it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.guard import GuardedSink
from ppo_lab.tracking.local import LocalSink
from ppo_lab.tracking.terminal import Progress, TerminalSink
from ppo_lab.tracking.wandb import WandbSink

__all__ = ["Tracker"]


class Tracker(Sink):
    """Sends each record to the files, to W&B unless disabled, and to the terminal."""

    def __init__(self, config: TrackingConfig, outputs: Path, progress: Progress) -> None:
        """Build the sinks; ``outputs`` holds ``wandb/``, a stack's lanes share ``progress``."""
        self._wandb_sink = WandbSink(config, outputs)
        self._wandb = GuardedSink(self._wandb_sink)
        self._files = GuardedSink(LocalSink())
        self._terminal = GuardedSink(TerminalSink(progress))

    @property
    def link(self) -> str | None:
        """The run's W&B page, or the command that uploads it; None without W&B."""
        return self._wandb_sink.link

    @property
    def failures(self) -> dict[str, str]:
        """Each sink that failed, with how often and why at first."""
        return {
            type(guard.sink).__name__: f"{guard.num_failures} failed, first {guard.reason}"
            for guard in (self._files, self._wandb, self._terminal)
            if guard.num_failures
        }

    def start(self, run: RunInfo) -> None:
        """Start every sink; the terminal last, since its live line would cover log lines."""
        for sink in (self._files, self._wandb, self._terminal):
            sink.start(run)

    def record(self, record: Record) -> None:
        """Send a record to every sink."""
        for sink in (self._files, self._wandb, self._terminal):
            sink.record(record)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish every sink; the summary gains ``wandb`` and, if any, ``tracking_failures``."""
        self._terminal.finish(summary, exit_code)
        told = self._with_own(summary)
        self._files.finish(told, exit_code)  # before W&B may wait: a Ctrl-C there costs nothing
        self._wandb.finish(told, exit_code)
        if self._with_own(summary) != told:  # the upload did not end: link and failures changed
            self._files.finish(self._with_own(summary), exit_code)

    def _with_own(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        own: dict[str, Any] = {"wandb": self.link} if self.link else {}
        if self.failures:
            own["tracking_failures"] = self.failures
        return {**summary, **own}
