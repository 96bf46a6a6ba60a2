"""What a person sees of a run or a grid when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ppo_lab.config.compose import Job
from ppo_lab.grids.results import RESULTS_FILE, grid_summaries, write_results
from ppo_lab.grids.table import grid_table
from ppo_lab.runner.run_record import Status
from ppo_lab.tracking import next_steps, places, reasons, summary_panel

__all__ = ["print_lines", "show_grid", "show_run"]


def print_lines(lines: str, style: str = "") -> None:
    """Print lines as they are, unless they are empty."""
    if lines:
        Console().print(lines, style=style, soft_wrap=True, highlight=False, markup=False)


def show_run(folder: Path, summary: dict[str, Any]) -> None:
    """Print the panel of a single run."""
    Console().print(summary_panel(summary))
    policy = folder.resolve() / "checkpoint"
    shown = {"folder": folder.resolve()} | summary
    if policy.is_dir() and summary["status"] == Status.interrupted.value:
        shown["policy"] = policy
    print_lines(places(shown))
    _print_next(folder, [summary], has_policy=policy.is_dir())


def show_grid(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Print the table of a grid, write it, and return the summaries of its jobs."""
    summaries = grid_summaries(folder, jobs)
    Console().print(grid_table(summaries), crop=False)
    try:
        write_results(folder, summaries)
    except OSError as error:
        print_lines(f"{RESULTS_FILE} cannot be written: {error.strerror}", "red")
    print_lines(reasons(summaries), "red")
    print_lines(places({"folder": folder.resolve()}))
    _print_next(folder, summaries, has_policy=False)
    return summaries


def _print_next(folder: Path, summaries: Sequence[dict[str, Any]], *, has_policy: bool) -> None:
    """Print what can be done with runs that have trained."""
    if any("final_return" in summary for summary in summaries):
        is_resumable = any(s["status"] in ("interrupted", "not started") for s in summaries)
        tracked = any(summary.get("wandb") for summary in summaries)
        options = {"has_policy": has_policy, "is_resumable": is_resumable, "tracked": tracked}
        print_lines(next_steps(folder.resolve(), **options))
