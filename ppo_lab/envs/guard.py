"""Turns what goes wrong in an environment's code into an ``EnvironmentFault``, in one line.

The line names the environment, the step, and the place in the environment's code.
"""

from __future__ import annotations

import logging
import os
import sysconfig
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ppo_lab.devices.cuda_memory import is_out_of_memory
from ppo_lab.envs.returned import STEP_FORM, WrongReturn
from ppo_lab.envs.time_limit import EnvCall, OverdueCall, TimeLimit
from ppo_lab.utils.errors import EnvironmentFault

if TYPE_CHECKING:
    import gymnasium

__all__ = ["EnvGuard", "describe_error"]

log = logging.getLogger(__name__)

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))


class EnvGuard:
    """Context of calls into environments: ``with guard("reset()", row): env.reset()``.

    Rows are lane-major. Calls have no time limit in other threads than the main one, which alone
    can be interrupted.
    """

    def __init__(self, num_lanes: int, num_envs: int, timeout_s: float | None) -> None:
        """Guard ``num_envs`` environments a lane; None: calls may take any time."""
        self.call = EnvCall()
        """Whoever calls several environments in one context keeps its row up to date."""
        self.births = [0] * num_lanes
        """The step of ``call`` at which each lane began."""
        self._num_envs, self._timeout_s = num_envs, timeout_s
        self._limit: TimeLimit | None = None
        if timeout_s is not None and threading.current_thread() is threading.main_thread():
            self._limit = TimeLimit(self.call, timeout_s, self._overdue)

    def __call__(self, method: str, row: int = 0) -> Self:
        """Name the call that follows."""
        self.call.method, self.call.row = method, row
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: object, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None and (fault := self._fault_of(error)) is not None:
                raise fault from error
        finally:
            self.call.method = ""

    def fault(self, text: str, row: int | None = None) -> EnvironmentFault:
        """Return the fault ``text`` of an environment, by default of the one called last."""
        call = self.call
        lane, number = divmod(call.row if row is None else row, self._num_envs)
        step = call.step - self.births[lane]
        when = "" if call.method in ("step()", "") else call.method
        when += (" after step " if when else "step ") + str(step) if step else ""
        return EnvironmentFault(f"environment {number}, {when}: {text}", lane)

    def close_env(self, env: gymnasium.Env[Any, Any], row: int = 0) -> None:
        """Close ``env``; what goes wrong is logged, as no result is lost by it."""
        try:
            with self("close()", row):
                env.close()
        except EnvironmentFault as fault:
            log.warning("%s; results are not affected", fault)

    def close(self) -> None:
        """Stop watching."""
        if self._limit is not None:
            self._limit.close()

    def _fault_of(self, error: BaseException) -> EnvironmentFault | None:
        """Return the fault that ``error`` is; None if it is none of the environment's doing."""
        trace = traceback.extract_tb(error.__traceback__)
        if isinstance(error, OverdueCall):
            return self._overdue(trace)
        if isinstance(error, EnvironmentFault | KeyboardInterrupt) or is_out_of_memory(error):
            return None
        if isinstance(error, SystemExit) and trace[-1].filename.startswith(_PACKAGE):
            return None  # raised by a signal handler
        if isinstance(error, WrongReturn):
            return self.fault(str(error))
        is_wrapper = "gymnasium" in Path(trace[-1].filename).parts
        if is_wrapper and self.call.method == "step()" and "unpack" in str(error):
            return self.fault(f"{STEP_FORM}: {error}")
        return self.fault(describe_error(error))

    def _overdue(self, trace: Iterable[traceback.FrameSummary]) -> EnvironmentFault:
        limit = f"env.timeout_s={self._timeout_s:g}"
        return self.fault(f"did not return within {limit}{_place(trace)}")


def describe_error(error: BaseException) -> str:
    """Return ``error`` in one line, with the line of the user's code that it came from.

    Example:
        >>> describe_error(ConnectionResetError("simulator hung up"))
        'ConnectionResetError: simulator hung up'
    """
    words = " ".join(str(error).split()) or "(no message)"
    place = _place(traceback.extract_tb(error.__traceback__))
    return f"{type(error).__name__}: {words}{place}"


def _place(trace: Iterable[traceback.FrameSummary]) -> str:
    """Return " (file:line)" of the innermost frame outside of libraries; empty without one."""
    theirs = [f for f in trace if not f.filename.startswith((_PACKAGE, "<"))]
    outside = [f for f in theirs if not f.filename.startswith(_LIBRARIES)]
    if not (frames := outside or theirs):
        return ""
    path = os.path.relpath(frames[-1].filename)
    return f" ({frames[-1].filename if path.startswith('..') else path}:{frames[-1].lineno})"
