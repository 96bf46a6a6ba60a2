"""Files of compiled programs: named by their content, found by keys, removed when long unused.

A key's file, ``NAME-KEY.key``, holds the name of a program, ``NAME-SHA256.pt2``. A file that is
damaged or that another user could have written counts as missing, so that it is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ppo_lab.compiler.compiled import CompilerError

__all__ = ["ProgramStore", "default_folder", "private_folder", "read_own", "sha256"]

_MAX_UNUSED_S, _MAX_BYTES = 60 * 86_400, 2 * 1024**3
"""A program takes 0.1 to 1 MiB, what all of them share 0.3 GiB for each version of torch."""
_OUR_NAMES = re.compile(r"[a-z_]+-[0-9a-f]{24,64}(\.(key|lock|pt2|safetensors))?|building-\w+")
"""Nothing else is removed: a person may have named a folder with other things in it."""
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def default_folder() -> Path:
    """Return the folder of compiled programs: ``PPO_LAB_CACHE``, else the user's cache."""
    if folder := os.environ.get("PPO_LAB_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppo_lab"


def private_folder(path: Path) -> Path:
    """Return the folder at ``path``, in which only this user can write; create it if missing.

    Raises:
        CompilerError: it belongs to another user.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise CompilerError(f"{path}: belongs to another user; name your own in PPO_LAB_CACHE")
    if found.st_mode & _OTHERS_WRITE:
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS_WRITE)
    return path


def read_own(path: Path) -> bytes:
    """Return the bytes of a file that only this user can have written; else raise ``OSError``."""
    with path.open("rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE:
            raise PermissionError(f"{path} may have been written by another user")
        return file.read()


def sha256(content: bytes) -> str:
    """Return the digest that stands in the name of a program."""
    return hashlib.sha256(content).hexdigest()


class ProgramStore:
    """Compiled programs in a folder of this user's own."""

    def __init__(self, folder: Path) -> None:
        """Use ``folder``; create it if it is missing."""
        self.folder = private_folder(folder)

    def find(self, key: str) -> Path | None:
        """Return the program under ``key``, None if there is none that can be used."""
        entry = self.folder / f"{key}.key"
        try:
            path = self.folder / Path(read_own(entry).decode()).name
            if path.stem.rpartition("-")[2] != sha256(read_own(path)):
                return None
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # of a read-only folder
            for used in (entry, path):
                os.utime(used)
        return path

    def save(self, key: str, built: Path) -> Path:
        """Move the program at ``built`` here, and return its new path."""
        name, digest = key.rpartition("-")[0], sha256(built.read_bytes())
        built.chmod(0o600)
        path = built.replace(self.folder / f"{name}-{digest}.pt2")
        self.link(key, path)
        return path

    def link(self, key: str, program: Path) -> None:
        """Have ``key`` find ``program``."""
        number, written = tempfile.mkstemp(prefix="building-", dir=self.folder)
        with os.fdopen(number, "w") as file:
            file.write(program.name)
        Path(written).replace(self.folder / f"{key}.key")

    def lock(self, key: str) -> contextlib.ExitStack | None:
        """Lock ``key`` until the stack is closed; None if another process has it."""
        with contextlib.ExitStack() as lock:
            file = lock.enter_context((self.folder / f"{key}.lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
            return lock.pop_all()

    def prune(self) -> None:
        """Remove what was not used for 60 days, and the longest unused of more than 2 GiB."""
        now, total = time.time(), 0
        for used, num_bytes, path in sorted(self._entries(), reverse=True):
            total += num_bytes
            if now - used > _MAX_UNUSED_S or total > _MAX_BYTES:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, bytes and path of everything of ours in the folder."""
        for path in self.folder.iterdir():
            if not _OUR_NAMES.fullmatch(path.name):
                continue
            with contextlib.suppress(FileNotFoundError):  # removed by another process
                files = [path, *path.iterdir()] if path.is_dir() else [path]
                found = [file.stat() for file in files]
                yield found[0].st_mtime, sum(each.st_size for each in found), path
