"""Retry storage calls with exponential backoff while the storage is unavailable."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

__all__ = ["RetryPolicy", "StorageLostError", "is_outage"]

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_OUTAGES = (
    OperationalError,
    InterfaceError,
    InternalError,  # PostgreSQL closed an idle connection
    PendingRollbackError,
    PoolTimeoutError,
)

P = ParamSpec("P")
T = TypeVar("T")


class StorageLostError(RuntimeError):
    """The storage was unavailable for longer than ``study.storage_timeout_s``."""


def is_outage(error: BaseException | None) -> bool:
    """Return whether ``error`` means that the storage is unreachable or locked, or the disk full.

    Optuna wraps what SQLAlchemy raises on commit; the cause distinguishes an outage from a bug.
    """
    while isinstance(error, StorageInternalError):
        error = error.__cause__
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    is_disconnect = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_disconnect or isinstance(error, _OUTAGES)


@dataclass
class RetryPolicy:
    """Retries calls with exponential backoff and jitter, up to a total time."""

    longest_s: float
    on_wait: Callable[[str, float], None] = lambda *_: None
    """Called before each pause with what is called, and the seconds so far."""
    is_given_up: Callable[[], bool] = lambda: False

    def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` does, which must be safe to call again after it failed.

        Raises:
            StorageLostError: the storage stayed unavailable, or ``is_given_up`` became true.
        """
        failed_s: float | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if not is_outage(error):
                    raise
                failed_s = time.monotonic() if failed_s is None else failed_s
                waited_s = time.monotonic() - failed_s
                if waited_s > self.longest_s or self.is_given_up():
                    raise StorageLostError(f"{what}: no answer for {waited_s:.0f} s") from error
                self.on_wait(what, waited_s)
            time.sleep(delay_s * random.uniform(0.5, 1.0))  # so that machines do not retry in step
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
