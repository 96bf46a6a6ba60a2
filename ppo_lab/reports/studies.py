"""The chapter of a study: history, importance, slices, and what was pruned and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ppo_lab.reports.curves import GREY, slug
from ppo_lab.reports.figure import Figure, escaped, rounded
from ppo_lab.reports.loading import plain
from ppo_lab.reports.page import Chapter, TableRows
from ppo_lab.utils.errors import ConfigError

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from sqlalchemy.engine import URL

    from ppo_lab.studies.results.trial_table import TrialSummary

__all__ = ["find_studies", "study_chapter"]

_SPACE_FILE = "space.yaml"
_COLORS = {"kept": "#4c8dff", "over limit": "#e0b400", "pruned": "#ff9f40"}
_BAD = "#e5484d"
_MOST_LINES = 200  # trials of parallel coordinates and of intermediate values
_MOST_PARAMETERS = 12


@dataclass(frozen=True)
class _Trials:
    """The finished trials of a study, as the storage and as our tables have them."""

    name: str
    objectives: Mapping[str, str]
    """Key to direction."""
    stored: Sequence[FrozenTrial]
    read: Sequence[TrialSummary]
    shares: Mapping[str, Mapping[str, float] | None]

    @property
    def key(self) -> str:
        """The first objective."""
        return next(iter(self.objectives))

    @property
    def is_maximised(self) -> bool:
        """Whether more of it is better."""
        return self.objectives[self.key] == "maximize"

    @property
    def valued(self) -> list[TrialSummary]:
        """The trials that have a value of the first objective."""
        return [trial for trial in self.read if trial.values and trial.values[0] is not None]


def find_studies(folders: Sequence[Path]) -> list[Path]:
    """Return the folders of studies in or below ``folders``, without those of confirmations."""
    found = {path.parent for folder in folders for path in folder.rglob(_SPACE_FILE)}
    return sorted(found)


def study_chapter(
    folder: Path, storage: URL | None, skipped: Callable[[str], object]
) -> Chapter | None:
    """Return the chapter of the study in ``folder``; None if its trials cannot be read."""
    try:
        trials = _read(folder, storage)
    except Exception as error:  # SQLAlchemy's and Optuna's: another version, a damaged file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        skipped(f"skipped the study in {plain(folder)}: {plain(reason)}")
        return None
    if not trials.read:
        return None
    from ppo_lab.studies.results.trial_table import count_labels

    makers = (_history, _importance, _slices, _parallel, _intermediate, _pareto)
    where = slug(trials.name)
    figures = [figure for make in makers for figure in make(trials, where)]
    counts = ", ".join(f"{n} {label}" for label, n in count_labels(trials.read).items())
    goals = ", ".join(f"{direction} {key}" for key, direction in trials.objectives.items())
    facts = f"{len(trials.read)} trials: {counts}; {goals}"
    return Chapter(f"Study {trials.name}", facts, figures, tables=[_table(trials)])


def _read(folder: Path, shared: URL | None) -> _Trials:
    import optuna
    from optuna.storages import RDBStorage
    from optuna.trial import TrialState

    from ppo_lab.config.foreign import read_plain
    from ppo_lab.config.study import Aggregate
    from ppo_lab.studies.definition.objective import Objective
    from ppo_lab.studies.definition.storage_url import storage_url
    from ppo_lab.studies.results.trial_table import finished_trials
    from ppo_lab.utils.json_files import parse_object, read_bounded

    space = read_plain(folder / _SPACE_FILE)
    objectives = {str(key): str(value) for key, value in dict(space["objectives"]).items()}
    database, name = folder / "study.db", str(space["name"])
    if database.is_file():
        url = f"sqlite:///file:{database.resolve()}?mode=ro&uri=true"
    else:
        elsewhere = shared or storage_url("auto", folder)
        if elsewhere == storage_url(f"sqlite:///{database}", folder):  # which is not there
            raise ConfigError("study.storage", "auto", "set PPO_LAB_STORAGE to the study's storage")
        url = elsewhere.render_as_string(hide_password=False)
    storage = RDBStorage(url, skip_table_creation=True)
    try:
        study = optuna.load_study(study_name=name, storage=storage)
        aggregate = Aggregate(space.get("aggregate", "mean"))
        goals = [Objective(key, way, aggregate) for key, way in objectives.items()]
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        stored = study.get_trials(deepcopy=False, states=states)
        read = finished_trials(study, goals)
    finally:
        storage.remove_session()
        storage.engine.dispose()
    importance = folder / "importance.json"
    content = read_bounded(importance, 1 << 20) if importance.exists() else b"{}"
    shares = parse_object(content, importance)
    return _Trials(name, objectives, stored, read, shares)


def _color(label: str) -> str:
    return _COLORS.get(label, _BAD)


def _about(trial: TrialSummary) -> str:
    text = f"#{trial.number} {trial.label}: {trial.setting}"
    return escaped(plain(f"{text}; {trial.reason}" if trial.reason else text))


def _dots(
    name: str,
    color: str | list[int],
    points: Sequence[tuple[Any, Any, str]],
    **more: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Return a trace of markers for points (x, y, text)."""
    x, y, texts = (list(part) for part in zip(*points))
    return {
        "type": "scatter", "mode": "markers", "name": escaped(name), "x": x, "y": rounded(y),
        "text": texts, "marker": {"color": color, "size": 8, **more},
        "hovertemplate": "%{text}<br>%{y:,.4g}<extra></extra>",
    }  # fmt: skip


def _history(trials: _Trials, where: str) -> list[Figure]:
    valued = trials.valued
    if not valued:
        return []
    traces = []
    for label in dict.fromkeys(trial.label for trial in valued):
        points = [(t.number, t.values[0], _about(t)) for t in valued if t.label == label]
        traces.append(_dots(label, _color(label), points))
    kept = [trial for trial in valued if trial.label == "kept"]
    if kept:
        values = np.array([trial.values[0] for trial in kept], dtype=np.float64)
        best = (np.maximum if trials.is_maximised else np.minimum).accumulate(values)
        line = {"color": GREY, "shape": "hv", "width": 2}
        traces.append({
            "type": "scatter", "mode": "lines", "name": "best so far", "line": line,
            "x": [trial.number for trial in kept], "y": rounded(best),
        })  # fmt: skip
    note = "Each finished trial, and the best so far of those within limits."
    x = {"title": "trial", "tickformat": ",d"}
    return [Figure(f"history-{where}", "History", note, traces, x, {"title": trials.key})]


def _importance(trials: _Trials, where: str) -> list[Figure]:
    figures = []
    for key, shares in trials.shares.items():
        if not isinstance(shares, Mapping) or len(shares) < 2:
            continue
        names = list(shares)[:_MOST_PARAMETERS]
        bar = {
            "type": "bar", "orientation": "h", "marker": {"color": _COLORS["kept"]},
            "x": rounded(shares[name] for name in names), "y": [escaped(name) for name in names],
        }  # fmt: skip
        y = {"type": "category", "autorange": "reversed", "automargin": True}
        note = f"PED-ANOVA: the share in reaching the best tenth of trials by {key}."
        x = {"title": "share", "tickformat": ".0%", "rangemode": "tozero"}
        name = f"importance-{slug(key)}-{where}"
        more: dict[str, Any] = {"showlegend": False}
        title, height = f"Importance for {key}", 140 + 34 * len(names)
        figures.append(Figure(name, title, note, [bar], x, y, more, height, is_small=True))
    return figures


def _parameters(trials: _Trials) -> list[str]:
    return list(dict.fromkeys(key for t in trials.read for key in t.params))[:_MOST_PARAMETERS]


def _axis_of(key: str, trials: _Trials) -> tuple[bool, bool]:
    """Return whether a parameter is a number, and whether it was searched on a log scale."""
    values = [t.params[key] for t in trials.read if key in t.params]
    is_number = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    found = (t.distributions.get(key) for t in trials.stored)
    is_log = any(getattr(distribution, "log", False) for distribution in found)
    return is_number, is_log and is_number and all(value > 0 for value in values)


def _slices(trials: _Trials, where: str) -> list[Figure]:
    figures = []
    for key in _parameters(trials):
        is_number, is_log = _axis_of(key, trials)
        valued = [t for t in trials.valued if key in t.params]
        if len({str(trial.params[key]) for trial in valued}) < 2:
            continue
        points = [
            (t.params[key] if is_number else escaped(t.params[key]), t.values[0], _about(t))
            for t in valued
        ]
        bar = {"thickness": 10, "title": {"text": "trial"}}
        numbers = [trial.number for trial in valued]
        more = {"colorscale": "Viridis", "showscale": True, "colorbar": bar}
        dots = _dots("trials", numbers, points, **more)
        digits = {"tickformat": ".3~g"} if is_log else {}  # else "5" stands for 0.05
        kind = "log" if is_log else "linear" if is_number else "category"
        figures.append(Figure(f"slice-{slug(key)}-{where}", f"{trials.key} by {key}", "", [dots],
                              {"title": key, "type": kind} | digits, {"title": trials.key},
                              {"showlegend": False}, 320, is_small=True))  # fmt: skip
    return figures


def _parallel(trials: _Trials, where: str) -> list[Figure]:
    """Return lines over the parameters, each scaled to [0, 1], in the colour of their value."""
    keys = _parameters(trials)
    valued = [t for t in trials.valued if all(key in t.params for key in keys)][:_MOST_LINES]
    if len(keys) < 2 or len(valued) < 2:
        return []
    columns = [_scaled(key, [t.params[key] for t in valued], trials) for key in keys]
    columns.append(_scaled(trials.key, [t.values[0] for t in valued], trials))
    scores = np.array(columns[-1][0]) if trials.is_maximised else 1 - np.array(columns[-1][0])
    names = [escaped(key) for key in (*keys, trials.key)]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter", "mode": "lines", "x": names, "showlegend": False,
            "y": rounded(column[0][i] for column in columns),
            "text": [_about(valued[i])] * len(names),
            "line": {"color": _blend(scores[i]), "width": 1.5},
            "hovertemplate": "%{text}<extra></extra>",
        }
        for i in np.argsort(scores)
    ]  # fmt: skip
    notes = [
        {"x": name, "y": y, "text": escaped(text), "showarrow": False, "yshift": shift}
        for name, (_, low, high) in zip(names, columns)
        for y, text, shift in ((0, low, -12), (1, high, 12))
    ]
    layout = {"annotations": notes, "showlegend": False}
    y = {"range": [-0.12, 1.12], "showticklabels": False, "showgrid": False, "zeroline": False}
    note = "A line per trial with a value; the better, the more orange. Axes run from low to high."
    return [Figure(f"parallel-{where}", "Parallel coordinates", note, traces,
                   {"type": "category"}, y, layout, 420)]  # fmt: skip


def _scaled(key: str, values: Sequence[Any], trials: _Trials) -> tuple[list[float], str, str]:
    """Return values in [0, 1], and what 0 and 1 stand for; of choices in their order."""
    is_number, is_log = (True, False) if key == trials.key else _axis_of(key, trials)
    if not is_number:
        names = sorted({str(value) for value in values})
        last = max(len(names) - 1, 1)
        return [names.index(str(value)) / last for value in values], names[0], names[-1]
    numbers = [math.log(value) if is_log else float(value) for value in values]
    low, high = min(numbers), max(numbers)
    width = (high - low) or 1.0
    texts = [f"{value:,.3g}" for value in (min(values), max(values))]
    return [(number - low) / width for number in numbers], texts[0], texts[1]


def _blend(score: float) -> str:
    """Return a colour from grey-blue (0) to orange (1)."""
    ends = ((118, 134, 168), (255, 122, 24))
    return "#" + "".join(f"{round(a + (b - a) * score):02x}" for a, b in zip(*ends))


def _intermediate(trials: _Trials, where: str) -> list[Figure]:
    by_number = {trial.number: trial for trial in trials.read}
    traces = []
    seen: set[str] = set()
    for stored in trials.stored[:_MOST_LINES]:
        reports = sorted(stored.intermediate_values.items())
        trial = by_number[stored.number]
        if not reports:
            continue
        is_kept = trial.label == "kept"
        steps, values = zip(*reports)
        color = _color(trial.label)
        traces.append({
            "type": "scatter", "mode": "lines" if is_kept else "lines+markers", "x": list(steps),
            "y": rounded(values), "name": escaped(trial.label), "legendgroup": trial.label,
            "showlegend": trial.label not in seen, "text": [_about(trial)] * len(steps),
            "line": {"color": color, "width": 1}, "opacity": 0.6 if is_kept else 0.9,
            "marker": {"color": color, "symbol": "x", "size": [0] * (len(steps) - 1) + [9]},
            "hovertemplate": "%{text}<br>%{y:,.4g}<extra></extra>",
        })  # fmt: skip
        seen.add(trial.label)
    if not traces:
        return []
    note = "What the pruner saw; a cross where a trial was stopped. Hover for why."
    x = {"title": "environment steps", "tickformat": "~s"}
    y = {"title": "mean return over the trial's seeds"}
    return [Figure(f"intermediate-{where}", "Intermediate values", note, traces, x, y)]


def _pareto(trials: _Trials, where: str) -> list[Figure]:
    if len(trials.objectives) < 2:
        return []
    first, second = list(trials.objectives)[:2]
    points: dict[str, list[tuple[Any, Any, str]]] = {}
    for trial in trials.read:
        if len(trial.values) > 1 and None not in trial.values[:2]:
            point = (trial.values[1], trial.values[0], _about(trial))
            points.setdefault(trial.label, []).append(point)
    traces = [_dots(label, _color(label), rows) for label, rows in points.items()]
    note = "The first two objectives of every trial that has both."
    return [Figure(f"objectives-{where}", "Objectives", note, traces, {"title": second},
                   {"title": first})] if traces else []  # fmt: skip


def _table(trials: _Trials) -> TableRows:
    keys = _parameters(trials)
    columns = ["trial", "outcome", *trials.objectives, "95 % ±", *keys, "steps", "reason"]
    rows = []
    for trial in trials.read:
        values = [*trial.values, *[None] * len(trials.objectives)][: len(trials.objectives)]
        params = [_cell(trial.params.get(key)) for key in keys]
        reason = plain(trial.reason or "")
        rows.append([trial.number, trial.label, *values, trial.half_width, *params,
                     trial.step or None, reason])  # fmt: skip
    return TableRows("Trials", columns, rows)


def _cell(value: object) -> Any:  # noqa: ANN401
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number or value is None else plain(value)
