"""Parameters of a W&B sweep, which ``wandb agent`` hands to a run by its words and by a file.

W&B shows those of the file as the run's config, whatever the run was trained with. So the command
takes them from there if they were not typed, and nothing is shown that was not used.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.json_files import flat, read_bounded

__all__ = ["agent_overrides", "agent_parameters", "check_used"]

_FILE = "WANDB_SWEEP_PARAM_PATH"
_MAX_BYTES = 1 << 20


def agent_parameters() -> dict[str, Any]:
    """Return the parameters by dotted key, empty where no agent has started this process.

    Raises:
        ConfigError: The agent's file cannot be read.
    """
    if not (path := os.environ.get(_FILE)):
        return {}
    import yaml

    try:
        content = yaml.safe_load(read_bounded(Path(path), _MAX_BYTES))
        values = {key: entry["value"] for key, entry in content.items() if key != "wandb_version"}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        told = " ".join(str(error).split())
        allowed = f"must hold the parameters of a W&B sweep as `wandb agent` writes them: {told}"
        raise ConfigError(_FILE, path, allowed) from None
    return dict(flat(values))


def agent_overrides(typed: Sequence[str]) -> list[str]:
    """Return the parameters that were not ``typed``, as overrides in Hydra's grammar.

    Raises:
        ConfigError: A parameter was typed with another value.
    """
    overrides = []
    for key, value in agent_parameters().items():
        words = _values_of(key, typed)
        if not words:
            overrides.append(f"{key}={_word(value)}")
        elif not any(_is_same(text, value) for text in words):
            allowed = f"the W&B sweep sets {key} to {_word(value)}; type one of them only"
            raise ConfigError(key, words[-1], allowed)
    return overrides


def check_used(config: Mapping[str, Any]) -> None:
    """Check that a run uses the parameters that W&B is going to show.

    ``config`` is the run's, whose ``overrides`` also count: an option such as ``network=tiny``.

    Raises:
        ConfigError: It does not, since it was not started by the command.
    """
    for key, value in agent_parameters().items():
        words = _values_of(key, config.get("overrides", ()))
        if (
            not any(_is_same(text, value) for text in words)
            and dict(flat(config)).get(key) != value
        ):
            allowed = "the W&B sweep sets it, but the run does not use it; see sweeps/wandb.yaml"
            raise ConfigError(key, _word(value), allowed)


def _values_of(key: str, overrides: Sequence[str]) -> list[str]:
    pairs = [text.lstrip("+").partition("=") for text in overrides]
    return [value for name, _, value in pairs if name == key]


def _is_same(text: str, value: Any) -> bool:  # noqa: ANN401 - any YAML value
    if type(value) in (int, float):
        with contextlib.suppress(ValueError):
            return float(text) == value
    spellings = (text, str(value), _word(value))  # the agent's own is Python's
    ours, *theirs = (spelling.lower().replace(" ", "") for spelling in spellings)
    return ours in theirs


def _word(value: Any) -> str:  # noqa: ANN401 - any YAML value
    """Return a value in Hydra's grammar."""
    if isinstance(value, str):
        is_plain = value.replace("_", "").replace(".", "").isalnum()
        return value if is_plain else "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)
