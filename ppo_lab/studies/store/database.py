"""The storage of a study: SQLite in its folder, or PostgreSQL shared by several machines.

Adds to Optuna's storage what it lacks: tables are created once however many processes start at the
same time, and a lock makes the total of trials exact.
"""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import RDBStorage
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import URL

from ppo_lab.studies.store.retry import StorageLostError

__all__ = ["Database"]

_SQLITE_LOCKED_S = 2.0  # then the call is retried, and a person sees that it waits
_SILENT_S = 60
"""PostgreSQL revokes the lock of a connection that has been idle for this long."""
_OVER_NETWORK = {
    "connect_timeout": 5,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 4,
    "tcp_user_timeout": 1000 * 10,  # ms; the kernel's default is 15 minutes
}
_LIMIT = "SELECT set_config('idle_in_transaction_session_timeout', :ms, true)"


class Database:
    """An open storage."""

    def __init__(self, url: URL, folder: Path) -> None:
        """Open ``url`` and create missing tables; ``folder`` holds the locks of this machine."""
        self.url, self.folder = url, folder
        self.is_shared = url.get_backend_name() == "postgresql"
        """Whether other machines may use it."""
        arguments = _OVER_NETWORK if self.is_shared else {"timeout": _SQLITE_LOCKED_S}
        options: dict[str, Any] = {"connect_args": arguments, "pool_pre_ping": True}
        self._engine = create_engine(url, **options) if self.is_shared else None
        with self.exclusive("ppo_lab creates its tables"):
            url_text = url.render_as_string(hide_password=False)
            self.storage = RDBStorage(url_text, engine_kwargs=options)

    @contextmanager
    def exclusive(self, name: str) -> Iterator[None]:
        """Hold the lock ``name``, a study's, against all other processes and machines."""
        if self._engine is None:
            try:
                file = (self.folder / "lock").open("a")
            except FileNotFoundError as error:
                raise StorageLostError(f"{self.folder} is gone") from error
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)  # the kernel releases it if the process dies
                yield
        else:
            key = zlib.crc32(name.encode())
            # Optuna writes through its own connections; this one only holds the lock.
            with self.connection() as connection:
                connection.execute(text(_LIMIT), {"ms": str(1000 * _SILENT_S)})
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})
                yield

    def connection(self) -> AbstractContextManager[Connection]:
        """Open a transaction on the shared database."""
        assert self._engine is not None, "SQLite has none: see lease.py"
        return self._engine.begin()

    def close(self) -> None:
        """Close all connections."""
        self.storage.remove_session()
        self.storage.engine.dispose()
        if self._engine is not None:
            self._engine.dispose()
