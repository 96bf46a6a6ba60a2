"""A small process that ends this one when none of its Python threads can run any more.

Compiled code that neither returns nor releases the interpreter's lock, as in many bindings of
simulators, stops every thread, and with them the time limit.
"""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys

__all__ = ["beat"]

# It reads records of 8 characters: seconds that the process may be silent from now on, 0 for ever.
# Waits are counted, not seconds, and none while the process is suspended.
_PROGRAM = """
import os, select, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
process, number = map(int, sys.argv[1:])
def is_suspended():
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "Tt"
    except OSError:
        return False
limit_s = silent_s = 0.0
has_signalled = False
while os.getppid() == process:
    wait_s = min(1.0, limit_s / 4 or 1.0)
    if select.select([0], [], [], wait_s)[0]:
        records = os.read(0, 4096)
        if not records:
            break
        limit_s, silent_s, has_signalled = float(records[-8:]), 0.0, False
    elif limit_s and not is_suspended():
        silent_s += wait_s
        if silent_s >= limit_s + 5.0:
            why = f"an environment did not return for {silent_s:g} s and let no thread run"
            sys.stderr.write(f"ppo_lab: {why}; process {process} is killed\\n")
            os.kill(process, signal.SIGKILL)
        elif silent_s >= limit_s and not has_signalled:
            os.kill(process, number)
            has_signalled = True
"""


def beat(silent_s: float, signal_number: int) -> None:
    """Start the monitor if it does not run; allow this process to be silent for ``silent_s``.

    After it the monitor sends the signal, and 5 s later it kills; 0: it waits for another call.
    """
    with contextlib.suppress(OSError):  # no process left to start, or it was killed: no monitor
        pipe, _ = _start(os.getpid(), signal_number)
        os.write(pipe, b"%8.2f" % silent_s)


@functools.cache
def _start(process: int, signal_number: int) -> tuple[int, subprocess.Popen[bytes]]:
    """Return the pipe to the monitor of ``process``, this one; it ends with the pipe."""
    theirs, ours = os.pipe()
    os.set_blocking(ours, False)
    program = [sys.executable, "-S", "-E", "-c", _PROGRAM, str(process), str(signal_number)]
    monitor = subprocess.Popen(program, stdin=theirs, stdout=subprocess.DEVNULL)
    os.close(theirs)
    return ours, monitor
