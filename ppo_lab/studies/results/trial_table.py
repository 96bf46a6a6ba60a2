"""One shape of a trial for all views: live table, log lines, trials.csv, the panel and W&B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from ppo_lab.config.study import Aggregate
from ppo_lab.grids.live_table import Row
from ppo_lab.studies.definition.objective import Objective, aggregate_seeds, all_known
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.results.format import params_text, score_text
from ppo_lab.studies.results.statistics import half_width
from ppo_lab.studies.store.outcome import OUTCOME

__all__ = ["TrialSummary", "finished_trials", "read_trial", "trial_table"]
__all__ += ["best_trial", "count_labels", "rank_trials"]

_MEASURED = ("env_steps_per_s", "peak_vram_gib", "wall_time_s")
_LABELS = {
    "finished": "kept",
    "pruned": "pruned",
    "diverged": "diverged",
    "out_of_memory": "OOM",
    "over_budget": "over budget",
    "no_result": "no result",
    "failed": "failed",
}


@dataclass(frozen=True)
class TrialSummary(Row):
    """A trial, running or finished; what is not known yet is None or empty."""

    role: str
    """baseline, start or search."""
    params: Mapping[str, Any]
    took_s: float | None = None
    values: Sequence[float | None] = ()
    """One per objective."""
    seed_values: Sequence[float | None] = ()
    """The first objective's, one per seed."""
    half_width: float | None = None
    """Half the first objective's interval over seeds."""
    violations: Mapping[str, float] = field(default_factory=dict)
    """By constraint; <= 0 is satisfied."""
    seeds: Sequence[Mapping[str, Any]] = ()
    """Per seed: status, final return, objectives, folder."""
    measured: Mapping[str, Any] = field(default_factory=dict)
    """Of the first seed: machine, versions, throughput, memory."""
    attempts: int = 1
    host: str | None = None
    folder: str | None = None

    @property
    def setting(self) -> str:
        """Its parameters, as one line."""
        return params_text(self.params) or "the defaults"

    @property
    def scores(self) -> list[str]:
        """Its values as text, the first with its 95 % interval."""
        half_widths = [self.half_width, *[None] * len(self.values)]
        return [
            score_text(value, half_width) + (" (95 %)" if half_width is not None else "")
            for value, half_width in zip(self.values, half_widths)
            if value is not None
        ]

    def mean_return(self, aggregate: Aggregate) -> tuple[float | None, float | None]:
        """Return the latest return over seeds and half its interval, once every seed has one."""
        known = all_known(self.returns)
        mean = aggregate_seeds(known, aggregate) if known else None
        return mean, half_width(known, aggregate)


def finished_trials(study: Study, objectives: Sequence[Objective]) -> list[TrialSummary]:
    """Return the trials that count towards the study's total, in order of their numbers."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    return [read_trial(t, objectives) for t in study.get_trials(deepcopy=False, states=states)]


def read_trial(
    trial: FrozenTrial, objectives: Sequence[Objective], running: TrialSummary | None = None
) -> TrialSummary:
    """Return the summary of a stored trial; ``running`` is the one it had while it ran here."""
    attrs, first = trial.user_attrs, objectives[0]
    stored = attrs.get(OUTCOME, {})
    status, seeds = stored.get("status", "failed"), stored.get("seeds", ())
    broken = [name for name, violation in trial.constraints.items() if violation > 0]
    label = _LABELS.get(status, trial.state.name.lower())
    seed_values = [seed.get(first.key) for seed in seeds]
    before = running or TrialSummary(trial.number, attrs.get("role", "search"), trial.params)
    steps = min((int(seed.get("env_steps") or 0) for seed in seeds), default=before.step)
    return replace(
        before,
        label="over limit" if label == "kept" and broken else label,
        reason=stored.get("reason") or (f"{', '.join(broken)} is broken" if broken else None),
        num_seeds=before.num_seeds or len(seeds),
        values=tuple(trial.values or stored.get("values") or [None] * len(objectives)),
        seed_values=seed_values,
        half_width=half_width(seed_values, first.aggregate),
        violations=trial.constraints,
        seeds=seeds,
        measured=stored,
        # The last iteration of a finished trial may end short of total_steps.
        step=before.total_steps if status == "finished" else steps,
        # A crashed trial has no seeds: it keeps its last progress.
        returns=[seed.get("final_return") for seed in seeds] or before.returns,
        env_steps_per_s=stored.get("env_steps_per_s") or before.env_steps_per_s,
        vram_gib=stored.get("peak_vram_gib") or before.vram_gib,
        attempts=attrs.get("attempt", 1),
        host=(attrs.get("owner") or {}).get("host"),
        folder=attrs.get("folder"),
    )


def count_labels(trials: Sequence[TrialSummary]) -> dict[str, int]:
    """Return the number of trials of each label, ``kept`` first."""
    counts = Counter(trial.label for trial in trials)
    return {label: counts[label] for label in sorted(counts, key=lambda n: (n != "kept", n))}


def rank_trials(trials: Sequence[TrialSummary], objective: Objective) -> list[TrialSummary]:
    """Return the trials that finished within limits, best first by the first of their values."""
    sign = -1.0 if objective.direction == "maximize" else 1.0
    kept = [trial for trial in trials if trial.label == "kept"]
    scored = [(sign * t.values[0], t) for t in kept if t.values[0] is not None]
    return [trial for _, trial in sorted(scored, key=lambda pair: pair[0])]


def best_trial(
    trials: Sequence[TrialSummary], objectives: Sequence[Objective]
) -> TrialSummary | None:
    """Return the best trial within limits; None if there is none, or several objectives."""
    ranked = rank_trials(trials, objectives[0]) if len(objectives) == 1 else []
    return ranked[0] if ranked else None


def trial_table(plan: Plan, trials: Sequence[TrialSummary]) -> list[dict[str, Any]]:
    """Return one flat row per trial, all with the same columns; None where nothing is known."""
    names = [objective.key for objective in plan.objectives]
    params = [parameter.key for parameter in plan.space.parameters]
    limits = list(dict.fromkeys(name for trial in trials for name in trial.violations))
    return [
        {"trial": t.number, "outcome": t.label, "reason": t.reason, "role": t.role}
        | dict(zip(names, t.values))
        | {f"{names[0]}_half_width": t.half_width, "num_seeds": len(t.seeds)}
        | {key: t.params.get(key) for key in params}
        | {key: t.measured.get(key) for key in _MEASURED}
        | {f"violation of {name}": t.violations.get(name) for name in limits}
        | {"attempts": t.attempts, "host": t.host, "folder": t.folder}
        | {"wandb": " ".join(str(seed["wandb"]) for seed in t.seeds if seed.get("wandb")) or None}
        for t in trials
    ]
