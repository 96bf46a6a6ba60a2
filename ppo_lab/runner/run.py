"""Trains checked configs and leaves finished run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.runner.group import RunGroup
from ppo_lab.runner.run_record import RunOutput, Status
from ppo_lab.runner.stack import Stack
from ppo_lab.tracking import Progress

__all__ = ["RunOutput", "Status", "run_group", "run_in_folder"]


def run_in_folder(
    config: Config,
    folder: Path,
    *,
    overrides: Sequence[str],
    resumes: bool = False,
) -> dict[str, Any]:
    """Train a checked config alone and return its summary; see ``run_group``.

    ``folder`` exists and holds no run, or one that ``resumes`` from its newest checkpoint if it has
    one; ``check_resume`` says whether the config may.
    """
    output = RunOutput(folder, overrides, resumes=resumes)
    (summary,) = run_group(RunGroup([config], [output]))
    return summary


def run_group(group: RunGroup, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Train a group as one stack, and return its runs' summaries; ``progress`` replaces its line.

    An exception of the run becomes summaries of status ``failed`` or ``out_of_memory``, and its
    memory is freed, so that the next run in this process has all of it.

    Raises:
        Interrupted: Ctrl-C or SIGTERM has stopped the runs; their trackers are closed.
    """
    stack = Stack(len(group.configs), progress or Progress(group.configs[0].tracking.terminal))
    stack.queue.put(group)
    try:
        while stack.has_work:
            stack.step()
    finally:
        stack.close()
    return group.summaries
