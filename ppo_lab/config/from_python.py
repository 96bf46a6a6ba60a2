"""Compose the config of a run in Python, with the words of a command line."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from ppo_lab.config.compose import check_command, check_config_dir, register
from ppo_lab.config.composer import open_hydra, parse
from ppo_lab.config.error_messages import explain
from ppo_lab.config.run import Config
from ppo_lab.utils.errors import ConfigError

__all__ = ["compose"]

_ONE = "describes several runs; compose() returns the config of one"
_register_once = functools.cache(register)


def compose(overrides: Sequence[str] = (), *, config_dir: str | Path | None = None) -> Config:
    """Return the checked config of one run.

    Args:
        overrides: What would follow ``python -m ppo_lab``, one entry per word.
        config_dir: Folder of your own YAML files, as ``--config-dir``.

    Returns:
        The config; ``dataclasses.replace(config, seed=2)`` checks a changed copy.

    Raises:
        ConfigError: A value cannot be used, or the words describe a grid or a study.

    Example:
        >>> compose(["env=cartpole", "epsilon=0.1"]).epsilon
        0.1
        >>> compose(["epsilon=-1"])
        Traceback (most recent call last):
        ppo_lab.utils.errors.ConfigError: epsilon=-1: must be a number > 0, or none
    """
    if isinstance(overrides, str):
        raise ConfigError("overrides", overrides, "must be a list, one entry per word")
    _register_once()
    words = [str(word) for word in overrides]
    try:
        with open_hydra(check_config_dir(str(config_dir) if config_dir else None)) as hydra:
            _refuse_several(words)
            command = check_command(hydra, words, is_multirun=False)
    except Exception as error:
        message = explain(error, words)
        if message is None or isinstance(error, ConfigError):
            raise
        what, _, allowed = message.removeprefix("ppo_lab: ").partition(": ")
        key, _, value = what.partition("=")
        raise ConfigError(key, value, allowed) from None
    if command.is_multirun:
        raise ConfigError("hydra.mode", "MULTIRUN", _ONE)
    return command.jobs[0].config


def _refuse_several(words: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a word that makes a grid or a study."""
    for word in words:
        key, _, value = word.partition("=")
        if parse(word).is_sweep_override() or (key in ("sweep", "study") and value != "null"):
            raise ConfigError(key, value, _ONE)
