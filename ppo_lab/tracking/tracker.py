"""One run's sinks as one sink: the run's files, W&B and the terminal, none of which can stop it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.local import LocalSink
from ppo_lab.tracking.terminal import Progress, TerminalSink
from ppo_lab.tracking.wandb_sink import WandbSink

__all__ = ["SafeSink", "Tracker"]


class Tracker(Sink):
    """Sends each record to the files, to W&B unless disabled, and to the terminal."""

    def __init__(self, config: TrackingConfig, outputs: Path, progress: Progress) -> None:
        """Build the sinks; ``outputs`` holds ``wandb/``, a stack's lanes share ``progress``."""
        self._wandb_sink = WandbSink(config, outputs)
        self._wandb = SafeSink(self._wandb_sink)
        self._files = SafeSink(LocalSink())
        self._terminal = SafeSink(TerminalSink(progress))

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


_LOG = logging.getLogger(__name__)

# A failing write may also be a slow one, so a sink is given up soon; one hiccup is forgiven.
MAX_FAILURES = 3


class SafeSink(Sink):
    """Passes calls on to ``sink``; counts what it raises, logs the first, raises nothing.

    After a failed start, or ``MAX_FAILURES`` failed records, records are skipped. ``finish`` is
    still tried unless the start failed. KeyboardInterrupt and SystemExit pass.
    """

    def __init__(self, sink: Sink) -> None:
        """Guard ``sink``."""
        self.sink = sink
        self._num_failures = 0
        self._reason: str | None = None
        self._has_started = False

    @property
    def num_failures(self) -> int:
        """Calls that raised."""
        return self._num_failures

    @property
    def reason(self) -> str | None:
        """The first failure in one line, None if there was none."""
        return self._reason

    def start(self, run: RunInfo) -> None:
        """Start the sink; on failure it takes no further part in the run."""
        self._has_started = self._attempt("start", lambda: self.sink.start(run))

    def record(self, record: Record) -> None:
        """Pass a record on unless the sink has been given up."""
        if self._has_started and self._num_failures < MAX_FAILURES:
            self._attempt("record", lambda: self.sink.record(record))

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish the sink if it ever started."""
        if self._has_started:
            self._attempt("finish", lambda: self.sink.finish(summary, exit_code))

    def _attempt(self, verb: str, call: Callable[[], None]) -> bool:
        """Return whether ``call`` succeeded."""
        try:
            call()
        except Exception as error:  # the one place where everything a sink raises ends
            self._num_failures += 1
            if self._reason is None:
                text = " ".join(str(error).split())[:160]
                self._reason = f"{verb}: {type(error).__name__}: {text}".removesuffix(": ")
                name = type(self.sink).__name__
                _LOG.warning("%s failed, the run goes on without it (%s)", name, self._reason)
            return False
        return True
