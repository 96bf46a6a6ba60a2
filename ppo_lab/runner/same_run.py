"""Whether a config may go on with a run that another one began."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import flat
from ppo_lab.utils.redaction import mask_values

__all__ = ["changed_keys", "comparable", "refuse_change"]

_HARMLESS = (
    *("name", "tracking", "checkpoint.every_s", "num_threads", "forecast", "forecast_format"),
    *("vram_budget_gib", "vram_limit_gib", "profile", "compile"),
)
"""Keys that change no number of a run that goes on: it stays compiled if it was."""


def comparable(config: Config) -> dict[str, Any]:
    """Return the config as a checkpoint keeps it: JSON without credentials."""
    values: dict[str, Any] = mask_values(config.as_dict())
    return values


def changed_keys(stored: Mapping[str, Any], config: Config) -> dict[str, tuple[Any, Any]]:
    """Return the keys that change a run's numbers, each with its stored and its present value.

    ``total_steps`` may grow; ``cuda:1`` may become ``cuda:0``, but not ``cpu``.
    """
    before, after = dict(flat(stored)), dict(flat(comparable(config)))
    changed = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if key == "device":
            old, new = (str(value).partition(":")[0] for value in (old, new))
        grows = key == "total_steps" and new is not None and old is not None and new >= old
        is_harmless = any(key == name or key.startswith(f"{name}.") for name in _HARMLESS)
        if old != new and not grows and not is_harmless:
            changed[key] = (old, new)
    return dict(sorted(changed.items()))


def refuse_change(folder: Path, stored: Mapping[str, Any], config: Config) -> None:
    """Raise ``ConfigError`` with the keys that differ unless ``config`` may resume the run."""
    if changed := changed_keys(stored, config):
        told = ", ".join(f"{key} {old} -> {new}" for key, (old, new) in changed.items())
        allowed = f"was trained with another config: {told}; fork={folder} starts a run from it"
        raise ConfigError("resume", folder, allowed)
