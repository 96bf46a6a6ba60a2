"""What a person can choose about a study: the keys ``study.*`` of a sweep file or command line."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.utils.errors import ConfigError

__all__ = [
    "RENAMED_KEYS",
    "STORAGE_VARIABLE",
    "Aggregate",
    "CommandConfig",
    "ConfirmConfig",
    "Executor",
    "StudyConfig",
    "renamed",
]

STORAGE_VARIABLE = "PPO_LAB_STORAGE"
"""Environment variable that holds ``study.storage``, so that a password is in no command line."""

RENAMED_KEYS = {
    "study.num_slots": "study.num_workers",
    "study.when": "study.conditions",
    "study.num_marks": "study.num_reports",
    "study.start": "study.enqueue",
    "study.patience_s": "study.storage_timeout_s",
}
"""Old key to new key. An old key is refused with its new name, for one release."""


class Executor(Enum):
    """What runs the trials."""

    processes = "processes"
    stacked = "stacked"


class Aggregate(Enum):
    """How a trial's seeds become one number."""

    mean = "mean"
    iqm = "iqm"  # mean of the middle half (arXiv:2108.13264)


@dataclass(kw_only=True)
class ConfirmConfig:
    """The best trials run once more, with fresh seeds, beside the defaults."""

    top: int = 0
    """How many of the best trials; 0 confirms nothing."""
    seeds: int = 5
    """Fresh seeds for each."""


@dataclass(kw_only=True)
class StudyConfig:
    """One study: what is varied, how it is judged, how much of it runs at a time."""

    name: str = "auto"
    """Its folder and its name in the storage. auto: the sweep and the fixed overrides."""
    num_trials: int = 50
    """Trials in all, over every machine and every start; the same command goes on up to here."""
    executor: Executor = Executor.processes
    """processes: each trial its own process, so that a crash costs that trial only. stacked: the
    seeds of many trials are lanes of one program per process, faster where small networks run
    uncompiled; on a CPU, compiled, it takes as long. What it cannot run (a memory strategy of one
    lane, measured resources) runs as processes."""
    num_workers: Any = "auto"
    """Processes at a time on this machine: of a trial each, or of a stack each. auto: one per GPU,
    or one per core without a GPU."""
    max_lanes: Any = "auto"
    """Most lanes of a stack. auto: 8 on a CPU, whose cache many more would leave, or the next
    multiple of num_seeds; on a GPU as many as fit by forecast."""
    storage: str = "auto"
    """auto: PPO_LAB_STORAGE, or else SQLite in the study's folder; postgresql://host/database joins
    machines. Passwords belong into PPO_LAB_STORAGE or ~/.pgpass, where nobody can list them."""

    objective: Any = "final_return"
    """A key of the run's summary, or a list of them."""
    direction: Any = None
    """maximize or minimize, a list where there are several objectives; none is each one's usual."""
    aggregate: Aggregate = Aggregate.mean
    """How a trial's seeds become one number."""
    constraints: list[str] = field(default_factory=list)
    """Such as ``peak_vram_gib <= 8``: a trial that breaks one is kept but never the best."""
    num_seeds: int = 1
    """Seeds per trial: seed, seed + 1, ... They advance in lockstep and are pruned together."""

    space: dict[str, Any] = field(default_factory=dict)
    """Key to interval(low, high), tag(log, interval(...)), range(start, stop) or choice(a, b)."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Key of the space to ``other=value``, or a list: it is varied only where that holds."""
    enqueue: list[Any] = field(default_factory=list)
    """Points to try first, each a mapping from keys of the space; the defaults are always tried."""

    sampler: dict[str, Any] = field(default_factory=dict)
    """Chosen by study/sampler=; its seed is mixed from ``seed``, the parent and the trials made."""
    pruner: dict[str, Any] = field(default_factory=dict)
    """Chosen by study/pruner=."""
    prune_confidence: float = 0.9
    """One-sided: a trial is pruned when this bound of its mean over seeds is behind, not its mean.
    0.5 goes by the mean itself."""
    num_reports: int = 20
    """Times that a trial reports its return on the way, evenly over total_steps."""
    seed: int = 0
    """The sampler's."""

    max_retries: int = 2
    """Times that a trial is run again after its process died or raised; then it has failed."""
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    """What happens after the search."""
    storage_timeout_s: float = 600.0
    """How long a storage that does not answer is tried again before the study stops."""
    lease_s: float = 60.0
    """On several machines: a machine unheard of for this long has lost its trials to the others."""
    allow_change: bool = False
    """Go on although space, base config or objective are not those that the study began with."""

    def check(self) -> None:
        """Raise ``ConfigError`` for a value that no study can have."""
        if self.name != "auto" and not re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}", self.name
        ):
            allowed = "must be auto, or 1 to 100 letters, digits, or any of ._=,+-"
            raise ConfigError("study.name", self.name, allowed)
        for key in ("num_trials", "num_seeds", "num_reports"):
            _check_whole(key, getattr(self, key), at_least=1)
        _check_whole("max_retries", self.max_retries, at_least=0)
        _check_whole("seed", self.seed, at_least=0)
        _check_whole("confirm.top", self.confirm.top, at_least=0)
        _check_whole("confirm.seeds", self.confirm.seeds, at_least=2)
        for key in ("num_workers", "max_lanes"):
            if getattr(self, key) != "auto":
                _check_whole(key, getattr(self, key), at_least=1, or_else="auto or ")
        for key in ("storage_timeout_s", "lease_s"):
            seconds = getattr(self, key)
            if not 0 < seconds < math.inf:
                raise ConfigError(f"study.{key}", seconds, "must be seconds above 0")
        if not self.space:
            allowed = "must name a key to vary, such as epsilon: interval(0.05, 0.5)"
            raise ConfigError("study.space", "{}", allowed)


@dataclass(kw_only=True)
class CommandConfig(Config):
    """What a command composes to: one run, and the study that varies it, if any."""

    study: StudyConfig | None = None


def _check_whole(key: str, value: object, *, at_least: int, or_else: str = "") -> None:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < at_least:  # type: ignore[operator]  # whole by then
        raise ConfigError(f"study.{key}", value, f"must be {or_else}a whole number >= {at_least}")


def renamed(key: str) -> str | None:
    """Return what to say of ``key`` if it, or a key above it, has a new name; else None."""
    for old, new in RENAMED_KEYS.items():
        if f"{key}.".startswith(f"{old}."):
            return f"is now {new}{key.removeprefix(old)}"
    return None
