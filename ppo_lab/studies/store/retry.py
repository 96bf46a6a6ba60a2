"""Calls of the storage outlive its outages: they are made again until it answers."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

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

T = TypeVar("T")


class StorageLostError(RuntimeError):
    """The storage did not answer for as long as the study was willing to wait."""


def is_outage(error: BaseException | None) -> bool:
    """Return whether ``error`` says that storage or disk is away, full or locked, and no more.

    Optuna wraps what SQLAlchemy raises on commit; the cause tells an outage from a mistake.
    """
    while isinstance(error, StorageInternalError):
        error = error.__cause__
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # InternalError is PostgreSQL's word for a connection that it closed for its silence.
    kinds = (
        OperationalError, InterfaceError, InternalError, PendingRollbackError, PoolTimeoutError,
    )  # fmt: skip
    return isinstance(error, kinds)


class RetryPolicy:
    """Makes a call again, ever more slowly, while the storage is away."""

    def __init__(
        self,
        longest_s: float,
        on_wait: Callable[[str, float], None] | None = None,
        is_given_up: Callable[[], bool] | None = None,
    ) -> None:
        """Try for ``longest_s``; tell ``on_wait`` (what, seconds so far) before each pause."""
        self.longest_s, self.on_wait, self.is_given_up = longest_s, on_wait, is_given_up

    def call(self, what: str, function: Callable[[], T]) -> T:
        """Return what ``function`` returns; it must bear being called again after it failed.

        Raises:
            StorageLostError: the storage stayed away, or waiting was given up.
        """
        failed_s: float | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return function()
            except Exception as error:
                if not is_outage(error):
                    raise
                failed_s = time.monotonic() if failed_s is None else failed_s
                waited_s = time.monotonic() - failed_s
                if waited_s > self.longest_s or (self.is_given_up and self.is_given_up()):
                    raise StorageLostError(f"{what}: no answer for {waited_s:.0f} s") from error
                if self.on_wait is not None:
                    self.on_wait(what, waited_s)
            time.sleep(delay_s * random.uniform(0.5, 1.0))  # machines should not come back in step
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
