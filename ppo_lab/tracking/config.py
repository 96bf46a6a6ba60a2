"""Options of the config group ``tracking``."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ppo_lab.utils.errors import ConfigError

__all__ = ["Terminal", "TrackingConfig", "TrackingMode"]

# Limits of wandb 0.31, which rejects a run that exceeds them.
MAX_TAG_CHARS = 64
_MAX_PROJECT_CHARS = 128
_FORBIDDEN_IN_PROJECT = "/\\#?%:"


class TrackingMode(StrEnum):
    """Whether W&B records the run, and whether it uploads it."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


class Terminal(StrEnum):
    """How a run shows its progress on stderr."""

    auto = "auto"
    live = "live"
    plain = "plain"
    none = "none"


@dataclass(kw_only=True)
class TrackingConfig:
    """Options of tracking; ``metrics.jsonl`` and ``summary.json`` are always written."""

    mode: TrackingMode = TrackingMode.auto
    """``auto``: WANDB_MODE if set, else online with a key and a responding server, else offline;
    ``online``: regardless of WANDB_MODE; ``offline``: for ``wandb sync``; ``disabled``: no W&B."""
    project: str = "ppo_lab"
    """W&B project, created on first use."""
    entity: str | None = None
    """W&B user or team; None: the account's default."""
    group: str | None = None
    """W&B group; None: the name of the grid or study."""
    tags: list[str] = field(default_factory=list)
    """Added to the run's own tags; 1 to 64 characters each."""
    notes: str | None = None
    """Note shown with the run in W&B."""
    init_timeout_s: float = 4.0
    """Seconds the server may take to accept a run, at most 60; longer suits a slow network. Spent
    once: afterwards the process stays offline."""
    finish_timeout_s: float = 5.0
    """Seconds the final upload may take, at most 600; ``wandb sync`` uploads the rest later.
    Together with ``init_timeout_s``, a broken server delays a run by about 10 s at most."""
    save_code: bool = False
    """Upload the git commit, uncommitted changes, machine data, and the started script if it is in
    the repository. Off, since a diff can contain secrets; the config includes the commit anyway."""
    log_every: int = 1
    """Iterations between two records in W&B and on the terminal; metrics.jsonl has all of them.
    Larger saves 0.1 to 0.5 ms per run and iteration: for stacks of many short iterations."""
    terminal: Terminal = Terminal.auto
    """Progress on stderr: ``live`` line, ``plain`` lines, ``none``; ``auto``: live on a tty."""

    def check(self) -> None:
        """Raise ``ConfigError`` for a value that W&B would reject only when the run starts."""
        for tag in self.tags:
            if not 0 < len(tag) <= MAX_TAG_CHARS:
                allowed = f"a tag has 1 to {MAX_TAG_CHARS} characters"
                raise ConfigError("tracking.tags", tag, allowed)
        forbidden = any(char in _FORBIDDEN_IN_PROJECT for char in self.project)
        if forbidden or not 0 < len(self.project) <= _MAX_PROJECT_CHARS:
            allowed = f"1 to {_MAX_PROJECT_CHARS} characters, none of {_FORBIDDEN_IN_PROJECT}"
            raise ConfigError("tracking.project", self.project, allowed)
        if self.log_every < 1:
            raise ConfigError("tracking.log_every", self.log_every, "iterations, at least 1")
        for key, longest in (("init_timeout_s", 60), ("finish_timeout_s", 600)):
            seconds = getattr(self, key)
            if not 0 < seconds <= longest:  # false for NaN too
                allowed = f"seconds, above 0 and at most {longest}"
                raise ConfigError(f"tracking.{key}", seconds, allowed)
