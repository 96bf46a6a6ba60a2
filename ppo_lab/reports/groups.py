"""Group runs by their resolved config without the seed, and name groups by what varies."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ppo_lab.reports.loading import Run, natural, plain

__all__ = ["Group", "Section", "make_sections"]

_MOST_LABEL_CHARS = 80
_MOST_COLORED = 12
_OF_NETWORK = "network."
_DEFAULT = "(default)"


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
        identity = tuple(_text(run.settings.get(key, _DEFAULT)) for key in keys)
        settings.setdefault(identity, []).append(run)
    of_network = [key for key in keys if key.startswith(_OF_NETWORK)]
    named: list[tuple[str, dict[str, str], list[Run]]] = []
    for identity, members in settings.items():
        values = dict(zip(keys, identity))
        if of_network:
            values = {k: v for k, v in values.items() if k not in of_network}
            values["network"] = _text(members[0].settings.get("network", _DEFAULT))
        label = ", ".join(f"{key.removeprefix('env.')} {value}" for key, value in values.items())
        named.append((label[:_MOST_LABEL_CHARS] or "all runs", values, members))
    named.sort(key=lambda entry: natural(entry[0]))
    groups = [Group(label, values, members, "") for label, values, members in _unique(named)]
    return Section(env, title, list(groups[0].values), _colored(groups))


def _varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys whose values differ, in order of first appearance."""
    keys = dict.fromkeys(key for values in settings for key in values)
    has_layers = any(key.startswith(_OF_NETWORK) for key in keys)
    return [
        key
        for key in keys
        if len({_text(values.get(key, _DEFAULT)) for values in settings}) > 1
        and not (key == "network" and has_layers)
    ]


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else plain(value)


def _unique(
    named: Sequence[tuple[str, dict[str, str], list[Run]]],
) -> Iterable[tuple[str, dict[str, str], list[Run]]]:
    """Number the labels that are shared, as long ones may be when they are cut."""
    count: dict[str, int] = {}
    for label, values, members in named:
        count[label] = count.get(label, 0) + 1
        yield (f"{label} ({count[label]})" if count[label] > 1 else label), values, members


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
    return [Group(g.label, g.values, g.runs, colors.get(id(g), "")) for g in groups]


def _color(index: int, count: int) -> str:
    hue = 0.61 - 0.52 * (index / (count - 1) if count > 1 else 0.0)  # blue, green, orange
    return _hex(hue, 0.44 if 0.12 < hue < 0.52 else 0.52, 0.62)  # readable on white and on black


def _hex(hue: float, lightness: float, saturation: float) -> str:
    parts = colorsys.hls_to_rgb(hue, lightness, saturation)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
