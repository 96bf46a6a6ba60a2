"""All sinks of one run as one sink; an error in one of them never stops the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink
from ppo_lab.tracking.config import TrackingConfig
from ppo_lab.tracking.csv_sink import CsvSink
from ppo_lab.tracking.local import LocalSink
from ppo_lab.tracking.tensorboard_sink import TensorBoardSink
from ppo_lab.tracking.terminal import Progress, TerminalSink
from ppo_lab.tracking.wandb_sink import WandbSink
from ppo_lab.utils.redaction import mask

__all__ = ["SafeSink", "Tracker"]

_LOG = logging.getLogger(__name__)

# A failing write may also be a slow one, so a sink is disabled soon; a few hiccups are tolerated.
MAX_FAILURES = 3


@dataclass
class SafeSink(Sink):
    """Forwards calls to a sink; counts its exceptions, logs the first, and raises none.

    After ``MAX_FAILURES`` failures, records are dropped; after a failed start, ``finish`` too. A
    sink that ``keeps`` what it could not write is always called, and after a success it has not
    failed. KeyboardInterrupt and SystemExit propagate.
    """

    sink: Sink
    keeps: bool = False
    num_failures: int = 0  # calls that raised
    reason: str | None = None  # the first failure in one line
    _has_started: bool = False

    def start(self, run: RunInfo) -> None:
        """Start the sink."""
        self._has_started = self._attempt("start", self.sink.start, run)

    def describe(self, values: Mapping[str, Any]) -> None:
        """Forward additions to the config."""
        if self._has_started and self.num_failures < MAX_FAILURES:
            self._attempt("describe", self.sink.describe, values)

    def record(self, record: Record) -> None:
        """Forward a record unless the sink has failed too often."""
        if self.keeps or (self._has_started and self.num_failures < MAX_FAILURES):
            self._attempt("record", self.sink.record, record)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish the sink if it was started."""
        if self.keeps or self._has_started:
            self._attempt("finish", self.sink.finish, summary, exit_code)

    def _attempt(self, verb: str, call: Callable[..., None], *arguments: object) -> bool:
        """Return whether the call succeeded."""
        try:
            call(*arguments)
        except Exception as error:  # whatever a sink raises
            self.num_failures += 1
            if self.reason is None:
                text = mask(" ".join(str(error).split()))[:160]
                self.reason = f"{verb}: {type(error).__name__}: {text}".removesuffix(": ")
                name = type(self.sink).__name__
                goes_on = "tries again" if self.keeps else "continues without it"
                _LOG.warning("%s failed; the run %s (%s)", name, goes_on, self.reason)
            return False
        if self.keeps and self.num_failures:
            _LOG.warning("%s works again; nothing is lost", type(self.sink).__name__)
            self.num_failures, self.reason = 0, None
        return True


class Tracker(Sink):
    """Sends each record to the run's files, to the trackers chosen, and to the terminal.

    The files get every record, the others one in ``log_every``, each evaluation, and the last.
    """

    def __init__(self, config: TrackingConfig, outputs: Path, progress: Progress) -> None:
        """Build the sinks; W&B writes to ``outputs/wandb``, a stack's lanes share ``progress``."""
        self._log_every = config.log_every
        self._unsent: Record | None = None
        self._first = 1
        self._wandb_sink, self._local_sink = WandbSink(config, outputs), LocalSink()
        self._wandb = SafeSink(self._wandb_sink)
        more: list[Sink] = [CsvSink()] if config.csv else []
        more += [TensorBoardSink()] if config.tensorboard else []
        self._more = [SafeSink(sink) for sink in more]
        self._files = SafeSink(self._local_sink, keeps=True)
        self._terminal = SafeSink(TerminalSink(progress))

    @property
    def _sinks(self) -> tuple[SafeSink, ...]:
        """The sinks; the terminal last, since its live line would hide log lines of the others."""
        return self._files, *self._more, self._wandb, self._terminal

    @property
    def link(self) -> str | None:
        """The run's W&B page, or the command that uploads it; None without W&B."""
        return self._wandb_sink.link

    @property
    def run_id(self) -> str | None:
        """The run's id in W&B, which may be that of WANDB_RUN_ID; None without W&B."""
        return self._wandb_sink.run_id

    @property
    def lost(self) -> str | None:
        """Why rows or the summary could not be written to the run's folder; None: they are there.

        Final after ``finish``; before that, rows wait and may still be written.
        """
        return self._files.reason

    @property
    def notes(self) -> dict[str, Any]:
        """What the summary gains: ``wandb`` (the link) and ``tracking_failures``, if any.

        These are the number of failures and the first reason of each sink that failed.
        """
        failures = {
            type(safe.sink).__name__: f"{safe.num_failures} failed, first {safe.reason}"
            for safe in self._sinks
            if safe.num_failures
        }
        own = {"wandb": self.link, "tracking_failures": failures}
        return {key: value for key, value in own.items() if value}

    def start(self, run: RunInfo) -> None:
        """Start every sink."""
        self._first = run.resumed_at + 1
        for sink in self._sinks:
            sink.start(run)

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add to the run's config in every sink that shows one."""
        for sink in self._sinks:
            sink.describe(values)

    def sync(self) -> int:
        """Write all rows to disk; return the position for ``cut_metrics``.

        Raises:
            OSError: They cannot be written now; they wait in memory.
        """
        return self._local_sink.sync()

    def record(self, record: Record) -> None:
        """Send a record to the files, and to the others if it is their turn."""
        self._files.record(record)
        self._unsent = record
        is_due = record.iteration == self._first or record.iteration % self._log_every == 0
        if is_due or record.samples or "eval/return" in record.metrics:
            self._send()

    def _send(self) -> None:
        if self._unsent is not None:
            for sink in self._sinks[1:]:
                sink.record(self._unsent)
        self._unsent = None

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Finish every sink; the summary gains ``notes``."""
        self._send()
        self._terminal.finish(summary, exit_code)
        full = {**summary, **self.notes}
        self._files.finish(full, exit_code)  # first, so that Ctrl-C during W&B's wait loses nothing
        for sink in (*self._more, self._wandb):
            sink.finish(full, exit_code)
        if (corrected := {**summary, **self.notes}) != full:  # the upload or a file failed
            self._files.finish(corrected, exit_code)
