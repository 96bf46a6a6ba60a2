"""Interface between the trainer and the places where its metrics are recorded.

A *record* holds one lane's metrics of one iteration; a *sink* writes records somewhere. A failing
sink never stops a run: see ``SafeSink``.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Histogram", "Record", "RunInfo", "Sink", "fitted_id"]

_ID_CHARS, _DIGEST_CHARS = 64, 16


@dataclass(frozen=True)
class Histogram:
    """Counts between bin edges; ``len(edges) == len(counts) + 1``."""

    counts: Sequence[float]
    edges: Sequence[float]


@dataclass(frozen=True)
class Record:
    """Metrics of one lane after one iteration."""

    global_step: int  # environment steps this lane has taken
    iteration: int  # iterations finished, counted from 1
    metrics: Mapping[str, float]
    """Values by name (``family/name``, as in the README's table); unavailable ones are absent."""
    histograms: Mapping[str, Histogram] = field(default_factory=dict)
    samples: Sequence[tuple[str, float]] = ()
    """Some texts with their rewards; most records have none."""
    state: str = ""
    """``dead`` or ``collapsed`` while the policy is; see ``training.scores``."""


@dataclass(frozen=True)
class RunInfo:
    """Identity and config of a run; the same for every sink."""

    folder: Path  # exists already
    id: str  # unique and readable; see ``fitted_id``
    name: str  # tells the runs of a grid apart: {name}__{env}__{memory}__eps{epsilon}__s{seed}
    group: str | None  # the grid or study this run belongs to
    tags: tuple[str, ...]  # at most 64 characters each: environment, memory strategy, commit
    total_steps: int  # environment steps the run will take
    config: Mapping[str, Any]  # resolved, plus versions and overrides; sinks mask secrets
    job_type: str = "train"  # or trial for a run of a study, study for the study itself
    is_named: bool = False  # the user chose a name, which takes precedence over WANDB_NAME
    resumed_at: int = 0  # iterations recorded before, under the same id; 0: a new run


def fitted_id(text: str) -> str:
    """Return ``text`` as an id of at most 64 characters of [A-Za-z0-9._=-].

    What does not fit is replaced by a hash of the whole, so that different texts stay different.

    Example:
        >>> fitted_id("CartPole-v1-s1-00ff"), len(fitted_id("x" * 65)), fitted_id("a/b")
        ('CartPole-v1-s1-00ff', 64, 'a-b-c14cddc033f64b9d')
    """
    allowed = re.sub(r"[^A-Za-z0-9._=-]", "-", text)
    if allowed == text and len(text) <= _ID_CHARS:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]
    return f"{allowed[: _ID_CHARS - _DIGEST_CHARS - 1]}-{digest}"


class Sink(ABC):
    """A destination of records; the trainer's thread calls the methods in this order."""

    @abstractmethod
    def start(self, run: RunInfo) -> None:
        """Open whatever ``run`` needs."""

    def describe(self, values: Mapping[str, Any]) -> None:  # noqa: B027 - most sinks have no config
        """Add to the run's config what was not known at its start."""

    @abstractmethod
    def record(self, record: Record) -> None:
        """Write one iteration's metrics."""

    @abstractmethod
    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:
        """Write the run's summary and close; ``exit_code`` is 0 when the run ended well."""
