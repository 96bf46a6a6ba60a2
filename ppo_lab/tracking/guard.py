"""A sink that cannot stop a run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from ppo_lab.tracking.base import Record, RunInfo, Sink

__all__ = ["GuardedSink"]

_LOG = logging.getLogger(__name__)

# A failing write may also be a slow one, so a sink is given up soon; one hiccup is forgiven.
MAX_FAILURES = 3


class GuardedSink(Sink):
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
