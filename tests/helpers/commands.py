"""Commands as a person types them, without the seconds that each would take to import torch.

A server imports the package once per test process and forks a child for every command; what a
command starts by multiprocessing's fork server is forked from it as well.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Thread
from typing import IO

__all__ = ["Command", "ppo_lab", "start", "start_into"]

_TIMEOUT_S = 300
_SERVER = Path(__file__).with_name("command_server.py")


@functools.cache
def _server() -> socket.socket:
    """Start the server and return what it listens to; it ends when that is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        code = f"import runpy; runpy.run_path({str(_SERVER)!r}, run_name='__main__')"
        subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())],
                         pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)  # fmt: skip
    return ours


class Command:
    """A command that was started, used like ``subprocess.Popen`` in text mode."""

    def __init__(self, request: dict, outputs: list[int]) -> None:
        self.args, self.returncode = request["arguments"], None
        status, theirs = os.pipe()
        socket.send_fds(_server(), [json.dumps(request).encode()], [*outputs, theirs])
        os.close(theirs)
        self._status = os.fdopen(status)  # read until the command has ended
        self.pid = int(self._status.readline())

    def poll(self) -> int | None:
        """Return the exit status, None before the end."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.wait()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status as soon as the command has ended."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self._status.readline())
            self._status.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class PipedCommand(Command):
    """A command whose output is read while it runs."""

    def __init__(self, request: dict, *, is_merged: bool) -> None:
        pipes = [os.pipe() for _ in range(1 if is_merged else 2)]
        super().__init__(request, [pipes[0][1], pipes[-1][1]])
        for _, write in pipes:
            os.close(write)
        files = [os.fdopen(read, errors="replace") for read, _ in pipes]
        self.stdout, self.stderr = files[0], None if is_merged else files[1]

    def communicate(self, timeout: float | None = None) -> tuple[str, str | None]:
        """Return what is left of standard output and standard error when both are closed."""
        shown: dict[str, str] = {}

        def read(name):
            with getattr(self, name) as file:
                shown[name] = file.read()

        names = ["stdout"] if self.stderr is None else ["stdout", "stderr"]
        readers = [Thread(target=read, args=(name,), daemon=True) for name in names]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        for reader in readers:
            reader.join(timeout)
        return shown["stdout"], shown.get("stderr")


def _request(folder, arguments, environment, module="ppo_lab", program=None) -> dict:
    variables = {**os.environ, **environment}
    return {
        "folder": str(folder),
        "module": module,
        "program": program,
        "arguments": arguments,
        "environment": {name: value for name, value in variables.items() if value is not None},
        "timeout_s": _TIMEOUT_S,
    }


def start(
    folder: Path, *arguments: str, is_merged: bool = False, **environment: str
) -> PipedCommand:
    """Start ``python -m ppo_lab ARGUMENTS`` in ``folder`` as the leader of a session of its own.

    With ``is_merged``, standard error goes to standard output.
    """
    return PipedCommand(_request(folder, arguments, environment), is_merged=is_merged)


def start_into(folder: Path, words: list[str], output: IO[bytes]) -> Command:
    """Start ``python -m ppo_lab WORDS`` like ``start``; ``output`` takes all that it shows."""
    return Command(_request(folder, words, {}), [output.fileno()] * 2)


def ppo_lab(
    folder: Path, *arguments: str, module: str = "ppo_lab", program: str | None = None,
    **environment: str | None,
) -> subprocess.CompletedProcess[str]:  # fmt: skip
    """Run ``python -m MODULE ARGUMENTS`` in ``folder``, or ``python -c PROGRAM ARGUMENTS``.

    Returns its exit status and its output. A variable that is None is taken out.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        request = _request(folder, arguments, environment, module, program)
        status = Command(request, [out.fileno(), err.fileno()]).wait()
        for file in (out, err):
            file.seek(0)
        return subprocess.CompletedProcess([module, *arguments], status, out.read(), err.read())
