"""Lease that detects dead parents; their running trials are reclaimed.

On one machine a parent process holds a lock on a file of its own, which the kernel releases when it
dies. Between machines it also renews a row in the database: a parent is dead if its row has not
changed for a whole lease, while ours was renewed without a gap. The times in the rows are never
compared with a clock, so neither a clock that jumps nor an outage of the database (after which
every row is old and observation starts anew) can declare a parent dead.

Optuna's heartbeat is not used: it compares times by the database's clock, and fails the trials of a
dead process instead of resuming them under their numbers.
"""

from __future__ import annotations

import fcntl
import math
import os
import socket
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import text

from ppo_lab.studies.store.database import Database

__all__ = ["Lease", "Owner"]

_TABLE = """
CREATE TABLE IF NOT EXISTS ppo_lab_parents (
    parent VARCHAR(64) PRIMARY KEY, seen TIMESTAMPTZ NOT NULL
)
"""
_RENEW = """
INSERT INTO ppo_lab_parents (parent, seen) VALUES (:parent, clock_timestamp())
ON CONFLICT (parent) DO UPDATE SET seen = clock_timestamp()
"""
_ROWS = "SELECT parent, seen FROM ppo_lab_parents"
_END = "DELETE FROM ppo_lab_parents WHERE parent = :parent"


class Owner(NamedTuple):
    """A parent process, as stored in its trials."""

    id: str
    host: str
    boot: str
    """Identifies the machine and its boot, since host names are not unique."""
    lock: str
    """Path of its locked file."""

    @staticmethod
    def read(stored: Any) -> Owner | None:  # noqa: ANN401 - an attribute of a trial
        """Return the owner in a trial's attribute, None if the trial is free."""
        return Owner(**stored) if stored else None


class Lease:
    """The lease of this process, and what it knows of the others'."""

    def __init__(self, database: Database, lease_s: float) -> None:
        """Create an owner and lock its file; ``renew`` adds its row to a shared database."""
        self._database, self._lease_s = database, lease_s
        parents = database.folder / "parents"
        parents.mkdir(exist_ok=True)
        name = uuid.uuid4().hex[:16]
        path = parents.resolve() / f"{name}.lock"
        self._file = path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self.owner = Owner(name, socket.gethostname(), _boot_id(), str(path))
        self._renewed_s = self._watching_since_s = -math.inf
        self._rows: dict[str, tuple[datetime, float]] = {}
        """By parent: its row's time, and since when it is unchanged by our monotonic clock."""
        if database.is_shared:
            with database.exclusive("ppo_lab_parents"), database.connection() as connection:
                connection.execute(text(_TABLE))

    def renew(self) -> None:
        """Renew the row once a quarter of the lease has passed; call it often."""
        now_s = time.monotonic()
        if not self._database.is_shared or now_s - self._renewed_s < self._lease_s / 4:
            return
        with self._database.connection() as connection:
            connection.execute(text(_RENEW), {"parent": self.owner.id})
            rows = {row.parent: row.seen for row in connection.execute(text(_ROWS))}
        now_s = time.monotonic()
        if now_s - self._renewed_s > self._lease_s / 2:
            self._watching_since_s = now_s
            self._rows.clear()
        known = self._rows
        self._rows = {
            parent: known[parent] if parent in known and known[parent][0] == seen else (seen, now_s)
            for parent, seen in rows.items()
        }
        self._renewed_s = now_s

    def is_dead(self, owner: Owner) -> bool:
        """Return whether ``owner`` is certainly dead, so that its trials are free."""
        if owner.id == self.owner.id:
            return False
        is_ours = owner.boot == _boot_id() and Path(owner.lock).parent.is_dir()
        if is_ours and Path(owner.lock).exists():
            return _is_free(Path(owner.lock))
        if not self._database.is_shared:
            # One machine, or one file system: the study's folder was copied here.
            return True
        _, since_s = self._rows.get(owner.id, (None, self._watching_since_s))
        return self._renewed_s - since_s > self._lease_s

    def close(self) -> None:
        """End the lease; its trials must have been released."""
        if self._database.is_shared:
            with self._database.connection() as connection:
                connection.execute(text(_END), {"parent": self.owner.id})
        Path(self.owner.lock).unlink(missing_ok=True)
        self._file.close()


def _is_free(path: Path) -> bool:
    try:
        file = path.open("r")
    except FileNotFoundError:  # its parent has just ended and released its trials
        return True
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{socket.gethostname()}:{os.getuid()}"
