"""``python -m benchmarks.pruned_study``: a study with and without pruning, in processes and stacks.

Every variant is the command that a user types, `sweep=epsilon` on CartPole with its confirmation,
in an empty folder; start-up, compilation and files are included. Variants are interleaved; in a
round all use the same seeds for the sampler and for every trial. The sampler depends on results, so
searches with and without pruning sample different points: their results are shown beside the time.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.result_page import publish, table

__all__ = ["Outcome", "Plan", "run_study"]

_ROOT = Path(__file__).resolve().parent.parent
_VARIANTS = {
    "processes, no pruning": ["study.executor=processes", "study/pruner=none"],
    "processes, pruned": ["study.executor=processes"],
    "stacked, no pruning": ["study.executor=stacked", "study/pruner=none"],
    "stacked, pruned": ["study.executor=stacked"],
}
_NUM_FRESH_SEEDS = 5
_CLIPS = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0)  # edges of the table of returns over epsilon


class Plan(NamedTuple):
    """The study that every variant runs."""

    num_trials: int
    num_seeds: int
    num_steps: int  # of a seed
    num_slots: int
    overrides: Sequence[str]

    @property
    def searched_steps(self) -> int:
        """Environment steps of a search that prunes nothing."""
        return self.num_trials * self.num_seeds * self.num_steps


class Outcome(NamedTuple):
    """Result of one study."""

    wall_s: float
    search_s: float  # until the last trial before the confirmation had ended
    env_steps: int  # of the search, all seeds
    num_pruned: int
    best_epsilon: float
    found: float  # what the search said of it
    fresh: float  # what fresh seeds say
    gain: tuple[float, float, float] | None  # over the defaults, with its interval; None for them
    trials: list[tuple[float, float | None, bool]]  # epsilon, return, whether it was kept


def run_study(variant: str, plan: Plan, seed: int, folder: Path) -> Outcome:
    """Run the study to its end in ``folder``, which is empty."""
    command = [
        sys.executable, "-m", "ppo_lab", "sweep=epsilon", "study.name=epsilon", "network=tiny",
        "tracking=local", f"total_steps={plan.num_steps}", f"study.num_trials={plan.num_trials}",
        f"study.num_seeds={plan.num_seeds}", f"study.num_workers={plan.num_slots}",
        f"study.confirm.seeds={_NUM_FRESH_SEEDS}", f"study.seed={seed}",
        *_VARIANTS[variant], *plan.overrides,
    ]  # fmt: skip
    begin_s = time.time()
    with (folder / "shown").open("wb") as shown:
        done = subprocess.run(
            command, cwd=folder, env=_environment(folder), stdout=shown, stderr=shown, check=False
        )
    wall_s = time.time() - begin_s
    assert done.returncode == 0, (folder / "shown").read_text()
    return _read(folder / "outputs" / "studies" / "epsilon", wall_s, begin_s)


def _environment(folder: Path) -> dict[str, str]:
    """Return the environment with one thread, this checkout, and empty caches of compiled code."""
    caches = {"PPO_LAB_CACHE": "programs", "TORCHINDUCTOR_CACHE_DIR": "compiler"}
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(_ROOT),
        **{variable: str(folder / name) for variable, name in caches.items()},
    }


def _read(study: Path, wall_s: float, begin_s: float) -> Outcome:
    results = list(study.glob("trials/*/result.json"))
    told = [json.loads(path.read_text()) for path in results]
    confirmed = json.loads((study / "confirm.json").read_text())
    winner = confirmed["winner"]
    gain = winner["gain"]
    trials = list(_trials(study / "trials.csv"))
    return Outcome(
        wall_s=wall_s,
        search_s=max(path.stat().st_mtime for path in results) - begin_s,
        env_steps=sum(seed["env_steps"] for trial in told for seed in trial["summaries"]),
        num_pruned=sum(not was_kept for *_, was_kept in trials),
        best_epsilon=winner["params"]["epsilon"],
        found=winner["found"],
        fresh=winner["value"],
        gain=None if gain is None else (gain["mean"], gain["low"], gain["high"]),
        trials=trials,
    )


def _trials(path: Path) -> Iterator[tuple[float, float | None, bool]]:
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            value = float(row["final_return"]) if row["final_return"] else None
            yield float(row["epsilon"]), value, row["outcome"] == "kept"


def speed_table(outcomes: Mapping[str, Sequence[Outcome]], plan: Plan) -> str:
    """Return medians over rounds; ratios are within a round, to the first variant."""
    first = next(iter(outcomes.values()))
    rows = []
    for variant, own in outcomes.items():
        whole = [other.wall_s / mine.wall_s for mine, other in zip(own, first)]
        search = [other.search_s / mine.search_s for mine, other in zip(own, first)]
        rows.append(
            [
                variant,
                f"{statistics.median(o.wall_s for o in own):,.0f}",
                f"{statistics.median(o.search_s for o in own):,.0f}",
                f"{statistics.median(whole):.2f}",
                f"{statistics.median(search):.2f} ({min(search):.2f} to {max(search):.2f})",
                f"{statistics.median(o.env_steps for o in own) / plan.searched_steps:.0%}",
                f"{statistics.median(o.num_pruned for o in own):g}",
            ]
        )
    header = [
        "variant", "wall s", "search s", "times as fast, whole", "times as fast, search",
        "env steps trained", "trials pruned",
    ]  # fmt: skip
    return table(header, rows)


def found_table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the best point of each study and its return on fresh seeds."""
    rows = [
        [
            variant,
            number,
            f"{o.best_epsilon:.3g}",
            f"{o.found:.1f}",
            f"{o.fresh:.1f}",
            "the defaults won" if o.gain is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*o.gain),
        ]
        for variant, own in outcomes.items()
        for number, o in enumerate(own, 1)
    ]
    header = ["variant", "round", "best epsilon", "searched", "fresh seeds", "gain over 0.2, 95 %"]
    return table(header, rows)


def epsilon_table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Return the returns over epsilon, of the trials that were not pruned, of all studies."""
    every = [trial for own in outcomes.values() for outcome in own for trial in outcome.trials]
    rows = []
    for low, high in itertools.pairwise(_CLIPS):
        is_last = high == _CLIPS[-1]
        within = [t for t in every if low <= t[0] < high or (is_last and t[0] == high)]
        if not within:
            continue
        kept = [value for _, value, was_kept in within if was_kept and value is not None]
        shown = np.percentile(kept, [25, 50, 75]).tolist() if kept else [math.nan] * 3
        rows.append(
            [
                f"{low:g} to {high:g}",
                len(within),
                len(within) - len(kept),
                *(f"{value:.0f}" for value in shown),
            ]
        )
    quartiles = ["lower quartile", "median", "upper quartile"]
    return table(["epsilon", "trials", "pruned", *quartiles], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the variants."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3, help="of each trial")
    parser.add_argument("--steps", type=int, default=50_000, help="of each seed")
    parser.add_argument("--slots", type=int, default=2, help="processes at a time")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--variants", nargs="+", choices=_VARIANTS, default=list(_VARIANTS))
    parser.add_argument("--set", nargs="+", default=[], help="more overrides, for every variant")
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    plan = Plan(options.trials, options.seeds, options.steps, options.slots, options.set)
    outcomes: dict[str, list[Outcome]] = {variant: [] for variant in options.variants}
    for seed in range(options.rounds):
        for variant, own in outcomes.items():
            with tempfile.TemporaryDirectory() as folder:
                own.append(run_study(variant, plan, seed, Path(folder)))
            print(f"{variant}: {own[-1].wall_s:.1f} s", file=sys.stderr)
    text = (
        f"`sweep=epsilon` on CartPole, {plan.num_trials} trials of {plan.num_seeds} seeds of "
        f"{plan.num_steps:,} steps, `network=tiny`, {plan.num_slots} processes with one thread "
        f"each{''.join(f', `{o}`' for o in plan.overrides)}. Wall time from the command to its "
        "end, compilation and confirmation included. Steps trained are the search's, as a share "
        f"of what it is without pruning. Medians of {options.rounds} interleaved rounds."
    )
    fresh = (
        f"The winner is chosen among the best three and the defaults, on {_NUM_FRESH_SEEDS} fresh "
        "seeds. Its gain over the defaults has Welch's interval, widened for three candidates:"
    )
    clips = "Returns over epsilon, of all studies together (a trial is the mean of its seeds):"
    publish(
        "pruned_study",
        "A study with and without pruning",
        [text, speed_table(outcomes, plan), fresh, found_table(outcomes), clips,
         epsilon_table(outcomes)],
        write=options.write,
    )  # fmt: skip


if __name__ == "__main__":
    main()
