"""Read the runs below folders: settings, status, summary, and metrics over environment steps."""

from __future__ import annotations

import functools
import itertools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ppo_lab.runner.stored import stored_summary
from ppo_lab.tracking import read_metrics, read_summary
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE
from ppo_lab.tracking.tables import override_values
from ppo_lab.utils.json_files import flat
from ppo_lab.utils.redaction import printable

__all__ = ["RATIO", "RETURN", "Run", "Series", "find_runs", "natural", "plain"]

RETURN = "charts/episodic_return_last100"
RATIO = "ppo/ratio"
_METRICS = (
    RETURN, "ppo/clip_above_frac", "ppo/clip_below_frac", "ppo/kl_k3", "ppo/entropy", "ppo/epsilon",
)  # fmt: skip
_MOST_ROWS = 120  # read of a run: more than a curve has points
_NORMALIZATION = "advantage_normalization"
_CONFIRMATION = "confirm"  # folder of a study's runs with fresh seeds
_NO_SETTINGS = re.compile(
    r"seed|name|tracking\..*|study.*|checkpoint\..*|num_threads|forecast.*|profile|report"
    r"|vram_.*_gib|env\.(timeout_s|id|random_return|target_return|returns_for)|memory\.strategy"
)
"""Keys that change no number of a run, or that have a name of their own here."""


@dataclass(frozen=True)
class Series:
    """A metric over environment steps."""

    steps: NDArray[np.float64]  # (K,)
    values: NDArray[np.float64]  # (K,), of a histogram (K, bins)
    edges: Sequence[float] = ()


@dataclass(frozen=True)
class Run:
    """A run as its folder shows it, whatever became of it."""

    folder: Path
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]
    """The resolved config by dotted keys, without its seed; ``network``, ``memory`` and
    ``baseline`` are names."""
    series: Mapping[str, Series] = field(default_factory=dict)
    is_confirmation: bool = False

    @cached_property
    def env(self) -> str:
        """Id of the environment."""
        return plain(self.summary.get("env", "unknown environment"))

    @cached_property
    def status(self) -> str:
        """How the run ended; see ``runner.run_record.Status``."""
        return plain(self.summary.get("status", "finished"))

    @property
    def is_finished(self) -> bool:
        """Whether the run enters means."""
        return self.status == "finished" and self.final_return is not None

    @cached_property
    def seed(self) -> str:
        """The run's seed."""
        return plain(self.summary.get("seed", "-"))

    @cached_property
    def final_return(self) -> float | None:
        """The last value of the return curve; None if it is not finite."""
        if (curve := self.series.get(RETURN)) is not None:
            last = float(curve.values[-1])
            return last if np.isfinite(last) else None
        return self.number("final_return")

    def number(self, key: str) -> float | None:
        """Return a finite number of the summary by its dotted key, None if there is none."""
        value: Any = self.summary
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if is_number and np.isfinite(value) else None

    def numbers(self, key: str) -> dict[str, float]:
        """Return the finite numbers of a section of the summary, by their names in it."""
        section: Any = self.summary
        for name in key.split("."):
            section = section.get(name) if isinstance(section, Mapping) else None
        names = section if isinstance(section, Mapping) else ()
        found = {str(name): self.number(f"{key}.{name}") for name in names}
        return {name: value for name, value in found.items() if value is not None}


def find_runs(folders: Sequence[Path], skipped: Callable[[str], object]) -> list[Run]:
    """Return the runs in or below ``folders``, in their natural order.

    ``skipped`` is called with a line for each run whose files cannot be read.

    Raises:
        FileNotFoundError: The folders contain no run.
    """
    files = (
        sorted({p.parent for name in (SUMMARY_FILE, METRICS_FILE) for p in folder.rglob(name)})
        for folder in folders
    )
    found = list(dict.fromkeys(sorted(itertools.chain(*files), key=natural)))
    if not found:
        raise FileNotFoundError(f"no {SUMMARY_FILE} in or below {', '.join(map(str, folders))}")
    runs, configs = [], _Configs()
    for folder in found:
        try:
            runs.append(_read_run(folder, configs))
        except (OSError, ValueError) as error:
            skipped(f"skipped {plain(error)}")
    return runs


def _read_run(folder: Path, configs: _Configs) -> Run:
    path = folder / SUMMARY_FILE
    summary = read_summary(path) if path.exists() else _without_summary(folder, configs)
    overrides = override_values(summary)
    config = configs.read(folder / ".hydra" / "config.yaml")
    if config:
        summary = {"env": config.get("env.id", "unknown environment")} | summary
        summary = {"seed": config.get("seed", "-")} | summary
        settings = {k: v for k, v in config.items() if not _NO_SETTINGS.fullmatch(k)}
    else:  # of a run without Hydra, or not ours
        settings = {k: v for k, v in overrides.items() if k not in ("seed", "name", "env")}
    settings |= {"network": _network(settings, overrides)}
    memory = summary.get("memory")
    settings["memory"] = memory.get("strategy", "-") if isinstance(memory, Mapping) else "-"
    settings["baseline"] = overrides.get("baseline", "auto")
    if settings.get(_NORMALIZATION) == "auto" and settings["memory"] != "critic_free":
        settings[_NORMALIZATION] = "minibatch"  # as the configs of trials have it
    metrics = folder / METRICS_FILE
    has_rows = os.path.lexists(metrics)  # none of a run that was refused
    rows = read_metrics(metrics, most=_MOST_ROWS) if has_rows else []
    is_confirmation = _CONFIRMATION in folder.absolute().parts[-5:-4]
    return Run(folder, summary, settings, _series(rows), is_confirmation)


def _without_summary(folder: Path, configs: _Configs) -> dict[str, Any]:
    """Return the status of a run that has not ended, and what Hydra's files say of it."""
    hydra = configs.read(folder / ".hydra" / "hydra.yaml")
    memory = {"strategy": hydra.get("hydra.runtime.choices.memory", "-")}
    found = {"overrides": hydra.get("hydra.overrides.task", []), "memory": memory}
    return stored_summary(folder) | found


def _network(settings: Mapping[str, Any], overrides: Mapping[str, str]) -> str:
    """Return the name that was typed, else the widths of the layers."""
    if "network" in overrides and not any(key.startswith("network.") for key in overrides):
        return overrides["network"]
    hidden = settings.get("network.hidden")
    return "-".join(map(str, hidden)) if isinstance(hidden, list) else "default"


def _series(rows: Sequence[Mapping[str, Any]]) -> dict[str, Series]:
    found = {}
    for name in _METRICS:
        pairs = [(row["global_step"], row[name]) for row in rows if _is_number(row.get(name))]
        if pairs:
            steps, values = np.array(pairs, dtype=np.float64).T
            found[name] = Series(steps, values)
    if (histograms := _histograms(rows)) is not None:
        found[RATIO] = histograms
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _histograms(rows: Sequence[Mapping[str, Any]]) -> Series | None:
    """Return the ratio's histograms that have the edges of the first; None if there are none."""
    pairs = [(row["global_step"], row[RATIO]) for row in rows if RATIO in row]
    try:
        edges = np.array(pairs[0][1]["edges"], dtype=np.float64).tolist()
        kept = [(step, found["counts"]) for step, found in pairs if found["edges"] == edges]
        steps = np.array([step for step, _ in kept], dtype=np.float64)
        counts = np.array([numbers for _, numbers in kept], dtype=np.float64)
    except (LookupError, TypeError, ValueError):  # none, or not ours
        return None
    if counts.ndim != 2 or counts.shape[1] != len(edges) - 1 or not np.isfinite(counts).all():
        return None
    return Series(steps, counts, edges)


class _Configs:
    """Reads configs; those of a setting's seeds differ in one line, and are parsed once."""

    def __init__(self) -> None:
        self._known: dict[str, Mapping[str, Any]] = {}

    def read(self, path: Path) -> Mapping[str, Any]:
        """Return the values by dotted keys; empty where there is no file.

        Raises:
            ValueError: It is not what a run leaves.
        """
        from ppo_lab.config.foreign import read_plain  # imports torch
        from ppo_lab.utils.errors import ConfigError

        if not path.is_file():
            return {}
        text = path.read_text(encoding="utf-8", errors="replace")
        seed = re.search(r"^seed: (\d+)$", text, re.MULTILINE)
        key = text.replace(seed[0], "") if seed else text
        if key not in self._known:
            try:
                self._known[key] = dict(flat(read_plain(path)))
            except (ConfigError, AttributeError, RecursionError) as error:
                raise ValueError(f"{path}: {error}") from None
        return {**self._known[key], "seed": seed[1]} if seed else self._known[key]


def plain(text: object) -> str:
    """Return ``printable(text)``, faster for the texts of a report, most of which recur."""
    return _printable(str(text))


_printable = functools.lru_cache(1 << 14)(printable)


def natural(text: object) -> list[tuple[int, float, str]]:
    """Return a sort key that orders numbers by value and before words.

    Example:
        >>> sorted(["epsilon none", "epsilon 10", "epsilon 2"], key=natural)
        ['epsilon 2', 'epsilon 10', 'epsilon none']
    """
    words = re.split(r"[\s/,]+", str(text))
    return [(1, 0.0, word) if (n := _parsed(word)) is None else (0, n, "") for word in words]


def _parsed(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None
