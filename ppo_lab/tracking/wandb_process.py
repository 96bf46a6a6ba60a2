"""wandb's process-wide side: environment, key, its service, and whether a server is there at all.

The W&B runs of one process share these, so that a sweep pays for a dead server once. Facts about
wandb 0.31 behind it: without a key ``init`` asks on a terminal and waits for ever; its first
query has a timeout of its own, 10 s, that only ``setup`` can switch off.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["PROCESS", "decide_mode", "has_key", "prepare", "restart_service"]

_LOG = logging.getLogger(__name__)

# WANDB_MODE's other spellings, from wandb's own settings.
_MODES_OF_ENV = {"run": "online", "dryrun": "offline", "shared": "online"}


@dataclass
class _Process:
    is_online_broken: bool = False  # no further run tries the server
    is_upload_broken: bool = False  # no further finish waits for it
    has_key: bool | None = None  # None: not looked yet
    live: set[str] = field(default_factory=set)  # ids of runs that have not finished


PROCESS = _Process()


def decide_mode(wanted: str) -> str:
    """Return online, offline or disabled for ``tracking.mode``; ``auto`` honours WANDB_MODE."""
    mode = wanted if wanted != "auto" else os.environ.get("WANDB_MODE") or "online"
    mode = _MODES_OF_ENV.get(mode, mode)
    return "offline" if mode == "online" and PROCESS.is_online_broken else mode


def prepare(outputs: Path, mode: str) -> None:
    """Point wandb's own files below ``outputs`` and quieten it; the user's environment wins."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(outputs / "wandb" / ".data"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(outputs / "wandb" / ".cache"))
    import wandb

    # Only here does x_disable_viewer act; given to init it does not (a 10 s query).
    settings = wandb.Settings(mode=mode, silent=True, x_disable_viewer=True)  # type: ignore[arg-type]
    wandb.setup(settings)


def has_key(*, is_demanded: bool) -> bool:
    """Return whether this machine has a W&B key, without a prompt and without the network."""
    if PROCESS.has_key is None:
        import wandb

        PROCESS.has_key = False
        with contextlib.suppress(Exception):
            PROCESS.has_key = wandb.login(prompt=False, verify=False)
        if not PROCESS.has_key:
            level = logging.WARNING if is_demanded else logging.INFO
            _LOG.log(level, "no W&B key (WANDB_API_KEY or `wandb login`): tracking offline")
    return PROCESS.has_key


def restart_service(outputs: Path) -> None:
    """Start wandb's own process anew, offline, unless another run here still needs the old one."""
    import wandb

    if not PROCESS.live and wandb.run is None:
        with contextlib.suppress(Exception):  # a dead service cannot say goodbye
            wandb.teardown()
        prepare(outputs, "offline")
