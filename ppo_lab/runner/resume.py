"""Go on with runs that ended early, from their checkpoints, in the same folder or another one."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.config.settings import ABOUT_A_RUN, settings_of
from ppo_lab.tracking import cut_metrics
from ppo_lab.tracking.local import METRICS_FILE
from ppo_lab.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import flat
from ppo_lab.utils.redaction import mask_values

__all__ = ["check_resume", "comparable", "copy_run", "fork_run"]

_HARMLESS = (*ABOUT_A_RUN, "checkpoint.every_s", "compile")
"""Keys that change no number of a run that goes on: it stays compiled if it was."""


def comparable(config: Config) -> dict[str, Any]:
    """Return the config as a checkpoint keeps it: JSON without credentials."""
    values: dict[str, Any] = mask_values(settings_of(config))
    return values


def check_resume(folder: Path, config: Config) -> None:
    """Raise ``ConfigError`` unless ``config`` may go on with the run in ``folder``.

    It must have a checkpoint that can be read, and the config must not change the run's numbers.
    """
    if (found := load_checkpoint(folder)) is None:
        allowed = "holds no checkpoint that can be read; the run has to begin again"
        raise ConfigError("resume", folder, allowed)
    if changed := _changed_keys(found.manifest["settings"], comparable(config)):
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        allowed = f"was trained with another config: {told}; fork={folder} starts a run from it"
        raise ConfigError("resume", folder, allowed)


def _changed_keys(
    stored: Mapping[str, Any], current: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Return the keys that change a run's numbers, each with its stored and its present value.

    ``total_steps`` may grow; ``cuda:1`` may become ``cuda:0``, but not ``cpu``.
    """
    before, after = dict(flat(stored)), dict(flat(current))
    changed = {}
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if key == "device":
            old, new = (str(value).partition(":")[0] for value in (old, new))
        grows = key == "total_steps" and new is not None and old is not None and new >= old
        is_harmless = any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)
        if old != new and not grows and not is_harmless:
            changed[key] = (old, new)
    return changed


def copy_run(source: Path, folder: Path) -> bool:
    """Copy the checkpoints of a run, and its metrics up to the newest; False if it has none."""
    if (found := load_checkpoint(source)) is None or not (source / METRICS_FILE).is_file():
        return False
    _copy_metrics(source, folder, found)
    shutil.copytree(source / "checkpoints", folder / "checkpoints", dirs_exist_ok=True)
    return True


def fork_run(source: Path, folder: Path, config: Config) -> None:
    """Make the newest checkpoint of ``source`` the first of the run of ``config`` in ``folder``.

    The fork has the curve up to there, and is another run in trackers.
    """
    found = load_checkpoint(source)
    assert found is not None, "checked"
    found.warn()
    _copy_metrics(source, folder, found)
    run_id = f"{found.manifest['run_id'][:55]}-{secrets.token_hex(4)}"
    own = {"run_id": run_id, "settings": comparable(config), "num_resumes": 0}
    save_checkpoint(folder, found.state, found.manifest | own)


def _copy_metrics(source: Path, folder: Path, checkpoint: Checkpoint) -> None:
    shutil.copyfile(source / METRICS_FILE, folder / METRICS_FILE)
    cut_metrics(folder, checkpoint.manifest["metrics_bytes"])
