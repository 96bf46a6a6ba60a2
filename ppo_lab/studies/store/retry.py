"""Retry storage calls with exponential backoff while the storage is unavailable."""

from __future__ import annotations

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

from ppo_lab.utils.json_files import is_disk_full

__all__ = ["RetryPolicy", "StorageLostError", "StorageRefusedError", "is_outage", "words_of"]

_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.1, 5.0
_OUTAGES = (
    OperationalError,
    InterfaceError,
    InternalError,  # PostgreSQL closed an idle connection
    PendingRollbackError,
    PoolTimeoutError,
)
_NO_OUTAGE = (
    "authentication failed", "no password supplied", "does not exist", "no pg_hba.conf entry",
    "permission denied", "resolve host", "name or service not known",  # PostgreSQL's and libpq's
    "unable to open database file", "readonly database",  # SQLite's
)  # fmt: skip
"""Words of outages while the storage is opened that no waiting would end."""
_MOST_WORDS = 200

P = ParamSpec("P")
T = TypeVar("T")


class StorageLostError(RuntimeError):
    """The storage was unavailable for longer than ``study.storage_timeout_s``, or is damaged."""


class StorageRefusedError(RuntimeError):
    """The storage cannot be opened, however long one waits."""


def is_outage(error: BaseException) -> bool:
    """Return whether ``error`` means that the storage is unreachable or locked, or the disk full.

    Optuna wraps what SQLAlchemy raises on commit; the cause distinguishes an outage from a bug.
    """
    error = _cause(error)
    is_disconnect = isinstance(error, DBAPIError) and error.connection_invalidated
    return is_disconnect or isinstance(error, _OUTAGES) or is_disk_full(error)


def _cause(error: BaseException) -> BaseException:
    while isinstance(error, StorageInternalError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def words_of(error: BaseException) -> str:
    """Return what the database itself said, in a line."""
    cause = _cause(error)
    said = cause.orig if isinstance(cause, DBAPIError) and cause.orig is not None else cause
    words = " ".join(str(said).split()) or type(said).__name__
    return words if len(words) <= _MOST_WORDS else f"{words[:_MOST_WORDS]}..."


@dataclass
class RetryPolicy:
    """Retries calls with exponential backoff and jitter, up to a total time."""

    longest_s: float
    on_wait: Callable[[str, float, str], None] = lambda *_: None
    """Called before each pause with what is called, the seconds so far, and the storage's words."""
    is_given_up: Callable[[], bool] = lambda: False
    is_opening: bool = False
    """Whether the storage is being opened, so that a refusal is not taken for an outage."""

    def call(self, what: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what ``function`` does, which must be safe to call again after it failed.

        Raises:
            StorageLostError: the storage stayed unavailable, or ``is_given_up`` became true.
            StorageRefusedError: it is being opened, and waiting would not help.
        """
        failed_s: float | None = None
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                return function(*args, **kwargs)
            except Exception as error:
                self._refuse(what, error)
                failed_s = time.monotonic() if failed_s is None else failed_s
                waited_s = time.monotonic() - failed_s
                if waited_s > self.longest_s or self.is_given_up():
                    lost = f"{what}: no answer for {waited_s:.0f} s: {words_of(error)}"
                    raise StorageLostError(lost) from error
                self.on_wait(what, waited_s, words_of(error))
            time.sleep(delay_s * random.uniform(0.5, 1.0))  # so that machines do not retry in step
            delay_s = min(2 * delay_s, _LONGEST_DELAY_S)

    def _refuse(self, what: str, error: Exception) -> None:
        """Raise unless ``error`` is an outage, which may end."""
        if not is_outage(error):
            if isinstance(_cause(error), DBAPIError):  # such as a damaged file
                lost = f"{what}: {words_of(error)}"
                raise (StorageRefusedError if self.is_opening else StorageLostError)(
                    lost
                ) from error
            raise error
        words = words_of(error)
        if self.is_opening and any(no_outage in words.lower() for no_outage in _NO_OUTAGE):
            raise StorageRefusedError(words) from error
