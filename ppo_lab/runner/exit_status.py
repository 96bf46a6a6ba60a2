"""Exit statuses of commands that train, by the status of their run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ppo_lab.envs.time_limit import EXIT_STATUS

__all__ = [
    "EXIT_DIVERGED", "EXIT_ENVIRONMENT", "EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OUT_OF_MEMORY",
    "EXIT_REFUSED", "EXIT_RESUMABLE", "exit_status", "interrupt_status",
]  # fmt: skip

EXIT_FAILED, EXIT_REFUSED, EXIT_OUT_OF_MEMORY, EXIT_DIVERGED = 1, 2, 3, 4
EXIT_ENVIRONMENT = EXIT_STATUS
EXIT_RESUMABLE = 75
"""EX_TEMPFAIL: a checkpoint was written, and the run goes on from it."""
EXIT_INTERRUPTED = 130


def exit_status(summary: Mapping[str, Any]) -> int:
    """Return the exit status of a single run by its summary.

    Example:
        >>> exit_status({"status": "finished"}), exit_status({"status": "diverged"})
        (0, 4)
        >>> exit_status({"status": "failed", "error": "EnvironmentFault"})
        5
    """
    status = summary["status"]
    if status == "failed":
        return EXIT_ENVIRONMENT if summary.get("error") == "EnvironmentFault" else EXIT_FAILED
    if status == "interrupted":
        return EXIT_RESUMABLE if summary.get("checkpoint") else EXIT_INTERRUPTED
    known = {"finished": 0, "out_of_memory": EXIT_OUT_OF_MEMORY, "diverged": EXIT_DIVERGED}
    return known.get(status, EXIT_FAILED)


def interrupt_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a command that a signal has ended."""
    status: int = getattr(error, "exit_status", EXIT_INTERRUPTED)
    return status
