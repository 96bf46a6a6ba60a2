"""The program of the server in ``commands.py``: imports everything, then forks for each request.

A request is JSON with three descriptors: standard output, standard error, and where the process's
number and its exit status are written. A child of the server waits for the command.
"""

import contextlib
import gc
import itertools
import json
import os
import runpy
import signal
import socket
import sys
from multiprocessing import util

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # as the fork server of workers

import gymnasium  # noqa: F401
import torch
import wandb
import wandb.sdk.launch.inputs.internal  # noqa: F401
from hydra.core.plugins import Plugins
from torch._subclasses.fake_tensor import FakeTensorMode

import ppo_lab.cli
import ppo_lab.studies.command
import ppo_lab.workers.worker  # noqa: F401

Plugins.instance()
with FakeTensorMode():
    torch.ones(1).add_(1.0)  # imports what a forecast does
gc.collect()
gc.freeze()
requests = socket.socket(fileno=int(sys.argv[1]))
spawn = util.spawnv_passfds


def receive():
    """Return the next request and its descriptors in the command's own process."""
    while True:
        message, fds, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            return json.loads(message), fds, begin(fds[-1])
        for fd in fds:
            os.close(fd)
        with contextlib.suppress(ChildProcessError):  # if there are none
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


def begin(status):
    """Fork once more and return in the child; its parent writes what becomes of it."""
    requests.close()
    pid = os.fork()
    if pid == 0:
        os.close(status)
        return
    os.setsid()  # what is sent to the tests' group ends the command, and then this process
    os.closerange(0, status)
    os.write(status, f"{pid}\n".encode())
    os.write(status, f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
    os._exit(0)


def fork_python(path, arguments, passfds):
    """Fork a process for the fork server of workers instead of one that imports all anew."""
    code = os.fsdecode(arguments[-1])
    if "forkserver" not in code:
        return spawn(path, arguments, passfds)
    if pid := os.fork():
        return pid
    for number in range(1, signal.NSIG):  # as in a new program
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    kept = [2, *sorted(passfds), os.sysconf("SC_OPEN_MAX")]
    for low, high in itertools.pairwise(kept):
        os.closerange(low + 1, high)
    try:
        exec(code, {"__name__": "__main__"})
    finally:
        os._exit(0)


request, outputs, _ = receive()
util.spawnv_passfds = fork_python
os.setsid()
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
for number, fd in enumerate(outputs[:2], 1):
    os.dup2(fd, number)
for fd in set(outputs[:2]):
    os.close(fd)
if "wandb" in sys.modules:  # its folder for tables belongs to the server; each program removes one
    from wandb.sdk.data_types._private import MEDIA_TMP

    MEDIA_TMP._finalizer.detach()
    MEDIA_TMP.__init__("wandb-media")
signal.alarm(request["timeout_s"])
sys.argv = [request["module"], *request["arguments"]]
if request["program"] is None:
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
else:
    exec(request["program"], {"__name__": "__main__"})
