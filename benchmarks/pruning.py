"""How often is the best arm pruned, and how many steps are saved? Synthetic learning curves.

    python -m benchmarks.pruning --studies 20          # a rough table, a minute or two
    python -m benchmarks.pruning --write               # the page in results/: a quarter of an hour

Every rule runs the same studies: the same arms in the same order, with the same noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from scipy.stats import t as student_t

from benchmarks.result_page import publish, table
from ppo_lab.studies.definition.pruning import ConfidencePruner, Spread, report

__all__ = ["Arms", "Outcome", "draw_arms", "run_study"]

Array = NDArray[np.float64]
NUM_MARKS = 20
STARTUP, WARMUP_MARKS = 5, 4  # as conf/study/pruner/median.yaml has them: 0.2 of the marks
GOAL_PRUNED, GOAL_SAVED = 0.05, 0.40
_SETTING = """\
A study tries {arms} arms, one after the other, {seeds} seeds each, under Optuna's median pruner. An
arm's true curve is level * (1 - exp(-x / rise)) at {marks} marks x of (0, 1], level uniform in
[0, 1], rise log-uniform in [0.05, 0.4]. A seed's own level deviates by the noise (a share of the
range of levels) times its arm's fragility, log-normal of shape 0.5, so that arms differ in how much
their seeds do; its rise deviates log-normally by 0.3, and each mark is measured to 0.03. The best
arm is the one whose true curve ends highest. "Return lost" is how far the true end of the arm that
the study picks lies below it. {studies} studies per row: a share of 5 % is known to {error:.1%}
(one standard error)."""


class Arms(NamedTuple):
    """Returns of the trials of one study: K arms, S seeds, M reports."""

    returns: Array  # (K, S, M)
    best: int


class Outcome(NamedTuple):
    """Result of one study under one rule."""

    is_best_pruned: bool
    saved_frac: float  # of all arms' steps
    lost_return: float  # the best arm's true end minus that of the arm the study picks


def draw_arms(seed: int, *, noise: float, num_arms: int, num_seeds: int) -> tuple[Arms, Array]:
    """Return a study's arms and the true final values of their curves (K,)."""
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
    num_reports, scores, pruned = 0, {}, set()
    for arm, curves in enumerate(arms.returns):
        trial = study.ask()
        for mark in range(NUM_MARKS):
            report(trial, mark + 1, curves[:, mark].tolist())
            num_reports += 1
            if mark + 1 < NUM_MARKS and trial.should_prune():
                pruned.add(arm)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            scores[arm] = float(curves[:, -1].mean())
            study.tell(trial, scores[arm])
    chosen = max(scores, key=scores.__getitem__)
    saved_frac = 1 - num_reports / (len(arms.returns) * NUM_MARKS)
    return Outcome(arms.best in pruned, saved_frac, float(ends[arms.best] - ends[chosen]))


class OwnSpread(ConfidencePruner):
    """The t interval of the trial's own seeds, independent of other trials."""

    def half_width(self, own: Spread, others: Sequence[Spread]) -> float:  # noqa: ARG002
        """Return the bound's distance from the mean."""
        return super().half_width(own, [])


class PooledSpread(ConfidencePruner):
    """One pooled standard deviation for all trials, as if all arms had the same variance."""

    def half_width(self, own: Spread, others: Sequence[Spread]) -> float:
        """Return the bound's distance from the mean."""
        pooled = float(np.mean([spread.variance for spread in [own, *others]]))
        dof = (len(others) + 1) * (own.num_seeds - 1)
        return float(student_t.ppf(self.confidence, dof)) * (pooled / own.num_seeds) ** 0.5


def rules() -> dict[str, BasePruner]:
    """Return the rules to compare, by name; studies use the bound of the mean at 90 %."""

    def median() -> BasePruner:
        return MedianPruner(n_startup_trials=STARTUP, n_warmup_steps=WARMUP_MARKS)

    return {
        "never pruned": NopPruner(),
        "plain: the mean": median(),
        "bound of the mean, 80 %": ConfidencePruner(median(), confidence=0.8),
        "bound of the mean, 90 %": ConfidencePruner(median(), confidence=0.9),
        "bound of the mean, 95 %": ConfidencePruner(median(), confidence=0.95),
        "95 %, the trial's own seeds only": OwnSpread(median(), confidence=0.95),
        "95 %, one deviation for all": PooledSpread(median(), confidence=0.95),
    }


def compare(noise: float, *, studies: range, num_arms: int, num_seeds: int) -> list[list[str]]:
    """Return a row of the table for each rule, over ``studies`` by their seeds."""
    outcomes: dict[str, list[Outcome]] = {}
    for seed in studies:
        arms, ends = draw_arms(seed, noise=noise, num_arms=num_arms, num_seeds=num_seeds)
        for name, pruner in rules().items():
            outcomes.setdefault(name, []).append(run_study(arms, ends, pruner))
    rows = []
    for name, results in outcomes.items():
        pruned, saved, lost = (float(np.mean(column)) for column in zip(*results))
        is_met = pruned <= GOAL_PRUNED and saved >= GOAL_SAVED
        rows.append([f"{noise:g}", name, f"{pruned:.1%}", f"{saved:.1%}", f"{lost:.3f}",
                     "met" if is_met else "missed"])  # fmt: skip
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="seed of the first; others: fresh")
    parser.add_argument("--arms", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--write", action="store_true", help="keep the page in results/")
    options = parser.parse_args(argv)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = []
    for noise in options.noise:
        rows += compare(
            noise,
            studies=range(options.first, options.first + options.studies),
            num_arms=options.arms,
            num_seeds=options.seeds,
        )
        print(f"noise {noise:g} done", file=sys.stderr)
    goal = f"goal: <= {GOAL_PRUNED:.0%} pruned, >= {GOAL_SAVED:.0%} saved"
    header = ["noise", "rule", "best arm pruned", "steps saved", "return lost", goal]
    setting = _SETTING.format(
        arms=options.arms,
        seeds=options.seeds,
        marks=NUM_MARKS,
        studies=options.studies,
        error=(0.05 * 0.95 / options.studies) ** 0.5,
    )
    publish("pruning", "Pruning several seeds at once", [setting, table(header, rows)],
            write=options.write)  # fmt: skip


if __name__ == "__main__":
    main()
