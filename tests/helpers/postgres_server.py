"""A private PostgreSQL server, as Debian's packages install it, for the tests that need one."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

__all__ = ["PostgresServer", "why_not"]

_PASSWORD = "opensesame"


def _bindir() -> Path | None:
    for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True):
        if (path / "initdb").exists():
            return path
    found = shutil.which("initdb")
    return Path(found).resolve().parent if found else None


def _account() -> str | None:
    """The server refuses to run as root; None is the account of the test itself."""
    return "postgres" if os.getuid() == 0 else None


def why_not() -> str | None:
    """Return why there can be no server here; None if there can."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return "psycopg is not installed"
    if _bindir() is None:
        return "PostgreSQL's server programs are not installed"
    if _account() is not None:
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            return "there is no user postgres, and the server does not run as root"
    return None


class PostgresServer:
    """One cluster in a folder of its own, on a free port of this machine."""

    def __init__(self) -> None:
        bindir = _bindir()
        assert bindir is not None
        self._bindir, self._user = bindir, _account()
        self._folder = Path(tempfile.mkdtemp(prefix="ppo_lab_postgres_"))
        if self._user is not None:
            shutil.chown(self._folder, self._user)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = listener.getsockname()[1]
        (self._folder / "password").write_text(_PASSWORD)
        self._run("initdb", "-D", "data", "-U", "lab", "--pwfile=password", "-A", "scram-sha-256",
                  "--no-sync")  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://lab:{_PASSWORD}@127.0.0.1:{self.port}/postgres"

    @property
    def password(self) -> str:
        return _PASSWORD

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self._folder}"
        self._run("pg_ctl", "-D", "data", "-l", "server.log", "-w", "-o", options, "start")

    def stop(self) -> None:
        """End the server and every connection, as a crashed machine would."""
        self._run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def close(self) -> None:
        self.stop()
        deadline = time.monotonic() + 10
        while (self._folder / "data" / "postmaster.pid").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        shutil.rmtree(self._folder)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bindir / program), *arguments],
            cwd=self._folder, user=self._user, check=True, timeout=60,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
