"""Start multiprocessing's fork server with everything that a worker needs already imported.

This module imports no other of the package, so that a command can start the server first: torch is
then imported in the server and in the command at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver

__all__ = ["start_server"]

_PRELOADED = ("ppo_lab.workers.worker", "gymnasium")
_PRELOADED_WANDB = ("wandb", "wandb.sdk.launch.inputs.internal")  # wandb.init imports the second


def start_server(*, is_tracked: bool) -> None:
    """Start the server unless it is running; it imports in parallel, wandb too if tracked."""
    wandb = _PRELOADED_WANDB if is_tracked else ()
    multiprocessing.set_forkserver_preload([*_PRELOADED, *wandb])
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reads it when it is imported
    # Ctrl-C, timeout(1) and Slurm signal the whole process group. The server, with which workers
    # die, ends when this process closes its pipe: after the workers have saved their runs.
    handlers = {n: signal.signal(n, signal.SIG_IGN) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        forkserver.ensure_running()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
