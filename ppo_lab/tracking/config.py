"""What a person can choose about tracking: where records go besides the run's own folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from ppo_lab.utils.errors import ConfigError

__all__ = ["Terminal", "TrackingConfig", "TrackingMode"]

# Limits of wandb 0.31, which refuses a run that passes them.
_MAX_TAG_CHARS = 64
_MAX_PROJECT_CHARS = 128
_FORBIDDEN_IN_PROJECT = "/\\#?%:"


class TrackingMode(StrEnum):
    """Whether W&B records the run, and whether it uploads while it does."""

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
    """The tracking group; ``metrics.jsonl`` and ``summary.json`` are written whatever it says."""

    mode: TrackingMode = TrackingMode.auto
    """``auto``: WANDB_MODE if set, else online with a key and an answering server, else offline;
    ``online``: try the server even against WANDB_MODE; ``offline``: record for ``wandb sync``;
    ``disabled``: no W&B at all."""
    project: str = "ppo_lab"
    """W&B project, made on first use."""
    entity: str | None = None
    """W&B user or team; None is the account's default."""
    group: str | None = None
    """What W&B groups runs by; None is the grid's or study's name."""
    tags: list[str] = field(default_factory=list)
    """Added to the run's own tags; each 1 to 64 characters."""
    notes: str | None = None
    """A sentence shown beside the run in W&B."""
    init_timeout_s: float = 4.0
    """Seconds the server may take to accept a run, at most 60; longer suits a slow network, shorter
    loses less when the server is away. Paid once: afterwards the process stays offline."""
    finish_timeout_s: float = 5.0
    """Seconds the last upload may take, at most 600; what is left then waits for ``wandb sync``.
    With ``init_timeout_s`` this bounds what a broken server costs a run to about 10 s."""
    save_code: bool = False
    """Upload the git commit, uncommitted changes, the machine's data, and the started script if it
    lies in the repository; off, since a diff can hold secrets. Our commit is in the config."""
    terminal: Terminal = Terminal.auto
    """Progress on stderr: ``live`` line, ``plain`` lines, ``none``; ``auto`` is live on a tty."""

    def check(self) -> None:
        """Raise ConfigError for a value W&B would refuse later, in the middle of a start."""
        for tag in self.tags:
            if not 0 < len(tag) <= _MAX_TAG_CHARS:
                allowed = f"a tag has 1 to {_MAX_TAG_CHARS} characters"
                raise ConfigError("tracking.tags", tag, allowed)
        forbidden = any(char in _FORBIDDEN_IN_PROJECT for char in self.project)
        if forbidden or not 0 < len(self.project) <= _MAX_PROJECT_CHARS:
            allowed = f"1 to {_MAX_PROJECT_CHARS} characters, none of {_FORBIDDEN_IN_PROJECT}"
            raise ConfigError("tracking.project", self.project, allowed)
        for key, longest in (("init_timeout_s", 60), ("finish_timeout_s", 600)):
            seconds = getattr(self, key)
            if not 0 < seconds <= longest:  # false for NaN too
                allowed = f"seconds, above 0 and at most {longest}"
                raise ConfigError(f"tracking.{key}", seconds, allowed)
