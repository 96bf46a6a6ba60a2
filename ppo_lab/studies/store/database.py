"""Where a study is kept: SQLite in its folder, or PostgreSQL for several machines.

Both give what Optuna alone does not: tables made once however many start together, and a lock that
one parent of all holds at a time, so that the total of trials is exact.
"""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import URL

from ppo_lab.studies.store.retry import StorageLostError

__all__ = ["Database"]

_SQLITE_LOCKED_S = 30.0  # a reader such as optuna-dashboard may hold the file for a moment
_SILENT_S = 60
"""A lock in PostgreSQL is taken from a machine unheard of for this long, say without power."""
_OVER_NETWORK = {
    "connect_timeout": 10,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 1000 * _SILENT_S,  # ms; the kernel's own is a quarter of an hour
}
_LIMIT = "SELECT set_config('idle_in_transaction_session_timeout', :ms, true)"
_CREATION = zlib.crc32(b"ppo_lab creates its tables")


class Database:
    """An opened storage."""

    def __init__(self, url: URL, folder: Path) -> None:
        """Open ``url``, making its tables if need be; ``folder`` holds the locks of this machine.

        Raises:
            SQLAlchemyError: the storage is away, for ``retry.RetryPolicy``.
        """
        self.url, self.folder = url, folder
        self.is_shared = url.get_backend_name() == "postgresql"
        """Whether other machines may reach it."""
        arguments = _OVER_NETWORK if self.is_shared else {"timeout": _SQLITE_LOCKED_S}
        self._url_text = url.render_as_string(hide_password=False)
        if self.is_shared:
            self._engine: Engine | None = _engine(url, arguments)
        else:
            self._engine = None
        options = {"connect_args": arguments, "pool_pre_ping": True}
        with self._exclusive(_CREATION):
            self.storage = RDBStorage(self._url_text, engine_kwargs=options)

    @contextmanager
    def exclusive(self, study: str) -> Iterator[None]:
        """Keep every other parent of ``study``, on whatever machine, out of this block."""
        with self._exclusive(zlib.crc32(study.encode())):
            yield

    @contextmanager
    def _exclusive(self, key: int) -> Iterator[None]:
        if self._engine is None:
            try:
                file = (self.folder / "lock").open("a")
            except FileNotFoundError as error:
                raise StorageLostError(f"{self.folder} is gone") from error
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the kernel frees it when we die
                yield
        else:
            with self.connection() as connection:
                # Optuna writes over connections of its own; this one only holds the lock, which
                # ends with it.
                connection.execute(text(_LIMIT), {"ms": str(1000 * _SILENT_S)})
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Return a connection to the shared database, in a transaction."""
        assert self._engine is not None, "SQLite has none: see lease.py"
        with self._engine.begin() as connection:
            yield connection

    def study_names(self) -> list[str]:
        """Return the names of the studies kept here."""
        return optuna.get_all_study_names(self.storage)

    def close(self) -> None:
        """Give the connections back."""
        self.storage.remove_session()
        self.storage.engine.dispose()
        if self._engine is not None:
            self._engine.dispose()


def _engine(url: URL, arguments: Mapping[str, float]) -> Engine:
    from sqlalchemy import create_engine

    return create_engine(url, connect_args=dict(arguments), pool_pre_ping=True)
