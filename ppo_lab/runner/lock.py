"""One run per folder: a lock that the kernel releases when its process dies.

Imports neither torch nor Hydra: it is taken before anything is written into the folder.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import socket
import time
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from ppo_lab.utils.errors import ConfigError

__all__ = ["LOCK_FILE", "RunLock", "holder_of", "lock_run_folder"]

log = logging.getLogger(__name__)

LOCK_FILE = "run.lock"
_RETRY_S, _PAUSE_S = 0.3, 0.05
"""A reader that looks whether the lock is free holds it for an instant."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class RunLock:
    """A run's folder that this process alone trains in, until it is released or dies."""

    _held: ClassVar[dict[Path, RunLock]] = {}

    def __init__(self, folder: Path) -> None:
        """Lock ``folder``; see ``lock_run_folder``."""
        self._path, self._count = folder / LOCK_FILE, 0
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._file: int | None = file
        self.is_enforced = True
        """Whether the kernel holds it; without it a second start sees our process id only."""
        try:
            is_ours = _lock(file)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self.is_enforced, is_ours = False, holder_of(folder) is None
            if is_ours:
                log.warning("%s: cannot be locked (%s); start no second run in it", folder, error)
        if not is_ours:
            self._close()
            holder = {"pid": "?", "host": "?", "start": "?"} | (holder_of(folder) or {})
            who = "process {pid} on {host} since {start}".format_map(holder)
            allowed = f"a run is training in it: {who}; choose another folder"
            raise ConfigError("folder", folder, allowed)
        start = datetime.now().astimezone().isoformat(timespec="seconds")
        note = {"pid": os.getpid(), "host": socket.gethostname(), "start": start}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(note | {"is_enforced": self.is_enforced}).encode(), 0)

    def release(self) -> None:
        """Release the lock, once for every time that it was taken; the file stays."""
        self._count -= 1
        if self._count > 0:
            return
        RunLock._held.pop(self._path.parent, None)
        if not self.is_enforced:
            self._path.unlink(missing_ok=True)
        elif self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_UN)  # also for a child forked just now
        self._close()

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def lock_run_folder(folder: Path) -> RunLock:
    """Make ``folder`` unless it exists, and lock it; this process may take the lock again.

    Where files cannot be locked, this is said, and a live process of this machine is still refused.

    Raises:
        ConfigError: Another process trains in it.
    """
    folder = folder.resolve()
    if (lock := RunLock._held.get(folder)) is None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = RunLock._held[folder] = RunLock(folder)
    lock._count += 1
    return lock


def holder_of(folder: Path) -> dict[str, Any] | None:
    """Return pid, host and start of the process that trains in ``folder``; None if none does."""
    try:
        opened = (folder / LOCK_FILE).open("rb")
    except OSError:
        return None
    with opened as file:
        try:
            is_free = _flock(file.fileno(), fcntl.LOCK_SH)
        except OSError:  # no locks here: the note decides
            is_free = True
        note = _parsed(file.read(4096))
    if not is_free:
        return note
    is_here = note.get("host") == socket.gethostname() and not note.get("is_enforced", True)
    return note if is_here and _is_alive(note.get("pid")) else None


def _flock(file: int, kind: int) -> bool:
    """Return whether ``file`` could be locked at once."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock(file: int) -> bool:
    deadline_s = time.monotonic() + _RETRY_S
    while not _flock(file, fcntl.LOCK_EX):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(_PAUSE_S)
    return True


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        note = json.loads(text)
    except ValueError:  # its holder is writing it
        return {}
    return note if isinstance(note, dict) else {}


def _is_alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _forget() -> None:
    """Close the files in a forked child: an environment's process must not keep the locks."""
    for lock in RunLock._held.values():
        lock._close()
    RunLock._held.clear()


os.register_at_fork(after_in_child=_forget)
