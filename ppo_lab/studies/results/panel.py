"""A study's result on the terminal: best trial, importances, confirmation, and next commands."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.results.confirmation import Confirmed
from ppo_lab.studies.results.files import BEST_FILE, run_command
from ppo_lab.studies.results.format import params_text, score_text
from ppo_lab.studies.results.statistics import CONFIDENCE, Gain
from ppo_lab.studies.results.study_result import StudyResult
from ppo_lab.studies.results.trial_table import count_labels
from ppo_lab.tracking.terminal import format_duration
from ppo_lab.tracking.wide_table import plain_table

__all__ = ["commands", "study_panel"]

_BAR_CELLS = 16
_MOST_IN_FRONT = 20


def study_panel(result: StudyResult) -> RenderableType:
    """Return the panel that shows ``result``."""
    plan, num_finished = result.plan, len(result.trials)
    parts: list[RenderableType] = [_facts(result)]
    if len(plan.objectives) > 1:
        parts.append(_front(result))
    parts += _importance_bars(result)
    if result.confirmed is not None:
        parts.append(_confirmation(result.confirmed))
    is_good = num_finished >= plan.study.num_trials and "kept" in count_labels(result.trials)
    title = Text(f"study {plan.name}: {num_finished} of {plan.study.num_trials} trials")
    border = "green" if is_good else "yellow"
    return Panel(Group(*parts), title=title, border_style=border, expand=False)


def commands(plan: Plan) -> str:
    """Return the study's folder and the commands to copy, one per line."""
    url = masked(plan.url)
    if plan.url.get_backend_name() == "sqlite":
        path, here = Path(plan.url.database or ""), Path.cwd()
        url = f"sqlite:///{path.relative_to(here) if path.is_relative_to(here) else path}"
    lines = [f"folder     {plan.folder}", f"dashboard  optuna-dashboard {shlex.quote(url)}"]
    if (plan.folder / BEST_FILE).is_file():
        lines.append(f"run best   {run_command(plan.folder)}")
    return "\n".join(lines)


def _facts(result: StudyResult) -> Table:
    facts = Table.grid(padding=(0, 2))
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    study, objectives = result.plan.study, result.plan.objectives
    # After a confirmation the search's best is only one of the candidates shown below.
    best_name = "search" if result.confirmed else "best"
    if (best := result.best) is not None:
        over = f" over {study.num_seeds} seeds" if study.num_seeds > 1 else ""
        about = f" {objectives[0].key}{over}, trial #{best.number}"
        facts.add_row(best_name, Text.assemble((best.scores[0], "bold"), about))
        facts.add_row("", Text(best.setting))
    elif len(objectives) == 1:
        facts.add_row(best_name, Text("no trial finished within limits", "red"))
    counts = count_labels(result.trials)
    trials = ", ".join(f"{number} {label}" for label, number in counts.items()) or "none"
    if num_retried := sum(trial.attempts > 1 for trial in result.trials):
        trials += f"  ({num_retried} in more than one attempt)"
    facts.add_row("trials", Text(trials))
    facts.add_row("time", Text(format_duration(result.took_s)))
    return facts


def _front(result: StudyResult) -> Table:
    table = plain_table("\nPareto front")
    table.add_column("trial", justify="right")
    for objective in result.plan.objectives:
        arrow = "↑" if objective.direction == "maximize" else "↓"
        table.add_column(f"{objective.key} {arrow}", justify="right")
    table.add_column("parameters", overflow="fold")
    for trial in result.front[:_MOST_IN_FRONT]:
        values = (score_text(value, None) for value in trial.values)
        table.add_row(f"#{trial.number}", *values, Text(params_text(trial.params)))
    if len(result.front) > _MOST_IN_FRONT:
        blanks = [""] * len(result.plan.objectives)
        table.add_row("...", *blanks, Text("the rest is in trials.csv"))
    return table


def _importance_bars(result: StudyResult) -> Iterator[RenderableType]:
    """Yield a title and bars for each objective with the importances of two or more parameters."""
    for objective, shares in result.importances.items():
        if not shares or len(shares) < 2:
            continue
        yield Text(f"\nwhat mattered for {objective} (PED-ANOVA)", "bold")
        bars = Table.grid(padding=(0, 2))
        for key, share in shares.items():
            bars.add_row(Text(key), Text("█" * round(_BAR_CELLS * share), "cyan"), f"{share:4.0%}")
        yield bars


def _confirmation(confirmed: Confirmed) -> RenderableType:
    """Return the best trials and the defaults over fresh seeds, and the conclusion."""
    table = plain_table(f"\nonce more over {len(confirmed.seeds)} fresh seeds")
    for heading in ("trial", "search", "fresh seeds", "gain"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("parameters", overflow="fold")
    for candidate in (*confirmed.candidates, confirmed.default):
        is_default = candidate is confirmed.default
        fresh, found = candidate.fresh, candidate.found
        table.add_row(
            "defaults" if is_default else f"#{candidate.number}",
            score_text(found.values[0] if found else None, None),
            fresh.scores[0] if fresh.scores else fresh.label,
            "" if is_default else _gain_text(candidate.gain),
            Text(params_text(fresh.params)),
            style="bold" if candidate is confirmed.winner else "",
        )
    return Group(table, Text(_conclusion(confirmed)))


def _gain_text(gain: Gain | None) -> str:
    return f"{gain.mean:+.3g} [{gain.low:+.3g}, {gain.high:+.3g}]" if gain else "-"


def _conclusion(confirmed: Confirmed) -> str:
    winner, default = confirmed.winner, confirmed.default
    if winner is None:
        return (
            "With fresh seeds no trial finished within limits, and neither did the defaults: "
            "best.yaml holds the search's best trial."
        )
    if winner is default:
        return "No trial is better than the defaults: best.yaml holds the defaults."
    name, label = f"trial #{winner.number}", default.fresh.label
    if winner.gain is None or label != "kept":
        return f"Winner: {name}; the defaults are not eligible ({label})."
    if winner.gain.low > 0:
        return f"Winner: {name}, better than the defaults at {CONFIDENCE:.0%} confidence."
    return f"Winner: {name}, but its gain may be chance (its interval includes 0)."
