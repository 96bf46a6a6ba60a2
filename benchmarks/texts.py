"""``python -m benchmarks.texts PAGE --runs FOLDER ... --survivors FOLDER``: tables of text runs.

Reads what grids of the product have left, such as

    python -m ppo_lab env=text 'seed=range(1,9)' hydra/launcher=stacked -m

so that a grid which was interrupted goes on by itself first (``resume=FOLDER``). Shares and rewards
are means over the last iterations, of texts that the policy samples.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_page import publish, table
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.tracking.tables import override_values, varying_keys

__all__ = ["TextRun", "find_runs", "reward_table", "survivor_table"]

_LAST = 5  # iterations averaged: 640 texts, a share of 0.95 to +- 0.01
_SURVIVES = 0.5  # grammatical share at the end of a run that has kept the language
_TITLES = {
    "text": "Friendly sentences: reward, and what is never rewarded",
    "arithmetic": "Sums: with a critic and without",
}


@dataclass(frozen=True)
class TextRun:
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
        return statistics.fmean(float(row[name]) for row in self.rows[-_LAST:])

    def lowest(self, name: str) -> float:
        """Return the lowest mean of a metric over so many iterations in a row."""
        values = [float(row[name]) for row in self.rows]
        ends = range(min(_LAST, len(values)), len(values) + 1)
        return min(statistics.fmean(values[max(end - _LAST, 0) : end]) for end in ends)

    def steps_until(self, name: str, value: float) -> int | None:
        """Return the steps after which a metric's running mean has reached ``value``."""
        for end in range(_LAST, len(self.rows) + 1):
            if statistics.fmean(row[name] for row in self.rows[end - _LAST : end]) >= value:
                return int(self.rows[end - 1]["global_step"])
        return None


def find_runs(folders: Sequence[Path]) -> list[TextRun]:
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
        runs.append(TextRun(setting, summary["seed"], summary, rows))
    return sorted(runs, key=lambda run: (run.setting, run.seed))


def by_setting(runs: Sequence[TextRun]) -> dict[str, list[TextRun]]:
    """Return the runs of each setting, in their order."""
    settings = dict.fromkeys(run.setting for run in runs)
    return {setting: [run for run in runs if run.setting == setting] for setting in settings}


def reward_table(runs: Sequence[TextRun], quality: str) -> str:
    """Return a row per run: reward before and after, ``quality`` with its lowest, wall time."""
    has_kl = all("text/kl" in run.rows[-1] for run in runs)
    header = ["run", "reward before", "after", quality, "its lowest", "distinct", "tokens"]
    header += ["KL, nats a text", "env. steps"] if has_kl else ["env. steps"]
    rows = []
    for run in runs:
        row: list[object] = [f"{run.setting} seed {run.seed}".strip()]
        row += [f"{run.first('text/reward_mean'):.2f}", f"{run.last('text/reward_mean'):.2f}"]
        row += [f"{function(f'text/{quality}'):.2f}" for function in (run.last, run.lowest)]
        row += [f"{run.last(f'text/{name}'):.2f}" for name in ("distinct_frac", "length_mean")]
        row += [f"{run.last('text/kl'):.2f}"] if has_kl else []
        rows.append([*row, f"{run.rows[-1]['global_step']:,}"])
    return table(header, rows)


def solved_table(runs: Sequence[TextRun], goal: float) -> str:
    """Return a row per setting: exact answers by seed, and when ``goal`` was reached."""
    rows = []
    for setting, its in by_setting(runs).items():
        reached = [run.steps_until("text/exact_frac", goal) for run in its]
        wall_s = [run.rows[-1]["time/elapsed_s"] for run in its]
        rows.append([
            setting or "all alike",
            " ".join(f"{run.first('text/exact_frac'):.2f}" for run in its),
            " ".join(f"{run.last('text/exact_frac'):.3f}" for run in its),
            " ".join("never" if steps is None else f"{steps:,}" for steps in reached),
            " ".join(f"{seconds:.0f}" for seconds in wall_s),
        ])  # fmt: skip
    header = ["setting", "exact before, by seed", "after", f"steps until {goal:g}", "wall s"]
    return table(header, rows)


def survivor_table(runs: Sequence[TextRun]) -> str:
    """Return a row per setting: share of seeds that still write sentences, and each one's share."""
    rows = []
    for setting, its in by_setting(runs).items():
        shares = [run.last("text/grammatical_frac") for run in its]
        alive = sum(share >= _SURVIVES for share in shares)
        reward = statistics.fmean(run.last("text/reward_mean") for run in its)
        by_seed = " ".join(f"{share:.2f}" for share in shares)
        rows.append([setting, f"{alive} of {len(its)}", by_seed, f"{reward:.2f}"])
    return table(["setting", "survivors", "grammatical share by seed", "mean reward"], rows)


def main() -> None:
    """Print a page of tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", choices=sorted(_TITLES))
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    parser.add_argument("--survivors", type=Path, nargs="*", default=[])
    parser.add_argument("--note", default="", help="a sentence on top of the page")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    parts = [args.note] if args.note else []
    if runs := find_runs(args.runs):
        parts.append(f"`python -m ppo_lab {' '.join(runs[0].summary['overrides'])}`, and its like:")
        if args.page == "text":
            parts.append(reward_table(runs, "grammatical_frac"))
        else:
            parts += [solved_table(runs, 0.95), reward_table(runs, "exact_frac")]
    if survivors := find_runs(args.survivors):
        share = f"grammatical share at least {_SURVIVES:g} in the last {_LAST} iterations"
        parts += [f"Survivors ({share}):", survivor_table(survivors)]
    publish(args.page, _TITLES[args.page], parts, write=args.write)


if __name__ == "__main__":
    main()
