"""Results of a grid, by its list of jobs; the same for every launcher."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.compose import Job
from ppo_lab.runner.stored import stored_summary
from ppo_lab.tracking.tables import override_values
from ppo_lab.utils.json_files import atomic_write

__all__ = ["RESULTS_FILE", "grid_summaries", "memory_of", "write_csv", "write_results"]

RESULTS_FILE = "results.csv"
_COPIED = (
    *("final_return", "best_return", "auc_return", "collapsed", "dead", "env_steps"),
    *("env_steps_per_s", "wall_time_s"),
)


def grid_summaries(folder: Path, jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """Return the summaries of a grid's jobs in order of their numbers, whatever became of them."""
    return [
        {"env": job.config.env.id, "seed": job.config.seed}
        | stored_summary(folder / job.subdir)
        | {"overrides": list(job.overrides)}
        for job in jobs
    ]


def memory_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return a run's peak memory as forecast, counted and measured, and its traffic, in GiB."""
    memory, bus = summary.get("memory") or {}, summary.get("pcie") or {}
    parts = {name: memory.get(name) or {} for name in ("forecast", "ledger", "measured")}
    moved = [bus[key] for key in ("h2d_bytes", "d2h_bytes") if key in bus]
    return {
        "forecast_gib": parts["forecast"].get("peak_gib"),
        "counted_gib": parts["ledger"].get("peak_gib"),
        "measured_gib": parts["measured"].get("allocated_gib"),
        "host_gib": parts["measured"].get("host_gib"),
        "pcie_gib": sum(moved) / 1024**3 if moved else None,
    }


def write_results(folder: Path, summaries: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.csv``: a row for each run, with its overrides, scores, memory and speed."""
    overrides = [override_values(summary) for summary in summaries]
    keys = [key for key in dict.fromkeys(k for o in overrides for k in o) if key != "seed"]
    rows = [
        {"job": number}
        | {key: values.get(key) for key in keys}
        | {key: summary.get(key) for key in ("env", "seed", "status", "reason", *_COPIED)}
        | memory_of(summary)
        | {"folder": summary.get("folder"), "wandb": summary.get("wandb")}
        for number, (summary, values) in enumerate(zip(summaries, overrides))
    ]
    write_csv(folder / RESULTS_FILE, rows)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows that have the same keys, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["number"])
    writer.writeheader()
    writer.writerows(rows)
    atomic_write(path, text.getvalue().encode())
