"""Runs that a grid has left, by setting and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.tracking.tables import override_values, varying_keys

__all__ = ["LAST", "SeedRun", "by_setting", "find_runs"]

LAST = 5  # iterations averaged: of texts 640, a share of 0.95 to +- 0.01


@dataclass(frozen=True)
class SeedRun:
    """What one run has left."""

    setting: str  # the overrides that distinguish it from the others, but for the seed
    seed: int
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    def first(self, name: str) -> float:
        """Return a metric of the first iteration, before any update."""
        return float(self.rows[0][name])

    def last(self, name: str) -> float:
        """Return the mean of a metric over the last iterations."""
        return statistics.fmean(float(row[name]) for row in self.rows[-LAST:])

    def lowest(self, name: str) -> float:
        """Return the lowest mean of a metric over so many iterations in a row."""
        values = [float(row[name]) for row in self.rows]
        ends = range(min(LAST, len(values)), len(values) + 1)
        return min(statistics.fmean(values[max(end - LAST, 0) : end]) for end in ends)

    def steps_until(self, name: str, value: float) -> int | None:
        """Return the steps after which a metric's running mean has reached ``value``."""
        for end in range(LAST, len(self.rows) + 1):
            if statistics.fmean(row[name] for row in self.rows[end - LAST : end]) >= value:
                return int(self.rows[end - 1]["global_step"])
        return None


def find_runs(folders: Sequence[Path]) -> list[SeedRun]:
    """Return the runs below ``folders`` that have ended, by setting and seed."""
    paths = sorted(path for folder in folders for path in folder.rglob(SUMMARY_FILE))
    paths = [path for path in paths if (path.parent / METRICS_FILE).is_file()]
    summaries = [read_summary(path) for path in paths]
    overrides = [override_values(summary) for summary in summaries]
    keys = [key for key in varying_keys(overrides) if key != "seed"]
    runs = []
    for path, summary, values in zip(paths, summaries, overrides, strict=True):
        setting = " ".join(f"{key}={values.get(key, 'default')}" for key in keys)
        rows = read_metrics(path.parent / METRICS_FILE)
        runs.append(SeedRun(setting, summary["seed"], summary, rows))
    return sorted(runs, key=lambda run: (run.setting, run.seed))


def by_setting(runs: Sequence[SeedRun]) -> dict[str, list[SeedRun]]:
    """Return the runs of each setting, in their order."""
    settings = dict.fromkeys(run.setting for run in runs)
    return {setting: [run for run in runs if run.setting == setting] for setting in settings}
