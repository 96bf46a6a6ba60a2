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
from pathlib import Path

from benchmarks.result_page import publish, table
from benchmarks.runs import LAST, SeedRun, by_setting, find_runs

__all__ = ["reward_table", "survivor_table"]

_SURVIVES = 0.5  # grammatical share at the end of a run that has kept the language
_TITLES = {
    "text": "Friendly sentences: reward, and what is never rewarded",
    "arithmetic": "Sums: with a critic and without",
}


def reward_table(runs: Sequence[SeedRun], quality: str) -> str:
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


def solved_table(runs: Sequence[SeedRun], goal: float) -> str:
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


def survivor_table(runs: Sequence[SeedRun]) -> str:
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
        share = f"grammatical share at least {_SURVIVES:g} in the last {LAST} iterations"
        parts += [f"Survivors ({share}):", survivor_table(survivors)]
    publish(args.page, _TITLES[args.page], parts, write=args.write)


if __name__ == "__main__":
    main()
