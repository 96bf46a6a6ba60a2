"""Results of a grid, by its list of jobs; the same for every launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.compose import Job
from ppo_lab.runner.unfinished import unfinished_summary
from ppo_lab.tracking import read_summary
from ppo_lab.tracking.local import SUMMARY_FILE

__all__ = ["grid_summaries"]


def grid_summaries(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the summaries of a grid's jobs in order of their numbers.

    A job that was killed, or whose machine failed, has a folder but no summary; a job that never
    began has no folder, and the status ``not started``.
    """
    return [_summary(folder / job.subdir, job) for job in jobs]


def _summary(folder: Path, job: Job) -> dict[str, Any]:
    try:
        summary = read_summary(folder / SUMMARY_FILE)
    except (OSError, ValueError):
        is_begun = folder.is_dir()
        summary = unfinished_summary(folder) if is_begun else {"status": "not started"}
    return {"env": job.config.env.id, "seed": job.config.seed} | summary | {
        "overrides": list(job.overrides)
    }  # fmt: skip
