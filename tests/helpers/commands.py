"""Commands as a person types them, without the seconds that each would take to import torch.

A server imports the package once per test process and forks a child for every command.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["ppo_lab"]

_TIMEOUT_S = 300
_SERVER = """
import json, os, runpy, signal, sys
import ppo_lab.cli
from hydra.core.plugins import Plugins
Plugins.instance()
replies = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=replies, flush=True)
else:
    os._exit(0)
replies.close()
os.chdir(request["folder"])
os.environ.clear()
os.environ.update(request["environment"])
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, path in enumerate(request["outputs"], 1):
    os.dup2(os.open(path, os.O_WRONLY), number)
signal.alarm(request["timeout_s"])
sys.argv = [request["module"], *request["arguments"]]
runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    """Start the server; it ends when this process does, with its standard input."""
    return subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def ppo_lab(
    folder: Path, *arguments: str, module: str = "ppo_lab", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS`` in ``folder``; return its exit status and its output."""
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        request = {
            "folder": str(folder),
            "module": module,
            "arguments": arguments,
            "environment": {**os.environ, **environment},
            "outputs": [out.name, err.name],
            "timeout_s": _TIMEOUT_S,
        }
        print(json.dumps(request), file=server.stdin, flush=True)
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess([module, *arguments], status, out.read(), err.read())
