"""Options of the config group ``tracking``."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, field
from enum import StrEnum

from ppo_lab.utils.errors import ConfigError

__all__ = ["Terminal", "TrackingConfig", "TrackingMode"]

# Limits of wandb 0.31, which rejects a run that exceeds them.
MAX_TAG_CHARS = 64
_MAX_PROJECT_CHARS = 128
_FORBIDDEN_IN_PROJECT = "/\\#?%:"
# Values of WANDB_MODE, some of them older spellings.
MODES_OF_ENV = {"run": "online", "dryrun": "offline", "shared": "online"} | {
    mode: mode for mode in ("online", "offline", "disabled")
}


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
    """Options of tracking; ``metrics.jsonl`` and ``summary.json`` are always written.

    W&B's own variables (WANDB_PROJECT, WANDB_NAME, WANDB_RUN_GROUP, WANDB_DIR, ...) apply where
    these options say nothing else.
    """

    mode: TrackingMode = TrackingMode.auto
    """``auto``: WANDB_DISABLED or WANDB_MODE if set, else online with a key and a responding
    server, else offline; ``online`` regardless of both; ``offline``: for ``wandb sync``."""
    project: str | None = None
    """W&B project, created on first use; None: WANDB_PROJECT, else ppo_lab."""
    entity: str | None = None
    """W&B user or team; None: the account's default."""
    group: str | None = None
    """W&B group; None: WANDB_RUN_GROUP, else the name of the grid or study."""
    tags: list[str] = field(default_factory=list)
    """Added to the run's own tags and those of WANDB_TAGS; 1 to 64 characters each."""
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
    log_model: bool = False
    """Upload the policy as a W&B artifact of type model when the run ends, also one that was
    recorded offline. A large one needs a longer ``finish_timeout_s``."""
    tensorboard: bool = False
    """Write TensorBoard's event file into the run's folder, besides W&B (extra ``tensorboard``);
    ``tracking=tensorboard`` is this without W&B."""
    csv: bool = False
    """Write ``metrics.csv`` into the run's folder, besides W&B; ``tracking=csv``: without W&B."""
    log_every: int = 1
    """Iterations between two records in all trackers and on the terminal; metrics.jsonl has all.
    Larger saves 0.1 to 0.5 ms per run and iteration: for stacks of many short iterations."""
    terminal: Terminal = Terminal.auto
    """Progress on stderr: ``live`` line, ``plain`` lines, ``none``; ``auto``: live on a tty."""

    def check(self) -> None:
        """Raise ``ConfigError`` for a value that W&B would reject only when the run starts."""
        for tag in self.tags:
            if not 0 < len(tag) <= MAX_TAG_CHARS:
                allowed = f"a tag has 1 to {MAX_TAG_CHARS} characters"
                raise ConfigError("tracking.tags", tag, allowed)
        project = self.resolved_project
        forbidden = any(char in _FORBIDDEN_IN_PROJECT for char in project)
        if forbidden or not 0 < len(project) <= _MAX_PROJECT_CHARS:
            allowed = f"1 to {_MAX_PROJECT_CHARS} characters, none of {_FORBIDDEN_IN_PROJECT}"
            key = "WANDB_PROJECT" if self.project is None else "tracking.project"
            raise ConfigError(key, project, allowed)
        mode = os.environ.get("WANDB_MODE")
        if self.mode is TrackingMode.auto and mode and mode not in MODES_OF_ENV:
            raise ConfigError("WANDB_MODE", mode, f"must be one of {', '.join(MODES_OF_ENV)}")
        if self.tensorboard and importlib.util.find_spec("tensorboard") is None:
            allowed = "needs TensorBoard: pip install 'ppo_lab[tensorboard]'"
            raise ConfigError("tracking.tensorboard", "true", allowed)
        if self.log_every < 1:
            raise ConfigError("tracking.log_every", self.log_every, "iterations, at least 1")
        for key, longest in (("init_timeout_s", 60), ("finish_timeout_s", 600)):
            seconds = getattr(self, key)
            if not 0 < seconds <= longest:  # false for NaN too
                allowed = f"seconds, above 0 and at most {longest}"
                raise ConfigError(f"tracking.{key}", seconds, allowed)

    @property
    def resolved_project(self) -> str:
        """The W&B project: as configured, else as in the environment, else ppo_lab."""
        if self.project is not None:
            return self.project
        return os.environ.get("WANDB_PROJECT") or "ppo_lab"

    def resolved_mode(self) -> str:
        """Return online, offline or disabled: as configured, else as in the environment."""
        if self.mode is not TrackingMode.auto:
            return self.mode.value
        if os.environ.get("WANDB_DISABLED", "").lower() not in ("", "0", "false", "no", "off"):
            return "disabled"
        return MODES_OF_ENV[os.environ.get("WANDB_MODE") or "online"]
