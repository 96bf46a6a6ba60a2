"""What a run's folder says of the run, whether it has ended, trains, or its process is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ppo_lab.config.run import Config
from ppo_lab.runner.lock import holder_of
from ppo_lab.tracking import read_summary
from ppo_lab.tracking.local import SUMMARY_FILE
from ppo_lab.utils.json_files import atomic_write
from ppo_lab.utils.redaction import mask

__all__ = ["CONFIG_FILE", "stored_summary", "write_config"]

CONFIG_FILE = Path(".hydra", "config.yaml")
"""The resolved config in a run's folder, where Hydra writes it."""


def write_config(folder: Path, config: Config, overrides: Sequence[str]) -> None:
    """Write into a run's folder what Hydra writes where it starts the run; secrets are masked."""
    hydras = (folder / CONFIG_FILE).parent
    hydras.mkdir(parents=True, exist_ok=True)
    values = OmegaConf.structured(config), [*overrides]
    for name, value in zip((CONFIG_FILE.name, "overrides.yaml"), values):
        atomic_write(hydras / name, mask(OmegaConf.to_yaml(value)).encode())


def stored_summary(folder: Path) -> dict[str, Any]:
    """Return the summary of the run in ``folder``; without one, its status and reason.

    ``running`` while a process holds its lock; ``interrupted`` if it can go on from a checkpoint;
    ``died`` without one; ``not started`` where there is no folder.
    """
    try:
        return read_summary(folder / SUMMARY_FILE)
    except (OSError, ValueError):
        if not folder.is_dir():
            return {"status": "not started"}
    checkpoints = (folder / "checkpoints").glob("[0-9]*/manifest.json")
    iterations = [int(path.parent.name) for path in checkpoints]
    if holder := holder_of(folder):
        who = f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"
        status, reason = "running", f"is trained by {who}"
    elif iterations:
        status = "interrupted"
        reason = f"its process ended; a checkpoint of iteration {max(iterations)} is there"
    else:
        status, reason = "died", "its process ended without a summary"
    return {"status": status, "reason": reason, "folder": str(folder)}
