"""Is the best arm pruned, and what does pruning save? Synthetic, noisy learning curves.

    python -m benchmarks.pruning                       # the table: about 10 minutes on one core
    python -m benchmarks.pruning --studies 20          # a rough one

A study tries arms whose returns a human would call noisy PPO: 3 seeds each, and seeds differ by
more than neighbouring arms do. Each study runs under the plain rule (the mean against Optuna's
threshold) and under the confidence bound, on the same arms and the same noise.

An arm's true curve is ``level * (1 - exp(-x / rise))`` over x in (0, 1]: level uniform in [0, 1],
rise log-uniform in [0.05, 0.4]. A seed's curve has its own level (deviation ``noise`` times the
arm's own fragility, log-normal with shape 0.5), its own rise (log-normal, 0.3), and measurement
noise at each mark (0.03). The best arm is the one whose true curve ends highest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner, MedianPruner
from scipy.stats import t as student_t

from ppo_lab.sweep.pruning import ConfidencePruner, Spread, report

__all__ = ["Arms", "Outcome", "draw_arms", "run_study"]

Array = NDArray[np.float64]
NUM_MARKS = 20
STARTUP = 5  # trials, and the marks before which nothing is pruned: conf/pruner/median.yaml
WARMUP_MARKS = 4


class Arms(NamedTuple):
    """What the trials of one study will see. K arms, S seeds, M marks."""

    returns: Array  # (K, S, M)
    best: int


class Outcome(NamedTuple):
    """One study under one rule."""

    is_best_pruned: bool
    saved_frac: float  # of all arms' steps
    lost_return: float  # the best arm's true end minus that of the arm the study picks


def draw_arms(seed: int, *, noise: float, num_arms: int, num_seeds: int) -> tuple[Arms, Array]:
    """Return a study's arms and the true ends of their curves (K,)."""
    rng = np.random.default_rng(seed)
    x = np.arange(1, NUM_MARKS + 1) / NUM_MARKS
    level = rng.uniform(0, 1, (num_arms, 1, 1))
    rise = np.exp(rng.uniform(np.log(0.05), np.log(0.4), (num_arms, 1, 1)))
    fragility = rng.lognormal(0, 0.5, (num_arms, 1, 1))
    seeds = (num_arms, num_seeds, 1)
    seed_level = level + noise * fragility * rng.normal(size=seeds)
    seed_rise = rise * rng.lognormal(0, 0.3, seeds)
    measured = rng.normal(0, 0.03, (num_arms, num_seeds, NUM_MARKS))
    returns = seed_level * (1 - np.exp(-x / seed_rise)) + measured
    ends = (level * (1 - np.exp(-1 / rise)))[:, 0, 0]
    return Arms(returns, int(ends.argmax())), ends


def run_study(arms: Arms, ends: Array, pruner: BasePruner) -> Outcome:
    """Run every arm as a trial of one study, one after the other."""
    study = optuna.create_study(direction="maximize", pruner=pruner)
    num_marks, scores, pruned = 0, {}, set()
    for arm, curves in enumerate(arms.returns):
        trial = study.ask()
        for mark in range(NUM_MARKS):
            report(trial, mark + 1, curves[:, mark].tolist())
            num_marks += 1
            if mark + 1 < NUM_MARKS and trial.should_prune():
                pruned.add(arm)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            scores[arm] = float(curves[:, -1].mean())
            study.tell(trial, scores[arm])
    chosen = max(scores, key=scores.__getitem__)
    saved_frac = 1 - num_marks / (len(arms.returns) * NUM_MARKS)
    return Outcome(arms.best in pruned, saved_frac, float(ends[arms.best] - ends[chosen]))


class OwnSpread(ConfidencePruner):
    """The t interval of the trial's own seeds, which learns nothing from other trials."""

    def half_width(self, own: Spread, others: Sequence[Spread]) -> float:  # noqa: ARG002
        """Return the bound's distance from the mean."""
        return super().half_width(own, [])


class PooledSpread(ConfidencePruner):
    """One standard deviation for all trials, as if every arm were as steady as the others."""

    def half_width(self, own: Spread, others: Sequence[Spread]) -> float:
        """Return the bound's distance from the mean."""
        pooled = float(np.mean([spread.variance for spread in [own, *others]]))
        dof = (len(others) + 1) * (own.num_seeds - 1)
        return float(student_t.ppf(self.confidence, dof)) * (pooled / own.num_seeds) ** 0.5


def rules(confidence: float) -> dict[str, BasePruner]:
    """Return the rules to compare, by name; the bound is what studies use."""

    def median() -> BasePruner:
        return MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP_MARKS)

    return {
        "plain": median(),
        "bound": ConfidencePruner(median(), confidence=confidence),
        "bound, own seeds only": OwnSpread(median(), confidence=confidence),
        "bound, pooled": PooledSpread(median(), confidence=confidence),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--arms", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--confidence", type=float, default=0.95)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("| noise | rule | best arm pruned | steps saved | return lost |")
    print("|---|---|---|---|---|")
    for noise in args.noise:
        outcomes: dict[str, list[Outcome]] = {}
        for seed in range(args.studies):
            arms, ends = draw_arms(seed, noise=noise, num_arms=args.arms, num_seeds=args.seeds)
            for name, pruner in rules(args.confidence).items():
                outcomes.setdefault(name, []).append(run_study(arms, ends, pruner))
        for name, results in outcomes.items():
            pruned, saved, lost = (float(np.mean(column)) for column in zip(*results))
            print(f"| {noise:g} | {name} | {pruned:.1%} | {saved:.1%} | {lost:.3f} |", flush=True)


if __name__ == "__main__":
    main()
