"""Results of a grid, by its list of jobs; the same for every launcher."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.compose import Job
from ppo_lab.runner.stored import stored_summary

__all__ = ["grid_summaries"]


def grid_summaries(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the summaries of a grid's jobs in order of their numbers, whatever became of them."""
    return [
        {"env": job.config.env.id, "seed": job.config.seed}
        | stored_summary(folder / job.subdir)
        | {"overrides": list(job.overrides)}
        for job in jobs
    ]
