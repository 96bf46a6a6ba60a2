"""The server that a study's trials are forked from: multiprocessing's, with everything imported.

This module needs nothing of ours, so that a study can start the server before anything else: then
it imports what a trial needs, torch above all, while the study does the same.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver

__all__ = ["start_server"]

_OF_A_TRIAL = ("ppo_lab.workers.trial", "gymnasium")
_OF_WANDB = ("wandb", "wandb.sdk.launch.inputs.internal")  # the second by wandb.init: 0.4 s


def start_server(*, is_tracked: bool) -> None:
    """Start the server if it does not run; it imports meanwhile, wandb too if trials track."""
    multiprocessing.set_forkserver_preload([*_OF_A_TRIAL, *(_OF_WANDB if is_tracked else ())])
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reads it when it is imported
    # A Ctrl-C is ours to handle; the server ignores it, but by itself only once it has imported.
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, handler)
