"""A worker process: receives tasks from its pool and trains them in one stack of lanes.

With ``exits_after_task`` it takes one task. Otherwise it keeps its stack full until it is
terminated: it reads the pipe between iterations, and waits only while it has nothing to do and
briefly after a task has ended.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ppo_lab.config.study import STORAGE_VARIABLE
from ppo_lab.runner.signals import Interrupted
from ppo_lab.runner.stack import Stack
from ppo_lab.utils.cores import divide_cores
from ppo_lab.utils.redaction import mask_output
from ppo_lab.workers.base import Cancel, Decision, Exited, Task
from ppo_lab.workers.trial import Mailbox, TaskRun

__all__ = ["worker_main"]

log = logging.getLogger(__name__)

_REFILL_WAIT_S = 0.05
"""Wait for tasks that fill the lanes of one that has ended: about an iteration's time."""
_FIRST_WAIT_S = 1.0
"""Wait for each further task before the first iteration, so that all lanes begin at once."""
_PR_SET_PDEATHSIG = 1


def worker_main(
    connection: Connection,
    log_file: Path,
    device: str | None,
    num_workers: int,
    max_lanes: int,
    exits_after_task: bool,
) -> None:
    """Run a worker in a new process, which sees CUDA device ``device`` only; None: all of them.

    ``num_workers`` share this machine's cores.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device  # CUDA is not initialized in this process yet
    divide_cores(num_workers)
    _set_up_process()
    _redirect_output(log_file)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    log.info("process %d, %d lanes, CUDA_VISIBLE_DEVICES=%s", os.getpid(), max_lanes, visible)
    try:
        _Worker(connection, log_file, max_lanes, exits_after_task=exits_after_task).run()
    except Interrupted as stopped:
        sys.exit(stopped.exit_status)


class _Worker:
    """The loop of a worker process."""

    def __init__(
        self, connection: Connection, log_file: Path, max_lanes: int, *, exits_after_task: bool
    ) -> None:
        self._connection, self._log_file = connection, log_file
        self._exits_after_task, self._stack = exits_after_task, Stack(max_lanes)
        self._runs: dict[int, TaskRun] = {}  # by number of the task
        self._is_refill_due = False
        self._exit_code = 0

    def run(self) -> None:
        """Train the tasks that arrive."""
        try:
            while True:
                self._receive()
                self._stack.step()
                if self._exits_after_task and not self._runs:
                    break
        finally:
            self._stack.close()
            share = self._stack.utilization.busy_frac
            log.info("%.1f %% of the lanes were busy until the last run began", 100.0 * share)
        if self._exit_code:
            sys.exit(self._exit_code)

    def _receive(self) -> None:
        """Handle the messages in the pipe; wait for more while lanes can be filled."""
        if not self._stack.has_work:
            self._read_one(None)
            while self._expects_more() and self._read_one(_FIRST_WAIT_S):
                pass
        deadline_s = time.monotonic() + (_REFILL_WAIT_S if self._is_refill_due else 0.0)
        self._is_refill_due = False
        while True:
            wait_s = max(0.0, deadline_s - time.monotonic()) if self._expects_more() else 0.0
            if not self._read_one(wait_s):
                return

    def _expects_more(self) -> bool:
        """Return whether the pool may have tasks for lanes that are free."""
        queue = self._stack.queue
        return queue.num_wanted < self._stack.num_free and queue.num_more != 0

    def _read_one(self, wait_s: float | None) -> bool:
        """Handle one message and return True; return False if none arrives within ``wait_s``."""
        try:
            if not self._connection.poll(wait_s):
                return False
            message: Task | Decision | Cancel = self._connection.recv()
        except (EOFError, ConnectionResetError):  # the pool's process is gone
            raise Interrupted(signal.SIGTERM) from None
        if isinstance(message, Task):
            self._begin(message)
        else:
            self._handle(message)
        return True

    def _begin(self, task: Task) -> None:
        if not self._exits_after_task:
            ours = os.path.relpath(self._log_file, task.folder)
            (task.folder / "log").write_text(f"trained as lanes of a stack; see {ours}\n")
        log.info("%d arrives: %s", task.number, " ".join(task.output.overrides))
        # In a stack with others a trial does not wait for its decisions.
        read = self._read_one if self._exits_after_task else None
        mailbox = Mailbox(self._connection, read)
        self._stack.queue.num_more = 0 if self._exits_after_task else task.num_left
        run = TaskRun(task, self._stack, mailbox, lambda code: self._end(task.number, code))
        self._runs[task.number] = run
        run.begin()

    def _handle(self, message: Decision | Cancel) -> None:
        run = self._runs.get(message.number)
        if run is None:
            return  # it has just ended
        if isinstance(message, Decision):
            run.mailbox.decisions.append(message)
            return
        if run.group is not None:
            self._stack.abort(run.group)
        if message.number in self._runs:  # it had no lanes yet, and leaves no result
            self._end(message.number, 0)

    def _end(self, number: int, exit_code: int) -> None:
        run = self._runs.pop(number)
        self._is_refill_due = True
        log.info("%d: %s", number, ", ".join(s["status"] for s in run.summaries) or "not begun")
        if self._exits_after_task:
            self._exit_code = exit_code  # the end of the process is the task's exit
        else:
            with contextlib.suppress(BrokenPipeError):  # the pool is gone, as the next read says
                self._connection.send(Exited(number, exit_code))


def _set_up_process() -> None:
    """Have the kernel kill this process when the fork server dies; install signal handlers."""
    server = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if server == 1 or os.getppid() != server:  # it died before the call
        sys.exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the scheduler decides what Ctrl-C means
    signal.signal(signal.SIGTERM, _exit)
    mask_output()
    os.environ.pop(STORAGE_VARIABLE, None)  # may hold a password, and is not needed here


def _redirect_output(path: Path) -> None:
    """Append logging and all output of libraries to ``path``."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    os.dup2(file, sys.stdout.fileno())
    os.dup2(file, sys.stderr.fileno())
    os.close(file)
    logging.basicConfig(
        level=logging.INFO,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )


def _exit(number: int, frame: FrameType | None) -> NoReturn:  # noqa: ARG001
    raise Interrupted(number)
