"""All sinks of one run as one sink; an error in one of them never stops the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.local import LocalSink
from ppo_lab.tracking.terminal import Progress, TerminalSink
from ppo_lab.tracking.wandb_sink import WandbSink

__all__ = ["SafeSink", "Tracker"]

_LOG = logging.getLogger(__name__)

# A failing write may also be a slow one, so a sink is disabled soon; a few hiccups are tolerated.
MAX_FAILURES = 3


@dataclass
class SafeSink(Sink):
    """Forwards calls to a sink; counts its exceptions, logs the first, and raises none.

    After ``MAX_FAILURES`` failures, records are dropped; after a failed start, ``finish`` too.
    KeyboardInterrupt and SystemExit propagate.
    """

    sink: Sink
    num_failures: int = 0  # calls that raised
    reason: str | None = None  # the first failure in one line
    _has_started: bool = False

    def start(self, run: RunInfo) -> None:
        """Start the sink."""
        self._has_started = self._attempt("start", self.sink.start, run)

    def record(self, record: Record) -> None:
        """Forward a record unless the sink has failed too often."""
        if self._has_started and self.num_failures < MAX_FAILURES:
            self._attempt("record", self.sink.record, record)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish the sink if it was started."""
        if self._has_started:
            self._attempt("finish", self.sink.finish, summary, exit_code)

    def _attempt(self, verb: str, call: Callable[..., None], *arguments: object) -> bool:
        """Return whether the call succeeded."""
        try:
            call(*arguments)
        except Exception as error:  # whatever a sink raises
            self.num_failures += 1
            if self.reason is None:
                text = " ".join(str(error).split())[:160]
                self.reason = f"{verb}: {type(error).__name__}: {text}".removesuffix(": ")
                name = type(self.sink).__name__
                _LOG.warning("%s failed; the run continues without it (%s)", name, self.reason)
            return False
        return True


class Tracker(Sink):
    """Sends each record to the run's files, to W&B unless disabled, and to the terminal."""

    def __init__(self, config: TrackingConfig, outputs: Path, progress: Progress) -> None:
        """Build the sinks; W&B writes to ``outputs/wandb``, a stack's lanes share ``progress``."""
        self._wandb_sink = WandbSink(config, outputs)
        self._wandb = SafeSink(self._wandb_sink)
        self._files = SafeSink(LocalSink())
        self._terminal = SafeSink(TerminalSink(progress))

    @property
    def _sinks(self) -> tuple[SafeSink, ...]:
        """The sinks; the terminal last, since its live line would hide log lines of the others."""
        return self._files, self._wandb, self._terminal

    @property
    def link(self) -> str | None:
        """The run's W&B page, or the command that uploads it; None without W&B."""
        return self._wandb_sink.link

    @property
    def failures(self) -> dict[str, str]:
        """Number of failures and first reason of each sink that failed, by its class name."""
        return {
            type(safe.sink).__name__: f"{safe.num_failures} failed, first {safe.reason}"
            for safe in self._sinks
            if safe.num_failures
        }

    def start(self, run: RunInfo) -> None:
        """Start every sink."""
        for sink in self._sinks:
            sink.start(run)

    def record(self, record: Record) -> None:
        """Send a record to every sink."""
        for sink in self._sinks:
            sink.record(record)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish every sink; the summary gains ``wandb`` and, if any, ``tracking_failures``."""
        self._terminal.finish(summary, exit_code)
        full = self._completed(summary)
        self._files.finish(full, exit_code)  # first, so that Ctrl-C during W&B's wait loses nothing
        self._wandb.finish(full, exit_code)
        if self._completed(summary) != full:  # the upload failed: link and failures changed
            self._files.finish(self._completed(summary), exit_code)

    def _completed(self, summary: Mapping[str, Any]) -> dict[str, Any]:
        own = {"wandb": self.link, "tracking_failures": self.failures}
        return {**summary, **{key: value for key, value in own.items() if value}}
