"""A study's result on the screen: its best trial, what mattered, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from optuna.study import Study
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.results.best_config import BEST_FILE, run_command
from ppo_lab.studies.results.confirmation import Candidate, Confirmed
from ppo_lab.studies.results.files import importances
from ppo_lab.studies.results.format import number_text, params_text, plain_table, score_text
from ppo_lab.studies.results.statistics import CONFIDENCE, pareto
from ppo_lab.studies.results.trial_table import TrialRow, best_row, finished_trials, labels
from ppo_lab.tracking.terminal import format_duration

__all__ = ["commands", "study_panel"]

_BAR_CELLS = 16
_MOST_IN_FRONT = 20


def study_panel(plan: Plan, study: Study, confirmed: Confirmed | None) -> RenderableType:
    """Return what a study came to."""
    rows = finished_trials(study, plan.objectives)
    counts = labels(rows)
    came_to = ", ".join(f"{number} {name}" for name, number in counts.items())
    retried = sum(row.attempts > 1 for row in rows)
    if retried:
        came_to += f"  ({retried} in more than one attempt)"
    # With a confirmation the search's best is but a candidate, named below.
    parts: list[RenderableType] = [
        _facts(plan, rows, came_to, _took_s(study), "search" if confirmed else "best")
    ]
    if len(plan.objectives) > 1:
        parts.append(_front(plan, study))
    parts += list(_importance_bars(importances(plan, study)))
    if confirmed is not None:
        parts.append(_confirmation(confirmed))
    is_whole = len(rows) >= plan.study.num_trials
    title = Text(f"study {plan.name}: {len(rows)} of {plan.study.num_trials} trials")
    border = "green" if is_whole and counts.get("kept") else "yellow"
    return Panel(Group(*parts), title=title, border_style=border, expand=False)


def commands(plan: Plan) -> str:
    """Return where to look next, a line each, to be copied."""
    lines = [f"folder     {plan.folder}"]
    url = masked(plan.url)
    if plan.url.get_backend_name() == "sqlite":
        url = f"sqlite:///{_short(Path(plan.url.database or ''))}"
    lines.append(f"dashboard  optuna-dashboard {shlex.quote(url)}")
    if (plan.folder / BEST_FILE).is_file():
        lines.append(f"run best   {run_command(plan.folder)}")
    return "\n".join(lines)


def _short(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _facts(
    plan: Plan, rows: Sequence[TrialRow], came_to: str, took_s: float, best_name: str
) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    best = best_row(rows, plan.objectives[0]) if len(plan.objectives) == 1 else None
    if best is not None:
        objective = plan.objectives[0]
        over = f" over {plan.study.num_seeds} seeds" if plan.study.num_seeds > 1 else ""
        score = score_text(best.values[0], best.half_width)
        facts.add_row(
            best_name,
            Text.assemble((f"{score}", "bold"), f" {objective.key}{over}, trial #{best.number}"),
        )
        facts.add_row("", Text(params_text(best.params) or "the defaults"))
    elif len(plan.objectives) == 1:
        facts.add_row(best_name, Text("no trial ended well", "red"))
    facts.add_row("trials", Text(came_to or "none"))
    facts.add_row("time", Text(format_duration(took_s)))
    return facts


def _front(plan: Plan, study: Study) -> Table:
    """Return the trials that no other beats in every objective."""
    table = plain_table("\nPareto front")
    table.add_column("trial", justify="right")
    for objective in plan.objectives:
        arrow = "↑" if objective.direction == "maximize" else "↓"
        table.add_column(f"{objective.key} {arrow}", justify="right")
    table.add_column("parameters", overflow="fold")
    front = pareto(study)
    for row in front[:_MOST_IN_FRONT]:
        values = (number_text(value) for value in row.values)
        table.add_row(f"#{row.number}", *values, Text(params_text(row.params)))
    if len(front) > _MOST_IN_FRONT:
        table.add_row("...", *("" for _ in plan.objectives), Text("the rest is in trials.csv"))
    return table


def _importance_bars(found: Mapping[str, Mapping[str, float] | None]) -> Iterator[RenderableType]:
    """Return a title and a block of bars for each objective whose importances are known."""
    for objective, shares in found.items():
        if not shares or len(shares) < 2:  # of one parameter there is nothing to tell
            continue
        yield Text(f"\nwhat mattered for {objective} (PED-ANOVA)", "bold")
        bars = Table.grid(padding=(0, 2))
        for key, share in shares.items():
            bars.add_row(Text(key), Text("█" * round(_BAR_CELLS * share), "cyan"), f"{share:4.0%}")
        yield bars


def _confirmation(confirmed: Confirmed) -> RenderableType:
    """Return the best trials and the defaults over fresh seeds, and what that means."""
    table = plain_table(f"\nonce more over {len(confirmed.seeds)} fresh seeds")
    for heading in ("trial", "search", "fresh seeds", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for candidate in (*confirmed.candidates, confirmed.default):
        is_default = candidate is confirmed.default
        table.add_row(
            "defaults" if is_default else f"#{candidate.trial}",
            "-" if candidate.found is None else number_text(candidate.found),
            score_text(candidate.value, candidate.half_width)
            if candidate.value is not None
            else candidate.status,
            "" if is_default else _gain_text(candidate),
            Text(params_text(candidate.params)),
            style="bold" if candidate is confirmed.winner else "",
        )
    return Group(table, Text(_verdict(confirmed)))


def _gain_text(candidate: Candidate) -> str:
    gain = candidate.gain
    if gain is None:
        return "-"
    return f"{gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]"


def _verdict(confirmed: Confirmed) -> str:
    winner, default = confirmed.winner, confirmed.default
    if winner is None:
        return (
            "With fresh seeds nothing ran well and within limits, the defaults neither: "
            "best.yaml holds the search's best trial."
        )
    if winner is default:
        return "No trial is better than the defaults: best.yaml holds the defaults."
    name = f"trial #{winner.trial}"
    if winner.gain is None or default.status != "kept":
        return f"Winner: {name}; the defaults are no choice ({default.status})."
    if winner.gain.low > 0:
        return f"Winner: {name}, better than the defaults at {CONFIDENCE:.0%} confidence."
    return f"Winner: {name}; that it beats the defaults may be chance (the gain's interval has 0)."


def _took_s(study: Study) -> float:
    """Return the time from the first trial's start to the last one's end, pauses included."""
    trials = study.get_trials(deepcopy=False)
    begun = [trial.datetime_start for trial in trials if trial.datetime_start]
    ended = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    if not (begun and ended):
        return 0.0
    return max((max(ended) - min(begun)).total_seconds(), 0.0)  # by clocks that may be set back
