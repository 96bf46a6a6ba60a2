"""Each trial is a process of its own, forked from a server that has imported everything.

The server (multiprocessing's) is started once, holds no CUDA context and no thread of ours, and
dies with the parent; a trial dies with the server. So nothing outlives a parent that is killed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

from ppo_lab.utils.forkserver import start_server
from ppo_lab.workers.base import Decision, Event, Executor, Exited, Reported, Task
from ppo_lab.workers.trial import trial_main

__all__ = ["ProcessExecutor"]

_GRACE_S = 10.0  # from SIGTERM, in which a run closes its trackers, to SIGKILL


@dataclass
class _Running:
    process: ForkServerProcess
    connection: Connection
    slot: int
    killed_after_s: float | None = None
    """On the monotonic clock; None as long as nobody asked it to end."""


class ProcessExecutor(Executor):
    """Slots of this machine; see the module."""

    def __init__(self, num_slots: int, devices: Sequence[str] = ()) -> None:
        """Start the server; slot i sees the device i modulo their number, by CUDA's own names."""
        self._num_slots, self._devices = num_slots, list(devices)
        self._running: dict[int, _Running] = {}
        self._context = multiprocessing.get_context("forkserver")
        start_server(is_tracked=False)  # unless it runs already

    @property
    def num_slots(self) -> int:
        """Trials that can run at a time."""
        return self._num_slots

    def slots(self) -> dict[int, int]:
        """Return each running trial's slot."""
        return {number: running.slot for number, running in self._running.items()}

    def start(self, task: Task) -> None:
        """Fork a process for ``task``."""
        taken = set(self.slots().values())
        slot = next(i for i in itertools.count() if i not in taken)
        assert slot < self._num_slots, "no slot is free"
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_forked, args=(task, theirs, self._device_of(slot)), name=f"trial {task.number}"
        )
        process.start()
        theirs.close()
        self._running[task.number] = _Running(process, ours, slot)

    def _device_of(self, slot: int) -> str | None:
        return self._devices[slot % len(self._devices)] if self._devices else None

    def tell(self, number: int, verdict: Decision) -> None:
        """Send a verdict; one for a trial that has ended is dropped."""
        running = self._running.get(number)
        if running is None:
            return
        try:
            running.connection.send(verdict)
        except (BrokenPipeError, ConnectionResetError):
            return  # it ends in this moment; its exit is the next event

    def wait(self, timeout_s: float) -> list[Event]:
        """Return messages and exits; see ``Executor``."""
        by_source: dict[Any, int] = {}
        for number, running in self._running.items():
            by_source[running.process.sentinel] = number
            if not running.connection.closed:
                by_source[running.connection] = number
        if not by_source:
            time.sleep(timeout_s)
            return []
        ready = {by_source[source] for source in connection.wait(list(by_source), timeout_s)}
        self._kill_overdue()
        return [event for number in sorted(ready) for event in self._read(number)]

    def _read(self, number: int) -> list[Event]:
        running = self._running[number]
        # Asked first: what is in the pipe by then is all that a process which has ended ever sent.
        has_ended = not running.process.is_alive()
        events: list[Event] = []
        try:
            while not running.connection.closed and running.connection.poll():
                events.append(Reported(number, running.connection.recv()))
        except (EOFError, ConnectionResetError):
            running.connection.close()
        if has_ended:
            running.process.join()
            exit_code = running.process.exitcode
            assert exit_code is not None
            running.connection.close()
            running.process.close()
            del self._running[number]
            events.append(Exited(number, exit_code))
        return events

    def stop(self, number: int) -> None:
        """Send SIGTERM, and SIGKILL when ten seconds did not suffice."""
        running = self._running.get(number)
        if running is not None and running.killed_after_s is None:
            running.killed_after_s = time.monotonic() + _GRACE_S
            running.process.terminate()

    def _kill_overdue(self) -> None:
        for running in self._running.values():
            if running.killed_after_s is not None and time.monotonic() > running.killed_after_s:
                running.process.kill()

    def close(self) -> None:
        """Stop every trial and wait for it."""
        for number in list(self._running):
            self.stop(number)
        while self._running:
            self.wait(0.2)


def _forked(task: Task, connection: Connection, devices: str | None) -> None:
    """Run in the new process."""
    if devices is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices  # CUDA has not been touched in this process
    trial_main(task, connection)
