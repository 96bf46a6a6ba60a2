"""Objectives and constraints of a study, computed from the summaries of a trial's seeds."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.config.study import Aggregate
from ppo_lab.utils.errors import ConfigError, did_you_mean

__all__ = ["Constraint", "Objective", "parse_constraints", "parse_objectives", "quantity"]
__all__ += ["aggregate_seeds", "all_known", "check_measured", "forecast_limit_gib", "is_forecast"]
__all__ += ["is_measured"]

_SHORT = {  # short name to dotted key of the summary
    "peak_vram_gib": "memory.measured.reserved_gib",
    "peak_host_gib": "memory.measured.host_gib",
    "forecast_vram_gib": "memory.forecast.total_gib",
}
_PHASES = (
    "build", "compile", "env", "rollout", "evaluation", "advantages", "update", "diagnostics",
    "record", "eval",
)  # fmt: skip
_EVALUATED = ("final_eval_return", "best_eval_return")
_CATEGORIES = (
    "weights", "gradients", "optimizer", "activations", "logits", "cache", "rollout",
    "environment", "workspace",
)  # fmt: skip
_NETWORKS = ("actor", "critic", "trunk")
_PEAK = [
    "peak_gib", "host_pinned_gib", "host_pageable_gib",
    *(f"categories_gib.{category}" for category in _CATEGORIES),
    *(f"networks_gib.{category}_{net}" for category in _CATEGORIES
      for net in (*_NETWORKS, "reference")),
    *(f"phases_gib.{phase}" for phase in _PHASES),
]  # fmt: skip
_SECTIONS: dict[str, Sequence[str]] = {
    "num_parameters": _NETWORKS,
    "text": [
        "reward_mean", "reward_with_kl", "kl", "kl_k3", "kl_coef", "length_mean", "distinct_frac",
        "grammatical_frac", "exact_frac",
    ],
    "stack": ["num_lanes", "lane", "busy_frac"],
    "time": [f"{phase}_s" for phase in _PHASES],
    "memory.measured": [
        "host_gib", "allocated_gib", "reserved_gib", *(f"phases_gib.{phase}" for phase in _PHASES),
    ],
    "memory.ledger": _PEAK,
    "memory.forecast": [
        *_PEAK, "workspace_gib", "context_gib", "allocated_gib", "total_gib",
        "h2d_bytes_per_iteration", "d2h_bytes_per_iteration",
    ],
    "pcie": [
        "pageable_bytes",
        *(f"{way}_{of}" for way in ("h2d", "d2h")
          for of in ("bytes", "limit_gb_per_s", "gb_per_s", "limit_frac")),
    ],
    "perf": ["kernel_busy_frac", "exposed_copy_frac", "idle_no_copy_frac", "window_s"],
}  # fmt: skip
_KNOWN = frozenset(
    ["final_return", "best_return", "auc_return", "env_steps", "num_episodes", "env_steps_per_s",
     "wall_time_s", "epsilon", *_EVALUATED, *_SHORT]
    + [f"{section}.{name}" for section, names in _SECTIONS.items() for name in names]
)  # fmt: skip
"""The numbers of a run's summary; some of them only on CUDA, in a stack or of a profiled run."""
_OF_A_PROCESS = (
    "env_steps_per_s", "wall_time_s", "memory.measured.", "memory.ledger.", "time.", "pcie.",
    "perf.",
)  # fmt: skip
_ON_CUDA = ("memory.measured.allocated", "memory.measured.reserved", "memory.measured.phases",
            "perf.")  # fmt: skip
_SMALLER_IS_BETTER = {"peak_vram_gib", "peak_host_gib", "forecast_vram_gib", "wall_time_s"}
_DIRECTIONS = ("maximize", "minimize")
_NAME = r"[A-Za-z_][A-Za-z0-9_.]*"
_FEWEST_FOR_IQM = 4  # of fewer seeds none is left out


@dataclass(frozen=True)
class Objective:
    """A number of a run's summary to maximize or minimize."""

    key: str
    direction: str
    aggregate: Aggregate

    def value(self, summaries: Sequence[Mapping[str, Any]]) -> float | None:
        """Return the aggregate over the seeds' summaries; None if a seed lacks the number."""
        values = _of_seeds(summaries, self.key)
        return aggregate_seeds(values, self.aggregate) if values else None


@dataclass(frozen=True)
class Constraint:
    """A limit on a number of a run's summary: ``key <= limit`` or ``key >= limit``."""

    text: str
    """The limit without spaces; its name in Optuna."""
    key: str
    sign: float
    """+1 for an upper limit, -1 for a lower one."""
    limit: float

    def violation(self, summaries: Sequence[Mapping[str, Any]]) -> float | None:
        """Return by how much the worst seed exceeds the limit; <= 0 if none does.

        None if a seed lacks the number.
        """
        values = _of_seeds(summaries, self.key)
        return max((self.sign * (value - self.limit) for value in values), default=None)


def _of_seeds(summaries: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    """Return the number ``key`` of each seed's summary; empty if a seed lacks it."""
    return all_known([quantity(summary, key) for summary in summaries])


def all_known(values: Sequence[float | None]) -> list[float]:
    """Return the values of all seeds; empty unless every one is known and finite."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return known if len(known) == len(values) else []


def quantity(summary: Mapping[str, Any], key: str) -> float | None:
    """Return the finite number ``key`` (dotted where nested) of a summary, or None."""
    value: Any = summary
    for part in _path(key).split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _path(key: str) -> str:
    return _SHORT.get(key, key)


def is_forecast(key: str) -> bool:
    """Return whether ``key`` is in a summary only where memory was forecast."""
    return _path(key).startswith("memory.forecast.")


def is_measured(key: str) -> bool:
    """Return whether ``key`` is measured per process, so that a lane of a stack has none."""
    return _path(key).startswith(_OF_A_PROCESS)


def forecast_limit_gib(constraints: Sequence[Constraint]) -> float | None:
    """Return the limit on forecast device memory, in GiB; None for no limit."""
    path = _path("forecast_vram_gib")
    return min((c.limit for c in constraints if c.sign > 0 and _path(c.key) == path), default=None)


def aggregate_seeds(values: Sequence[float], aggregate: Aggregate) -> float:
    """Return the mean of ``values``, or their interquartile mean (IQM, arXiv:2108.13264).

    A quarter is rounded down, as in rliable: of 4 to 7 values one at each end is left out.

    >>> aggregate_seeds([1.0, 2.0, 4.0, 93.0], Aggregate.iqm)
    3.0
    """
    if aggregate is Aggregate.iqm:
        num_cut = len(values) // 4
        values = sorted(values)[num_cut : len(values) - num_cut]
    return statistics.fmean(values)


def parse_objectives(
    objective: str | Sequence[str],
    direction: str | Sequence[str] | None,
    aggregate: Aggregate,
    num_seeds: int,
) -> tuple[Objective, ...]:
    """Return a study's objectives; without ``direction`` each has its usual one."""
    keys = _listed("study.objective", objective)
    if len(set(keys)) < len(keys):
        raise ConfigError("study.objective", objective, "must name each quantity once")
    for key in keys:
        _check_key("study.objective", key, key)
    usual = ["minimize" if key in _SMALLER_IS_BETTER else "maximize" for key in keys]
    directions = usual if direction is None else _listed("study.direction", direction)
    if len(directions) != len(keys):
        allowed = f"must be one for each of {len(keys)} objectives"
        raise ConfigError("study.direction", direction, allowed)
    if stray := next((d for d in directions if d not in _DIRECTIONS), None):
        raise ConfigError("study.direction", stray, "must be maximize or minimize")
    if aggregate is Aggregate.iqm and num_seeds < _FEWEST_FOR_IQM:
        allowed = f"needs study.num_seeds={_FEWEST_FOR_IQM} or more; of fewer it equals the mean"
        raise ConfigError("study.aggregate", aggregate.value, allowed)
    return tuple(Objective(key, way, aggregate) for key, way in zip(keys, directions))


def parse_constraints(texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Return the constraints ``key <= number`` or ``key >= number``.

    >>> parse_constraints(["peak_vram_gib <= 8"])[0].text
    'peak_vram_gib<=8'
    """
    constraints = tuple(map(_parse_constraint, texts))
    if len({constraint.text for constraint in constraints}) < len(constraints):
        raise ConfigError("study.constraints", ", ".join(texts), "must name each limit once")
    return constraints


def check_measured(
    objectives: Sequence[Objective], constraints: Sequence[Constraint], config: Config
) -> None:
    """Raise ``ConfigError`` for a quantity that no run like ``config`` has in its summary."""
    keys = [("study.objective", objective.key) for objective in objectives]
    keys += [("study.constraints", constraint.key) for constraint in constraints]
    for where, key in keys:
        if (needed := _needed(key, config)) is not None:
            raise ConfigError(where, key, needed)


def _needed(key: str, config: Config) -> str | None:
    """Return why the summary of a run like ``config`` has no ``key``; None if it has."""
    path, is_cuda = _path(key), config.torch_device.type == "cuda"
    if path.startswith(_ON_CUDA) and not is_cuda:
        return "is measured on CUDA devices only; forecast_vram_gib is known everywhere"
    if path.startswith("memory.ledger.") and not config.is_profiled:
        return "is counted with profile=always only"
    if path.startswith("text.") and not config.env.whole_episodes:
        return "is known of texts only, such as env=text"
    if path in _EVALUATED and not config.eval_every:
        return "is known of evaluated policies: add eval_every=10"
    return None


def _parse_constraint(text: str) -> Constraint:
    match = re.fullmatch(rf"\s*({_NAME})\s*(<=|>=)\s*(\S+)\s*", text)
    key, comparison, number = match.groups() if match else ("", "", "nan")
    try:
        limit = float(number)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        allowed = "must be a limit such as peak_vram_gib <= 8 or env_steps_per_s >= 10000"
        raise ConfigError("study.constraints", text, allowed)
    _check_key("study.constraints", key, text)
    return Constraint(key + comparison + number, key, 1.0 if comparison == "<=" else -1.0, limit)


def _check_key(where: str, key: str, text: str) -> None:
    """Raise ``ConfigError`` unless ``key`` is a number of a run's summary."""
    if key not in _KNOWN:
        hint = did_you_mean(key, _KNOWN) or ", such as final_return or wall_time_s"
        raise ConfigError(where, text, f"{key} is no number of a run's summary.json{hint}")


def _listed(key: str, value: str | Sequence[str]) -> list[str]:
    values = [value] if isinstance(value, str) else list(value)
    if not values or not all(isinstance(item, str) for item in values):
        raise ConfigError(key, value, "must be a name or a list of names")
    return values
