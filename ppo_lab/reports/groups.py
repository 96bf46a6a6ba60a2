"""Group runs by their resolved config without the seed, and name groups by what varies."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ppo_lab.reports.loading import Run, natural, plain

__all__ = ["Group", "Section", "make_sections"]

_MOST_LABEL_CHARS = 80
_MOST_COLORED = 12
_OF_NETWORK = "network."
_DEFAULT = "(default)"
_FIRST = ("epsilon", "memory", "network", "baseline", "lr")  # in a label


@dataclass(frozen=True)
class Group:
    """Runs of one setting, which differ in their seeds."""

    label: str
    """What distinguishes it, such as ``epsilon 0.2``."""
    values: Mapping[str, str]
    """The settings that vary, as text."""
    runs: Sequence[Run]
    color: str

    @cached_property
    def finished(self) -> list[Run]:
        """The runs that enter means."""
        return [run for run in self.runs if run.is_finished]

    @property
    def returns(self) -> list[float]:
        """The final returns of the finished runs."""
        return [run.final_return for run in self.finished if run.final_return is not None]

    @property
    def mean_return(self) -> float | None:
        """Their mean."""
        return sum(self.returns) / len(self.returns) if self.returns else None


@dataclass(frozen=True)
class Section:
    """What may share an axis: runs in one environment, of a search or of its confirmation."""

    env: str
    title: str
    keys: Sequence[str]
    """The settings that vary."""
    groups: Sequence[Group]

    @property
    def colored(self) -> list[Group]:
        """The groups with a colour: all, or the best of many."""
        return [group for group in self.groups if group.color]


def make_sections(runs: Iterable[Run]) -> list[Section]:
    """Return the runs by environment and setting, settings in their natural order."""
    parts: dict[tuple[str, bool], list[Run]] = {}
    for run in runs:
        parts.setdefault((run.env, run.is_confirmation), []).append(run)
    return [
        _make_section(env, f"{env}: confirmation with fresh seeds" if is_fresh else env, members)
        for (env, is_fresh), members in sorted(parts.items())
    ]


def _make_section(env: str, title: str, runs: Sequence[Run]) -> Section:
    keys = _varying([run.settings for run in runs])
    settings: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        # A network's name is a label: two names of the same layers are one setting.
        identity = tuple(repr(run.settings.get(key, _DEFAULT)) for key in keys)
        settings.setdefault(identity, []).append(run)
    shown = [key for key in keys if not key.startswith(_OF_NETWORK)]
    if len(shown) < len(keys):
        shown.append("network")
    rows = [
        {key: _text(members[0].settings.get(key, _DEFAULT)) for key in shown}
        for members in settings.values()
    ]
    in_label = _distinguishing(rows, shown)
    groups = []
    for values, members in zip(rows, settings.values()):
        texts = (f"{key.rpartition('.')[2]} {values[key]}" for key in in_label)
        label = ", ".join(texts)[:_MOST_LABEL_CHARS] or "all runs"
        groups.append(Group(label, values, members, ""))
    groups.sort(key=lambda group: natural(group.label))
    return Section(env, title, shown, _colored([*_unique(groups)]))


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ, in order of first appearance."""
    keys = dict.fromkeys(key for values in settings for key in values)
    has_layers = any(key.startswith(_OF_NETWORK) for key in keys)
    return [
        key
        for key in keys
        if len({repr(values.get(key, _DEFAULT)) for values in settings}) > 1
        and not (key == "network" and has_layers)
    ]


def _distinguishing(rows: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """Return the keys that tell the rows apart, leaving out those that follow from others.

    Such as the options of a memory strategy, where each strategy has its own.
    """
    first = [key for key in _FIRST if key in keys]
    rest = sorted((key for key in keys if key not in first), key=lambda key: "." in key)
    chosen: list[str] = []
    num_parts = 1
    for key in (*first, *rest):
        parts = {tuple(row[name] for name in (*chosen, key)) for row in rows}
        if len(parts) > num_parts:
            chosen, num_parts = [*chosen, key], len(parts)
    return chosen


def _text(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:_}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return "none" if value is None else plain(value)


def _unique(groups: Sequence[Group]) -> Iterator[Group]:
    """Number the labels that are shared, as rounded and long ones may be."""
    count: Counter[str] = Counter()
    for group in groups:
        count[group.label] += 1
        number = count[group.label]
        yield group if number == 1 else replace(group, label=f"{group.label} ({number})")


def _colored(groups: Sequence[Group]) -> list[Group]:
    """Give the best groups colours in their order: blue to orange, what does not clip in red."""
    ranked = [g for g in groups if g.mean_return is not None] or list(groups)
    ranked.sort(key=lambda group: -(group.mean_return or 0.0))
    chosen = {id(group) for group in ranked[:_MOST_COLORED]}
    if len(groups) <= _MOST_COLORED:
        chosen = {id(group) for group in groups}
    clipped = [g for g in groups if id(g) in chosen and g.values.get("epsilon") != "none"]
    colors = {id(group): _color(i, len(clipped)) for i, group in enumerate(clipped)}
    unclipped = [g for g in groups if id(g) in chosen and id(g) not in colors]
    colors |= {id(g): _hex(0.97 - 0.03 * (i % 4), 0.48, 0.72) for i, g in enumerate(unclipped)}
    return [replace(group, color=colors.get(id(group), "")) for group in groups]


def _color(index: int, count: int) -> str:
    hue = 0.61 - 0.52 * (index / (count - 1) if count > 1 else 0.0)  # blue, green, orange
    return _hex(hue, 0.44 if 0.12 < hue < 0.52 else 0.52, 0.62)  # readable on white and on black


def _hex(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
