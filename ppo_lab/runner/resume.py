"""Go on with runs that ended early, from their checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.runner.run import run_in_folder
from ppo_lab.runner.same_run import refuse_change
from ppo_lab.tracking import cut_metrics
from ppo_lab.tracking.local import METRICS_FILE
from ppo_lab.training.checkpoint import Checkpoint, load_checkpoint
from ppo_lab.utils.errors import ConfigError

__all__ = ["check_resume", "copy_run", "resume_run"]


def check_resume(folder: Path, config: Config) -> Checkpoint:
    """Return the checkpoint from which ``config`` goes on with the run in ``folder``.

    Raises:
        ConfigError: There is none that can be read, or the config would change the run's numbers.
    """
    if (found := load_checkpoint(folder)) is None:
        allowed = "holds no checkpoint that can be read; the run has to begin again"
        raise ConfigError("resume", folder, allowed)
    refuse_change(folder, found.manifest["settings"], config)
    return found


def resume_run(
    folder: Path, config: Config, *, overrides: Sequence[str] = (), group: str | None = None
) -> dict[str, Any]:
    """Go on with the run in ``folder`` from its newest checkpoint, and return its summary.

    Its records are cut back to the checkpoint, and its run in W&B goes on. See ``run_in_folder``.

    Raises:
        ConfigError: See ``check_resume``.
    """
    check_resume(folder, config)
    return run_in_folder(config, folder, overrides=overrides, group=group, resumes=True)


def copy_run(source: Path, folder: Path) -> bool:
    """Copy the checkpoints of a run, and its metrics up to the newest; False if it has none."""
    if (found := load_checkpoint(source)) is None or not (source / METRICS_FILE).is_file():
        return False
    shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)
    cut_metrics(folder, found.manifest["metrics_bytes"])
    shutil.copytree(source / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    return True
