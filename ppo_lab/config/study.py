"""The configuration of a study: the keys ``study.*`` of a sweep file or command line."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING

from ppo_lab.config.checks import check_whole
from ppo_lab.config.run import Config
from ppo_lab.ppo.baselines import Baseline
from ppo_lab.utils.errors import ConfigError

__all__ = [
    "RENAMED_KEYS", "STORAGE_VARIABLE", "Aggregate", "CommandConfig", "ConfirmConfig", "Executor",
    "StudyConfig", "refuse_renamed", "renamed"]  # fmt: skip

STORAGE_VARIABLE = "PPO_LAB_STORAGE"
"""Environment variable for ``study.storage``, which keeps passwords off the command line."""

_LONGEST_S = 1e8  # three years

RENAMED_KEYS = {
    "study.num_slots": "study.num_workers",
    "study.when": "study.conditions",
    "study.num_marks": "study.num_reports",
    "study.start": "study.enqueue",
    "study.patience_s": "study.storage_timeout_s",
}
"""Old key to new key. An old key is refused with its new name, for one release."""


class Executor(Enum):
    """How trials are run."""

    processes = "processes"
    stacked = "stacked"


class Aggregate(Enum):
    """Aggregate of an objective over the seeds of a trial."""

    mean = "mean"
    iqm = "iqm"  # interquartile mean: of the middle half (arXiv:2108.13264)


@dataclass(kw_only=True)
class ConfirmConfig:
    """Confirmation: the best trials are run again with fresh seeds, together with the defaults."""

    top: int = 0
    """Number of best trials; 0 for no confirmation."""
    seeds: int = 5
    """Fresh seeds per trial."""


@dataclass(kw_only=True)
class StudyConfig:
    """One study: search space, objectives, sampler, pruner and execution."""

    name: str = "auto"
    """Name of the folder and in the storage. auto: the sweep and the fixed overrides."""
    num_trials: int = 50
    """Total trials, over all machines and restarts; the same command resumes up to this number."""
    executor: Executor = Executor.processes
    """processes: one per trial, so that a crash affects that trial only. stacked: the seeds of many
    trials are lanes of one stack per process, faster for small networks unless compiled on a CPU.
    What cannot be stacked (a memory strategy of one lane, objectives measured per process) runs as
    processes."""
    num_workers: Any = "auto"
    """Processes at a time on this machine, each with a trial or a stack. auto: one per GPU, or one
    per core without a GPU."""
    max_lanes: Any = "auto"
    """Most lanes of a stack. auto: on a CPU 8, so that they fit its cache, rounded up to a multiple
    of num_seeds; on a GPU as many as fit by forecast."""
    storage: str = "auto"
    """auto: PPO_LAB_STORAGE, else SQLite in the study's folder; postgresql://host/database for
    several machines. Put passwords in PPO_LAB_STORAGE or ~/.pgpass, not on the command line."""

    objective: Any = "final_return"
    """A key of the run's summary, or a list of them."""
    direction: Any = None
    """maximize or minimize, or a list of them; none is the usual direction of each objective."""
    aggregate: Aggregate = Aggregate.mean
    """Aggregate of an objective over the seeds of a trial."""
    constraints: list[str] = field(default_factory=list)
    """Such as ``peak_vram_gib <= 8``; a trial that violates one is kept but never the best."""
    num_seeds: int = 1
    """Seeds per trial: seed, seed + 1, ... They run in lockstep and are pruned together."""

    space: dict[str, Any] = field(default_factory=dict)
    """Key to interval(low, high), tag(log, interval(...)), range(start, stop) or choice(a, b)."""
    conditions: dict[str, Any] = field(default_factory=dict)
    """Key of the space to ``other=value``, or a list: varied only in trials where that holds."""
    enqueue: list[Any] = field(default_factory=list)
    """Points to run first, each a mapping from keys of the space; the defaults always run first."""

    sampler: dict[str, Any] = field(default_factory=dict)
    """Chosen by study/sampler=; its seed derives from ``seed``, the process and the trials."""
    pruner: dict[str, Any] = field(default_factory=dict)
    """Chosen by study/pruner=."""
    prune_confidence: float = 0.9
    """One-sided confidence: pruners compare this bound of a trial's mean over seeds. 0.5 compares
    the mean itself."""
    num_reports: int = 20
    """Intermediate reports of a trial's return, evenly spaced over total_steps."""
    seed: int = 0
    """Seed of the sampler."""

    max_retries: int = 2
    """Retries of a trial whose process died or raised an exception, before it counts as failed."""
    confirm: ConfirmConfig = field(default_factory=ConfirmConfig)
    """Confirmation of the best trials after the search."""
    storage_timeout_s: float = 600.0
    """Retry a storage that does not answer for this long before the study stops."""
    lease_s: float = 60.0
    """On several machines: trials of a machine silent for this long are given to the others."""
    allow_change: bool = False
    """Resume although space, base config or objective differ from those of the first start."""

    def check(self) -> None:
        """Raise ``ConfigError`` for an invalid value."""
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=,+-]{0,99}", self.name):
            allowed = "must be auto, or 1 to 100 letters, digits, or any of ._=,+-"
            raise ConfigError("study.name", self.name, allowed)
        for key, most in (("num_trials", 1_000_000), ("num_seeds", 1000), ("num_reports", 1000)):
            check_whole(f"study.{key}", getattr(self, key), at_most=most)
        for key in ("num_workers", "max_lanes"):
            check_whole(f"study.{key}", getattr(self, key), at_most=10_000, auto=True)
        for key, most in (("max_retries", 1000), ("seed", 2**63 - 1)):
            check_whole(f"study.{key}", getattr(self, key), at_least=0, at_most=most)
        check_whole("study.confirm.top", self.confirm.top, at_least=0, at_most=1000)
        check_whole("study.confirm.seeds", self.confirm.seeds, at_least=2, at_most=1000)
        for key in ("storage_timeout_s", "lease_s"):
            seconds = getattr(self, key)
            if not 0 < seconds <= _LONGEST_S:
                allowed = f"must be seconds above 0 and at most {_LONGEST_S:g}"
                raise ConfigError(f"study.{key}", seconds, allowed)
        self._check_types()
        if not self.space:
            allowed = "must name a key to vary, such as epsilon: interval(0.05, 0.5)"
            raise ConfigError("study.space", "{}", allowed)

    def _check_types(self) -> None:
        """Raise ``ConfigError`` for keys that are neither a text nor a list of texts."""
        texts = {"objective": self.objective, "direction": self.direction or []}
        texts |= {f"conditions.{key}": value for key, value in self.conditions.items()}
        for key, value in texts.items():
            each = value if isinstance(value, list) else [value]
            if not all(isinstance(text, str) for text in each):
                raise ConfigError(f"study.{key}", value, "must be a text, or a list of texts")
        for point in self.enqueue:
            if not isinstance(point, dict):
                allowed = "must be a list of points, such as [{epsilon: 0.1}]"
                raise ConfigError("study.enqueue", self.enqueue, allowed)


@dataclass(kw_only=True)
class CommandConfig(Config):
    """Schema of a command: one run, the study that varies it, if any, and what is made of both."""

    baseline: Baseline = MISSING  # a default would allow no other class
    study: StudyConfig | None = None
    report: bool = True
    """Write report.html into the folder of a grid or study when it ends."""


def renamed(key: str) -> str | None:
    """Return the new name of ``key`` if it or a key above it was renamed, else None."""
    for old, new in RENAMED_KEYS.items():
        if f"{key}.".startswith(f"{old}."):
            return new + key.removeprefix(old)
    return None


def refuse_renamed(values: Mapping[str, object], where: str = "") -> None:
    """Raise ``ConfigError`` if keys of ``values`` were renamed; the message names all of them."""
    names = {key: name for key in values if (name := renamed(key)) is not None}
    if names:
        first = next(iter(names))
        pairs = ", ".join(f"{name} for {key}" for key, name in names.items())
        raise ConfigError(f"{where}{first}", values[first], f"was renamed; write {pairs}")
