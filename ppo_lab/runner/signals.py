"""Ctrl-C and SIGTERM: the first is granted between two iterations, the second at once."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from ppo_lab.runner.exit_status import EXIT_RESUMABLE

__all__ = ["Interrupted", "StopSignals", "handling"]

log = logging.getLogger(__name__)

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_ECHO_S = 1.0
"""timeout(1) and others send a signal to a process and then to its group: that is one, not two."""


class Interrupted(KeyboardInterrupt):
    """A signal has stopped a run; ``exit_status`` is the command's."""

    def __init__(self, number: int, *, is_resumable: bool = False) -> None:
        """Describe the end by signal ``number``, after which the run can go on if resumable."""
        super().__init__(signal.Signals(number).name)
        self.exit_status = EXIT_RESUMABLE if is_resumable else 128 + number


@contextmanager
def handling(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], object]
) -> Iterator[None]:
    """Let ``handler`` handle signals inside."""
    before = [(number, signal.signal(number, handler)) for number in numbers]
    try:
        yield
    finally:
        for number, earlier in before:
            signal.signal(number, earlier)


class StopSignals:
    """Notes the first signal and raises ``Interrupted`` at the second; a third kills."""

    def __init__(self) -> None:
        """Note nothing so far."""
        self.number: int | None = None
        """The signal that has asked for the end."""
        self._noted_s = 0.0

    @contextmanager
    def noted(self, *, is_worthwhile: bool) -> Iterator[None]:
        """Note signals inside, unless there is nothing to save yet (not ``is_worthwhile``).

        Without effect outside the main thread, which receives none.
        """
        if not is_worthwhile or threading.current_thread() is not threading.main_thread():
            yield
            return
        # A worker ignores Ctrl-C: its scheduler decides what that means.
        handled = [number for number in _NUMBERS if signal.getsignal(number) != signal.SIG_IGN]
        with handling(handled, self._note):
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        name = signal.Signals(number).name
        if number == self.number and time.monotonic() - self._noted_s < _ECHO_S:
            return
        if self.number is not None:
            for each in _NUMBERS:
                signal.signal(each, signal.SIG_DFL)
            raise Interrupted(number)
        self.number, self._noted_s = number, time.monotonic()
        log.warning("%s: stopping after this iteration; once more stops at once", name)
