"""A time limit on calls into environments, kept by a thread that watches the main thread.

A call that is overdue is interrupted by a signal, which ends Python code, sleeps and reads from
sockets. Compiled code that does not react ends the process: no thread can be stopped otherwise. If
it lets no thread run either, ``monitor`` does the same from outside.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType

from ppo_lab.envs.monitor import beat
from ppo_lab.utils.errors import EnvironmentFault

__all__ = ["EXIT_STATUS", "EnvCall", "OverdueCall", "TimeLimit", "on_timeout"]

EXIT_STATUS = 5
"""Of a process that is ended because a call cannot be interrupted."""
_SIGNAL = getattr(signal, "SIGRTMAX", signal.SIGALRM)  # macOS has no real-time signals
_POLL_S = 1.0  # polls are counted, not seconds: a process that was suspended is not overdue
_GRACE_S = 5.0  # between the signal and the end of the process

_lock = threading.Lock()
_calls: list[EnvCall] = []  # that are watched
_overdue: tuple[str, int, int] | None = None  # what the signal is sent for; None by the monitor
_last_words: Callable[[EnvironmentFault], None] | None = None


@dataclass(slots=True)
class EnvCall:
    """The call that is running, if any."""

    row: int = 0
    """The environment, lane-major."""
    step: int = 0
    """Steps of all environments so far, including a running one."""
    method: str = ""
    """Empty outside of calls."""

    @property
    def place(self) -> tuple[str, int, int]:
        """What tells this call from the next one."""
        return self.method, self.row, self.step


class OverdueCall(BaseException):
    """Raised in the main thread where a call has taken too long."""


def on_timeout(callback: Callable[[EnvironmentFault], None] | None) -> None:
    """Set what is called before a call that cannot be interrupted ends the process.

    It runs in another thread while the main thread hangs: it may write files, and must not wait
    for anything that the main thread holds.
    """
    global _last_words
    _last_words = callback


class TimeLimit:
    """Watches ``call`` until it is closed; to be created in the main thread."""

    def __init__(
        self,
        call: EnvCall,
        timeout_s: float,
        fault: Callable[[Iterable[traceback.FrameSummary]], EnvironmentFault],
    ) -> None:
        """Start the thread; ``fault`` describes an overdue call from the main thread's stack."""
        self._call, self._timeout_s, self._fault = call, timeout_s, fault
        self._closed = threading.Event()
        signal.signal(_SIGNAL, _interrupt)
        with _lock:
            _calls.append(call)
            beat(timeout_s, _SIGNAL)
        threading.Thread(target=self._watch, name="env.timeout_s", daemon=True).start()

    def close(self) -> None:
        """End the thread."""
        with _lock:
            if not self._closed.is_set():
                self._closed.set()
                _calls.remove(self._call)
                if not _calls:
                    beat(0.0, _SIGNAL)

    def _watch(self) -> None:
        global _overdue
        poll_s = min(_POLL_S, self._timeout_s / 4)
        num_polls = math.ceil(self._timeout_s / poll_s)
        num_grace = math.ceil(min(_GRACE_S, self._timeout_s) / poll_s)
        call, seen, count = self._call, ("", 0, 0), 0
        while not self._closed.wait(poll_s):
            with _lock:
                if not self._closed.is_set():  # else the monitor would count for ever
                    beat(self._timeout_s, _SIGNAL)
            now = call.place
            count = count + 1 if now == seen and call.method else 0
            seen = now
            if count == num_polls:
                _overdue = now
                signal.pthread_kill(threading.main_thread().ident or 0, _SIGNAL)
            elif count == num_polls + num_grace:
                self._end_process()

    def _end_process(self) -> None:
        frame = sys._current_frames()[threading.main_thread().ident or 0]
        fault = self._fault(traceback.extract_stack(frame))
        try:
            if _last_words is not None:
                _last_words(fault)
        finally:
            sys.stderr.write(f"ppo_lab: {fault}; it cannot be interrupted, the process ends\n")
            sys.stderr.flush()
            os._exit(EXIT_STATUS)


def _interrupt(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    """Handle the signal of ``TimeLimit``, unless the call has returned meanwhile."""
    global _overdue
    due, _overdue = _overdue, None
    running = [call.place for call in _calls if call.method]
    if running and due in (None, *running):
        raise OverdueCall
